"""What the relay reads next: events that are due, in the order of their ids, without wading through those that wait.

No index says what is owed, because marking an event as published would then touch every index of the table. Lots say
it: a trigger writes one row for each statement that writes events (migration 0008), with the range of their ids and the
moment they come due, in the same transaction; so a lot is seen when its events are. The relay looks within the lots
that are due, and removes them when what it read is marked. A hundred thousand events of next month are not due,
and cost nothing today.

A queue that refuses is held back for a while. Its events stay where they are, and would fill the read: so the read
goes on behind them, and lots are drawn in around them, so that what was published meanwhile is not waded through.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import psycopg
from django.conf import settings

from bankcore.columns import pack_all

HOLD_SECONDS_MIN = 0.1
HOLD_SECONDS_MAX = 1.0
# While a queue is held back: how many pages are looked through in one go, and how often from the very beginning.
PAGES_MAX = 50
REREAD_SECONDS = 30.0
NARROW_SECONDS = 5.0
# More lots than this are put together. Together they are as due as the last of them: so none of their events is due
# later than its lot says, and none that came due in a part that is passed over is passed over with it.
LOTS_MAX = 500
# An event may be committed some time after its id was drawn (statements and idle transactions are cut off far below
# this). What is younger is never passed over, or an event could be overtaken by a later one of its account.
SETTLED = timedelta(seconds=180)

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_FAR_AWAY = datetime(9999, 1, 1, tzinfo=UTC)
_ID_MAX = 2**63 - 2

_LOTS = """
SELECT id, first_event, last_event, due_at FROM messaging_lot
 WHERE due_at <= statement_timestamp() ORDER BY first_event
"""
# The ranges come in order and do not overlap: so the order is that of the ids, and nothing comes twice. What was due
# when the lots were read is due here, also if the clock was set back in between: its lot goes with what is read here.
DUE = """
SELECT e.id, e.type, e.partition_key, e.subject, e.attempt, greatest(e.created_at, e.due_at) AS since,
       greatest(e.created_at, e.due_at) < statement_timestamp() - %b AS settled
  FROM unnest(%b::bigint[], %b::bigint[]) AS lot(first, last)
 CROSS JOIN LATERAL (
       SELECT id, type, partition_key, subject, attempt, created_at, due_at FROM messaging_event
        WHERE id BETWEEN lot.first AND lot.last AND published_at IS NULL
          AND due_at <= greatest(statement_timestamp(), %b)
        ORDER BY id) AS e
 LIMIT %b
"""
_FORGET = "DELETE FROM messaging_lot WHERE id = ANY(%b::bigint[]) AND last_event <= %b::bigint"
_SHORTEN = (
    "UPDATE messaging_lot SET first_event = %b::bigint + 1 WHERE id = ANY(%b::bigint[]) AND first_event <= %b::bigint"
)
_MERGE = """
WITH taken AS (
    DELETE FROM messaging_lot WHERE due_at <= statement_timestamp() RETURNING first_event, last_event, due_at
)
INSERT INTO messaging_lot (first_event, last_event, due_at)
SELECT lower(merged.ids), upper(merged.ids) - 1, merged.due_at
  FROM (SELECT unnest(range_agg(int8range(first_event, last_event + 1))) AS ids, max(due_at) AS due_at
          FROM taken) AS merged
