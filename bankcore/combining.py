"""Let threads that ask for the same kind of work at the same time have it done by one of them, in one go.

One database transaction costs about as much for a dozen rows as for one. The first thread leads: it takes what waits,
its own item included, works, and hands out the results. What arrives meanwhile waits and is the next lot, so lots grow
with the load and a lone item never waits. Where lots follow one another closely, the next is put off a little: a lot of
a few costs hardly more than a lot of one, and what it saves is wanted most when everything is slow.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# A lot begins this many times its usual duration after the one before, so that work takes a third of the time at most.
PACE_TIMES = 3.0
PACE_SECONDS_MAX = 0.006
# After so many lots of one in a row there is nothing to put together: whoever sends one by one does not wait.
LONE_LOTS = 8
# How much the newest lot counts in how long one usually takes.
NEWEST_PART = 0.2


class _Ticket(Generic[Item, Result]):
    """One thread's item; `asleep` is released when there is a result, or the lead, or a reason to go alone."""

    __slots__ = ("alone", "asleep", "item", "leads", "results")

    def __init__(self, item: Item) -> None:
        self.item = item
        # A bare lock, taken twice by a follower: an Event wakes it at several times the price.
        self.asleep = threading.Lock()
        self.asleep.acquire()
        self.results: list[Result] = []
        self.leads = False
        self.alone = False


class Combiner(Generic[Item, Result]):
    """`work` takes a lot of items and answers one result each, in the same order."""

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[Result]], *, lot_max: int) -> None:
        self._work = work
        self._lot_max = lot_max
        self._lock = threading.Lock()
        self._waiting: deque[_Ticket[Item, Result]] = deque()
        self._is_led = False
        # Of those who lead, one after the other.
        self._began = self._usual_seconds = 0.0
        self._lone = LONE_LOTS

    def submit(self, item: Item) -> Result:
        """Do the work for this item, together with others' where there are any, and return its result.

        If a lot fails, each of its items is worked on again by its own thread and alone: so the work must bear
        repetition, and one item's error never reaches another.
        """
        ticket: _Ticket[Item, Result] = _Ticket(item)
        with self._lock:
            self._waiting.append(ticket)
            ticket.leads, self._is_led = not self._is_led, True
        if not ticket.leads:
            ticket.asleep.acquire()
        if ticket.leads:
            self._lead()
        if ticket.alone:
            return self._work([item])[0]
        return ticket.results[0]

    def _lead(self) -> None:
        """Work on one lot, of which the leader's ticket is the first, and pass the lead on."""
        self._put_off()
        with self._lock:
            lot = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._lot_max))]
        self._lone = self._lone + 1 if len(lot) == 1 else 0
        self._began = time.monotonic()
        try:
            for ticket, result in zip(lot, self._work([ticket.item for ticket in lot]), strict=True):
                ticket.results.append(result)
        except Exception:
            if len(lot) == 1:
                raise
        finally:
            self._usual_seconds += NEWEST_PART * (time.monotonic() - self._began - self._usual_seconds)
            self._pass_on(lot)

    def _put_off(self) -> None:
        if self._lone < LONE_LOTS:
            pace = min(self._usual_seconds * PACE_TIMES, PACE_SECONDS_MAX)
            if (ahead := self._began + pace - time.monotonic()) > 0:
                time.sleep(ahead)

    def _pass_on(self, lot: Sequence[_Ticket[Item, Result]]) -> None:
        with self._lock:
            following = self._waiting[0] if self._waiting else None
            self._is_led = following is not None
            if following is not None:
                following.leads = True
                following.asleep.release()
        for ticket in lot:
            ticket.alone = not ticket.results
            # The leader of this lot is not asleep any more, or has never been.
            if not ticket.leads:
                ticket.asleep.release()
