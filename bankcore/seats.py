"""Seats for requests that wait for something: they hold no thread, and one thread looks for all of them at once.

A view takes a seat and answers. The front (bankcore/front.py) keeps that answer to itself, and calls the view again
when the wait is over. So what a caller may see is decided by the view alone, before the wait and after it.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from uuid import UUID
from weakref import WeakSet

from django.db import connection

from bankcore.database import is_away

log = logging.getLogger(__name__)

# Under this name in a request's environ the front offers to call the view again.
PATIENCE = "bankcore.patience"
LOOK_SECONDS = 0.1
LOOK_AGAIN_SECONDS = 1.0
# The thread and its connection outlive the last who waits by this much.
LINGER_SECONDS = 5.0


@dataclass(slots=True)
class Patience:
    """What the front offers: a view that takes a seat is called again, with `is_over` set."""

    seat: "Seat | None" = None
    is_over: bool = False


@dataclass(eq=False, slots=True)
class Seat:
    """One request that waits for its subject, until a moment of the monotonic clock."""

    room: "Room"
    subject: UUID
    until: float
    ended: "Future[None]" = field(default_factory=Future)
    # Whoever waits on it gives it back, however long that takes.
    is_kept: bool = False

    async def wait(self, gone: Awaitable[None]) -> bool:
        """Wait until the subject has ended or the time is up; False if the client has gone. Then `leave` is due."""
        self.is_kept = True
        ended, leaving = asyncio.wrap_future(self.ended), asyncio.ensure_future(gone)
        try:
            left = max(0.0, self.until - time.monotonic())
            await asyncio.wait({ended, leaving}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            return not leaving.done()
        finally:
            ended.cancel()
            leaving.cancel()

    def leave(self) -> None:
        """Give the seat back."""
        self.room.leave(self)


# All of this process.
_rooms: "WeakSet[Room]" = WeakSet()


def close_all() -> None:
    """Let nobody wait any longer in this process, as it is about to end."""
    for room in list(_rooms):
        room.close()


class Room:
    """So many seats in one process. `find_ended` names those of many subjects that nobody has to wait for any more."""

    def __init__(self, find_ended: Callable[[list[UUID]], Iterable[UUID]], *, seats_max: int) -> None:
        self._find_ended = find_ended
        self._seats_max = seats_max
        self._seats: set[Seat] = set()
        self._changed = threading.Condition()
        self._is_watched = False
        _rooms.add(self)

    def take(self, subject: UUID, seconds: float) -> Seat | None:
        """Take a seat for so long at most; None when all are taken."""
        with self._changed:
            if len(self._seats) >= self._seats_max:
                return None
            seat = Seat(self, subject, time.monotonic() + seconds)
            self._seats.add(seat)
            if not self._is_watched:
                self._is_watched = True
                threading.Thread(target=self._watch, name="seats", daemon=True).start()
            self._changed.notify()
        return seat

    def leave(self, seat: Seat) -> None:
        with self._changed:
            self._seats.discard(seat)

    def close(self) -> None:
        """Let nobody wait any longer, and nobody take a seat."""
        with self._changed:
            self._seats_max = 0
            waiting = self._untold()
        for seat in waiting:
            _tell(seat)

    def _watch(self) -> None:
        is_failing = False
        while waiting := self._waiting():
            try:
                ended = set(self._find_ended(list({seat.subject for seat in waiting})))
            except Exception as error:
                # Nobody hears of it who waits: when their time is up, the view itself says what is wrong.
                if not is_failing:
                    log.warning("who waits is not told of an end: %s", error, exc_info=not is_away(error))
                is_failing = True
                connection.close()
                time.sleep(LOOK_AGAIN_SECONDS)
                continue
            is_failing = False
            for seat in waiting:
                if seat.subject in ended:
                    _tell(seat)
            time.sleep(LOOK_SECONDS)
        connection.close()

    def _waiting(self) -> list[Seat]:
        """Who waits; nobody came for a while when it is empty, and the thread may go."""
        with self._changed:
            # Of a request that was given up before its wait began, nobody gives the seat back.
            now = time.monotonic()
            self._seats = {seat for seat in self._seats if seat.is_kept or seat.until > now}
            self._is_watched = self._changed.wait_for(lambda: bool(self._untold()), LINGER_SECONDS)
            return self._untold()

    def _untold(self) -> list[Seat]:
        return [seat for seat in self._seats if not seat.ended.done()]


def _tell(seat: Seat) -> None:
    try:
        seat.ended.set_result(None)
    except InvalidStateError:
        # Told before, or given up in this very moment.
        return
