"""Tell from a message whether the one before it was handled here: while nothing is missing, nothing was lost.

The relay numbers what it publishes. A message's id, which its signature covers, says: published by this relay, as this
number, after that number, which is the last one that the broker took for the same queue. A worker that has handled that
one, or a later one, misses nothing. Messages of a queue that follow each other so are a stretch. What a stage finds out
at its beginning about the time before stays true, because all that came since has come to this process: the stage need
not find it out again for each message.

Whatever breaks the row begins a new stretch: messages that were purged or died, another relay, a standby that takes
over or gives back, a message that could not be handled, a worker that is new. Ids that are no such ids (those of an
older relay, or of a call that is no message) belong to no stretch.
"""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

_SPELLED = re.compile(r"([0-9a-f]{16})-([1-9][0-9]{0,17})-(0|[1-9][0-9]{0,17})")

T = TypeVar("T")


class Place(NamedTuple):
    """Where a message stands: its relay, its number, and the last one before it that the broker took for its queue."""

    relay: str
    number: int
    after: int

    def __str__(self) -> str:
        return f"{self.relay}-{self.number}-{self.after}"


def place_of(message_id: str | None) -> Place | None:
    found = _SPELLED.fullmatch(message_id or "")
    return Place(found[1], int(found[2]), int(found[3])) if found else None


class Numbering:
    """The relay's side. A relay that becomes active takes a new one: it cannot know what another one has published."""

    def __init__(self) -> None:
        self._relay = secrets.token_hex(8)
        self._number = 0
        self._taken: dict[str, int] = {}

    def next(self, queue: str) -> Place:
        """Number a message. No number comes twice: whether the broker has one that it did not confirm is not known."""
        self._number += 1
        return Place(self._relay, self._number, self._taken.get(queue, 0))

    def take(self, queue: str, place: Place) -> None:
        """Note that the broker has confirmed it."""
        self._taken[queue] = place.number


class Stretch:
    """Messages of one queue that this process handles one after the other, with none missing in between."""

    def __init__(self, relay: str) -> None:
        self.relay = relay
        self.handled = 0
        self._kept: dict[type, object] = {}

    def keep(self, kind: type[T]) -> T:
        """Return the one object of this kind that lasts as long as the stretch; the first call makes it."""
        kept = self._kept.get(kind)
        if not isinstance(kept, kind):
            kept = self._kept[kind] = kind()
        return kept

    def forget(self) -> None:
        self._kept.clear()


_current: ContextVar[Stretch | None] = ContextVar("stretch", default=None)
# By queue. Stages that keep order handle one message at a time.
_stretches: dict[str, Stretch] = {}


def current_stretch() -> Stretch | None:
    """Return the stretch of the message that is being handled; None if there is none, and so nothing is known."""
    return _current.get()


def forget() -> None:
    """Find out again what is known of the database, as after an outage it may be another one, behind the first."""
    known = _current.get()
    for stretch in [*_stretches.values(), *([known] if known else [])]:
        stretch.forget()


@contextmanager
def follow(queue: str, message_id: str | None) -> Iterator[None]:
    """Handle a message inside. One that raises is not handled, so the next one begins a new stretch."""
    place = place_of(message_id)
    if place is None:
        yield
        return
    stretch = _stretches.get(queue)
    if stretch is None or stretch.relay != place.relay or stretch.handled < place.after:
        stretch = Stretch(place.relay)
    token = _current.set(stretch)
    try:
        yield
    finally:
        _current.reset(token)
    stretch.handled = max(stretch.handled, place.number)
    _stretches[queue] = stretch