"""
# What was put off has a lot of its own, which is not due.
_NARROW = """
WITH taken AS (
    DELETE FROM messaging_lot WHERE due_at <= statement_timestamp() RETURNING first_event, last_event
), owed AS (
    SELECT e.id, min(e.id) OVER () AS lowest, greatest((max(e.id) OVER () - min(e.id) OVER ()) / %b, %b) AS width
      FROM (SELECT unnest(range_agg(int8range(first_event, last_event + 1))) AS ids FROM taken) AS lot
     CROSS JOIN LATERAL (SELECT id FROM messaging_event
                          WHERE id >= lower(lot.ids) AND id < upper(lot.ids)
                            AND published_at IS NULL AND due_at <= statement_timestamp()) AS e
)
INSERT INTO messaging_lot (first_event, last_event, due_at)
SELECT min(id), max(id), statement_timestamp() FROM owed GROUP BY (id - lowest) / width
"""
NARROW_LOTS_MAX = 400
NARROW_WIDTH_MIN = 100


class Range(NamedTuple):
    """A lot as it was read."""

    id: int
    first: int
    last: int
    due_at: datetime


class Row(NamedTuple):
    """A due event, and since when. `settled`: nothing written before it can still be committed."""

    id: int
    type: str
    partition_key: str
    subject: str
    attempt: int
    since: datetime
    settled: bool


class Place(NamedTuple):
    """How far a read has come: up to an id, in the lots that were due by a moment."""

    id: int = 0
    due_by: datetime = _LONG_AGO


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
        self._lots: list[Range] = []
        self._read_up_to = 0
        # Whether nothing was left out of the last read.
        self._whole = False
        self._narrow_at = 0.0

    def read(self, database: psycopg.Connection) -> list[Row]:
        """Read what is due for queues that are not held back, sorted by id."""
        self._whole = not self._holds
        if self._holds:
            self._narrow(database)
        self._lots = self._due_lots(database)
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
        passed = self._passed if self._passed != Place() else _end(Place(), page)
        place = passed
        for _ in range(PAGES_MAX):
            if len(found) >= self.events_max or not self._is_full(page):
                break
            if passing:
                self._passed = passed
            page = self._page(database, place)
            found += self._not_held(page)
            passing = passing and self._may_be_passed(page)
            passed = _end(passed, page)
            place = Place(passed.id, _FAR_AWAY)
        # What has come due in a part that is passed over may stand in the first page as well.
        return sorted({*on_trial, *found})

    def refuse(self, queue: str) -> None:
        """Leave this queue alone for a while, longer each time it refuses again."""
        hold = self._holds.get(queue)
        seconds = min(hold.seconds * 2, HOLD_SECONDS_MAX) if hold else HOLD_SECONDS_MIN
        if not self._holds:
            self._passed, self._reread_at = Place(), time.monotonic() + REREAD_SECONDS
            self._narrow_at = time.monotonic() + NARROW_SECONDS
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

    def forget_done(self, database: psycopg.Connection) -> None:
        """Remove the lots that were read, as far as they were read; call when all that was read is marked.

        What was made due again meanwhile has a lot of its own, and so has what was committed after the lots were read.
        A read that left a queue out says nothing of what it passed over, even if that queue takes messages by now.
        """
        if self._holds or not self._whole or not self._lots:
            return
        seen = [lot.id for lot in self._lots]
        database.execute(_FORGET, pack_all((seen, self._read_up_to)), prepare=True)
        if self._read_up_to < _ID_MAX:
            database.execute(_SHORTEN, pack_all((self._read_up_to, seen, self._read_up_to)), prepare=True)

    def _narrow(self, database: psycopg.Connection) -> None:
        if time.monotonic() >= self._narrow_at:
            database.execute(_NARROW, pack_all((NARROW_LOTS_MAX, NARROW_WIDTH_MIN)), prepare=True)
            self._narrow_at = time.monotonic() + NARROW_SECONDS

    def _due_lots(self, database: psycopg.Connection) -> list[Range]:
        for _ in range(2):
            lots = [Range._make(row) for row in database.execute(_LOTS, prepare=True)]
            if len(lots) <= LOTS_MAX:
                break
            database.execute(_MERGE, prepare=True)
        return lots

    def _page(self, database: psycopg.Connection, place: Place) -> list[Row]:
        ranges = list(_joined(_behind(place, self._lots)))
        if not ranges:
            self._read_up_to = _ID_MAX
            return []
        firsts, lasts = [first for first, _ in ranges], [last for _, last in ranges]
        due_by = max(lot.due_at for lot in self._lots)
        parameters = pack_all((SETTLED, firsts, lasts, due_by, self.events_max))
        page = [Row._make(row) for row in database.execute(DUE, parameters, prepare=True)]
        self._read_up_to = page[-1].id if self._is_full(page) else _ID_MAX
        return page

    def _is_full(self, page: Sequence[Row]) -> bool:
        return len(page) >= self.events_max

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
    return Place(
        max((row.id for row in page), default=place.id), max((row.since for row in page), default=place.due_by)
    )


def _behind(place: Place, lots: Sequence[Range]) -> Iterator[tuple[int, int]]:
    for lot in lots:
        first = lot.first if lot.due_at > place.due_by else max(lot.first, place.id + 1)
        if first <= lot.last:
            yield first, lot.last


def _joined(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Make one range of those that overlap or touch, in order."""
    joined: tuple[int, int] | None = None
    for first, last in sorted(ranges):
        if joined is None or first > joined[1] + 1:
            if joined is not None:
                yield joined
            joined = first, last
        else:
            joined = joined[0], max(joined[1], last)
    if joined is not None:
        yield joined
