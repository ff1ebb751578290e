"""Turns for heavy requests: few run at once, and who gets no turn soon is told so instead of being kept waiting.

Batches that are taken in all at the same time only make each other slow, and single transfers with them.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# How much the newest piece of work counts in how long one is expected to take.
NEWEST_PART = 0.2
# This part of the time is always there for waiting, however long the work itself takes.
WAIT_PART_MIN = 0.25
# A line that is no longer than this moves soon enough by itself: a slow machine is no reason to turn a few away.
SHORT_LINE = 8
SHORT_LINE_PATIENCE = 10


class NoTurn(Exception):
    """No turn came in time; `seconds` is how long one usually takes, and nobody stays in line for longer than asked."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Turns:
    """Turns on one event loop. Clients who wait are served in rotation, so that many requests of one delay no other."""

    def __init__(self, *, at_once: int, answer_seconds: float, line_max: int) -> None:
        self._free = at_once
        self._answer_seconds = answer_seconds
        self._line_max = line_max
        # Each learns whether it has a turn, or lost its place in line.
        self._waiting: OrderedDict[str, deque[asyncio.Future[bool]]] = OrderedDict()
        self._work_seconds = 0.0

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Wait for a turn, and hold it while the block runs: both together in about `answer_seconds`, or there is none.

        Who comes while few wait (SHORT_LINE) stays ten times as long. When `line_max` wait, one more is sent away at
        once; or in its place the last of the client who has most in line, where that is fairer.

        Raises:
            NoTurn: none came.
        """
        await self._take(client)
        began = time.monotonic()
        try:
            yield
        finally:
            self._pass_on()
            self._work_seconds += NEWEST_PART * (time.monotonic() - began - self._work_seconds)

    async def _take(self, client: str) -> None:
        if self._free:
            self._free -= 1
            return
        if self._line() >= self._line_max:
            self._make_room(client)
        patience_seconds = self._patience_seconds()
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        try:
            async with asyncio.timeout(patience_seconds):
                has_turn = await turn
        except (TimeoutError, asyncio.CancelledError) as end:
            if turn.cancelled():
                self._forget(client, turn)
            elif turn.result():
                # It came in this very moment, too late.
                self._pass_on()
            if isinstance(end, TimeoutError):
                raise NoTurn(self._work_seconds) from None
            raise
        if not has_turn:
            raise NoTurn(self._work_seconds)

    def _line(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _make_room(self, client: str) -> None:
        most = max(self._waiting.values(), key=len, default=deque[asyncio.Future[bool]]())
        # One more of this client must still be fewer: nobody is sent away for somebody who is no better.
        if len(most) <= len(self._waiting.get(client, ())) + 1:
            raise NoTurn(self._work_seconds)
        last = most.pop()
        if not last.done():
            last.set_result(False)

    def _patience_seconds(self) -> float:
        if self._line() < SHORT_LINE:
            return self._answer_seconds * SHORT_LINE_PATIENCE
        return max(self._answer_seconds - self._work_seconds, self._answer_seconds * WAIT_PART_MIN)

    def _forget(self, client: str, turn: asyncio.Future[bool]) -> None:
        of_client = self._waiting.get(client, deque())
        if turn in of_client:
            of_client.remove(turn)
            if not of_client:
                del self._waiting[client]

    def _pass_on(self) -> None:
        while self._waiting:
            client, of_client = self._waiting.popitem(last=False)
            turn = of_client.popleft()
            if of_client:
                self._waiting[client] = of_client
            # One that has just been given up is on its way to be forgotten.
            if not turn.done():
                turn.set_result(True)
                return
        self._free += 1
