"""What the relay reads next: events that are due, in the order of their ids, without wading through those that wait.

Two partial indexes keep the read as small as its answer. One holds the events that were due when they were written, by
id; the other those that were put off (scheduled, retried, swept), by the moment they come due, so that a hundred
thousand of next month's cost nothing today.

A queue that refuses is held back for a while. Its events stay where they are, and would fill the read: so the read
goes on behind them.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import psycopg
from django.conf import settings

HOLD_SECONDS_MIN = 0.1
HOLD_SECONDS_MAX = 1.0
# While a queue is held back: how many pages are looked through in one go, and how often from the very beginning.
PAGES_MAX = 50
REREAD_SECONDS = 30.0
# An event may be committed some time after its id was drawn (statements and idle transactions are cut off far below
# this). What is younger is never passed over, or an event could be overtaken by a later one of its account.
SETTLED = timedelta(seconds=180)

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)

# The conditions are those of the indexes, to the letter (models.Event.Meta); the clock is that of the statement, as an
# index can be searched by nothing that changes while it is read.
DUE = """
(SELECT id, type, partition_key, subject, attempt, NULL::timestamptz AS since, false AS put_off,
        created_at < statement_timestamp() - %s AS settled
   FROM messaging_event
  WHERE published_at IS NULL AND due_at <= created_at AND id > %s
  ORDER BY id LIMIT %s)
UNION ALL
(SELECT id, type, partition_key, subject, attempt, due_at AS since, true AS put_off,
        due_at < statement_timestamp() - %s AS settled
   FROM messaging_event
  WHERE published_at IS NULL AND due_at > created_at AND due_at <= statement_timestamp() AND (due_at, id) > (%s, %s)
  ORDER BY due_at, id LIMIT %s)
"""


class Row(NamedTuple):
    """A due event, and since when if it was put off. `settled`: nothing written before it can still be committed."""

    id: int
    type: str
    partition_key: str
    subject: str
    attempt: int
    since: datetime | None
    put_off: bool
    settled: bool


class Place(NamedTuple):
    """How far a read has come in both indexes."""

    id: int = 0
    due_at: datetime = _LONG_AGO
    due_id: int = 0


@dataclass
class Hold:
    """A queue that refused, and until when it is left alone (monotonic seconds)."""

    until: float
    seconds: float


class DueEvents:
    """The relay's view of the outbox; knows which queues refuse."""

    def __init__(self, events_max: int) -> None:
        self.events_max = events_max
        self._holds: dict[str, Hold] = {}
        self._passed = Place()
        self._reread_at = 0.0

    def read(self, database: psycopg.Connection) -> list[Row]:
        """Read what is due for queues that are not held back, sorted by id."""
        if not self._holds:
            return sorted(self._page(database, Place()))
        now = time.monotonic()
        if now >= self._reread_at:
            self._passed, self._reread_at = Place(), now + REREAD_SECONDS
        left_alone = {queue for queue, hold in self._holds.items() if hold.until > now}
        page = self._page(database, Place())
        # A queue on trial gets the oldest of its events only: what follows may lie in a part that is passed over.
        on_trial = [row for row in page if self._is_on_trial(row, left_alone)]
        found = self._not_held(page)
        passing = self._passed != Place() or self._may_be_passed(page)
        place = self._passed if self._passed != Place() else _end(Place(), page)
        for _ in range(PAGES_MAX):
            if len(found) >= self.events_max or not self._is_full(page):
                break
            if passing:
                self._passed = place
            page = self._page(database, place)
            found += self._not_held(page)
            passing = passing and self._may_be_passed(page)
            place = _end(place, page)
        return sorted(on_trial + found)

    def refuse(self, queue: str) -> None:
        """Leave this queue alone for a while, longer each time it refuses again."""
        hold = self._holds.get(queue)
        seconds = min(hold.seconds * 2, HOLD_SECONDS_MAX) if hold else HOLD_SECONDS_MIN
        if not self._holds:
            self._passed, self._reread_at = Place(), time.monotonic() + REREAD_SECONDS
        self._holds[queue] = Hold(time.monotonic() + seconds, seconds)

    def accept(self, queue: str) -> None:
        """This queue takes messages (again): its events are read like any others, from the beginning."""
        if self._holds.pop(queue, None):
            self._passed = Place()

    def wait_seconds(self) -> float | None:
        """How long until a queue that refused is tried again; None if there is none."""
        if not self._holds:
            return None
        return max(0.0, min(hold.until for hold in self._holds.values()) - time.monotonic())

    def _page(self, database: psycopg.Connection, place: Place) -> list[Row]:
        limit = self.events_max
        parameters = (SETTLED, place.id, limit, SETTLED, place.due_at, place.due_id, limit)
        rows = database.execute(DUE, parameters, prepare=True).fetchall()
        return [Row._make(row) for row in rows]

    def _is_full(self, page: Sequence[Row]) -> bool:
        put_off = sum(row.put_off for row in page)
        return put_off >= self.events_max or len(page) - put_off >= self.events_max

    def _not_held(self, page: Sequence[Row]) -> list[Row]:
        return [row for row in page if self._queue(row) not in self._holds]

    def _is_on_trial(self, row: Row, left_alone: set[str]) -> bool:
        queue = self._queue(row)
        return queue in self._holds and queue not in left_alone

    def _may_be_passed(self, page: Sequence[Row]) -> bool:
        return all(row.settled and self._queue(row) in self._holds for row in page)

    def _queue(self, row: Row) -> str | None:
        route = settings.TOPOLOGY_ROUTES.get(row.type)
        return settings.TOPOLOGY.queue_of(route, row.partition_key) if route else None


def _end(place: Place, page: Sequence[Row]) -> Place:
    last_id = max((row.id for row in page if not row.put_off), default=place.id)
    due_at, due_id = max(((row.since, row.id) for row in page if row.since), default=(place.due_at, place.due_id))
    return Place(last_id, due_at, due_id)
