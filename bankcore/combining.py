"""Let threads that ask for the same kind of work at the same time have it done by one of them, in one go.

One database transaction costs about as much for a dozen rows as for one. The first thread leads: it takes what waits,
its own item included, works, and hands out the results. What arrives meanwhile waits and is the next lot, so lots grow
with the load and a lone item never waits.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


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
        with self._lock:
            lot = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._lot_max))]
        try:
            for ticket, result in zip(lot, self._work([ticket.item for ticket in lot]), strict=True):
                ticket.results.append(result)
        except Exception:
            if len(lot) == 1:
                raise
        finally:
            self._pass_on(lot)

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
