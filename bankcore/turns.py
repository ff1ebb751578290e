"""Turns for heavy requests: few run at once, and who gets no turn soon is told so instead of being kept waiting.

Batches that are taken in all at the same time only make each other slow, and single transfers with them.
"""

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# How much the newest piece of work counts in how long one is expected to take.
NEWEST_PART = 0.2
# This part of the time is always there for waiting, however long the work itself takes.
WAIT_PART_MIN = 0.25
# So many in line are a crowd. Fewer move soon enough by themselves: a slow machine is no reason to turn a few away.
CROWD = 8
PATIENCE_TIMES = 10


class NoTurn(Exception):
    """No turn came in time; `seconds` is how long one usually takes, and nobody stays in line for longer than asked."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class _Place:
    """A place in line. `turn` says whether it came to its turn (True) or was given up (False)."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self.turn: asyncio.Future[bool] = self._loop.create_future()

    def wait_at_most(self, seconds: float) -> None:
        """Give up so long after the place was taken; what was said before holds where it is sooner."""
        until = self._since + seconds
        if self._timer is None or until < self._timer.when():
            self.wait_no_more()
            self._timer = self._loop.call_at(until, self.give_up)

    def wait_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def give_up(self) -> None:
        if not self.turn.done():
            self.turn.set_result(False)


class Turns:
    """Turns on one event loop. Clients who wait are served in rotation, so that many requests of one delay no other.

    A few wait as long as it takes, within reason, and each client's first is its first. In a crowd most are turned away
    whatever is done: so nobody waits for long there, and each client's last is its first, as its answer comes soonest
    (the adaptive LIFO and controlled delay of B. Maurer, "Fail at Scale", ACM Queue 13(8), 2015).
    """

    def __init__(self, *, at_once: int, answer_seconds: float, line_max: int) -> None:
        self._free = at_once
        self._answer_seconds = answer_seconds
        self._line_max = line_max
        self._waiting: OrderedDict[str, deque[_Place]] = OrderedDict()
        # When the last of those who got no turn left, and whose they were.
        self._gone: deque[tuple[float, str]] = deque(maxlen=CROWD)
        self._work_seconds = 0.0

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Wait for a turn, and hold it while the block runs: both together in about `answer_seconds`, or there is none.

        Who comes while few wait stays ten times as long, unless they become a crowd. When `line_max` wait, one more is
        sent away at once; or in its place the last of the client who has most in line, where that is fairer.

        Raises:
            NoTurn: none came.
        """
        if self._free:
            self._free -= 1
        elif not await self._wait(client):
            self._gone.append((time.monotonic(), client))
            raise NoTurn(self._work_seconds)
        began = time.monotonic()
        try:
            yield
        finally:
            self._pass_on()
            self._work_seconds += NEWEST_PART * (time.monotonic() - began - self._work_seconds)

    async def _wait(self, client: str) -> bool:
        if self._line() >= self._line_max and not self._make_room(client):
            return False
        place = _Place()
        self._waiting.setdefault(client, deque()).append(place)
        place.wait_at_most(self._answer_seconds * PATIENCE_TIMES)
        self._hurry()
        try:
            return await place.turn
        except asyncio.CancelledError:
            # The turn may have come in this very moment, for a client who has just gone away.
            if not place.turn.cancelled() and place.turn.result():
                self._pass_on()
            raise
        finally:
            place.wait_no_more()
            self._forget(client, place)

    def _line(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _patient_line(self) -> Counter[str]:
        """How many each client would have in line if everybody stayed as long as a few may.

        Who got no turn counts for that long: that impatience keeps the line short is no sign that few come.
        """
        since = time.monotonic() - self._answer_seconds * PATIENCE_TIMES
        line = Counter({client: len(places) for client, places in self._waiting.items()})
        line.update(client for at, client in self._gone if at > since)
        return line

    def _hurry(self) -> None:
        """In a crowd let nobody wait for long, nor those who came before it was one."""
        line = self._patient_line()
        if line.total() < CROWD:
            return
        seconds = max(self._answer_seconds - self._work_seconds, self._answer_seconds * WAIT_PART_MIN)
        for client, places in self._waiting.items():
            # Among few clients the only request of one is soon the next, whatever crowd another client sends.
            if line[client] > 1 or len(line) >= CROWD:
                for place in places:
                    place.wait_at_most(seconds)

    def _make_room(self, client: str) -> bool:
        most = max(self._waiting.values(), key=len, default=deque[_Place]())
        # One more of this client must still be fewer: nobody is sent away for somebody who is no better.
        if len(most) <= len(self._waiting.get(client, ())) + 1:
            return False
        most.pop().give_up()
        return True

    def _forget(self, client: str, place: _Place) -> None:
        of_client = self._waiting.get(client, deque())
        if place in of_client:
            of_client.remove(place)
            if not of_client:
                del self._waiting[client]

    def _pass_on(self) -> None:
        newest_first = self._patient_line().total() >= CROWD
        while self._waiting:
            client, of_client = self._waiting.popitem(last=False)
            place = of_client.pop() if newest_first else of_client.popleft()
            if of_client:
                self._waiting[client] = of_client
            # One that has just been given up is on its way to be forgotten.
            if not place.turn.done():
                place.turn.set_result(True)
                return
        self._free += 1
