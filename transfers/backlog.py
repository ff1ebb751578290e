"""Reading what waits for the stages and what they have done, cheaply enough to do it a few times a second."""

import time
from collections import Counter, deque

from bankcore.database import fetch_all
from bankcore.messaging.backpressure import Measured
from bankcore.messaging.drain import LAG_SECONDS

# Above this many waiting the count stops; from there on arrivals and departures are added up.
COUNT_MAX = 200_000
# More new events than this are counted in part, and the part is taken for the whole.
EVENTS_READ_MAX = 20_000

# Open transfers have a small table of their own; the counts are bounded whatever waits there.
_WAITING = f"""
SELECT (SELECT count(*) FROM (SELECT 1 FROM transfers_opentransfer WHERE status = 'accepted' LIMIT {COUNT_MAX}) AS a),
       (SELECT count(*) FROM (SELECT 1 FROM transfers_opentransfer WHERE status = 'approved' LIMIT {COUNT_MAX}) AS a),
       coalesce((SELECT id FROM messaging_event ORDER BY id DESC LIMIT 1), 0)
"""  # noqa: S608
_HAPPENED = "SELECT type, count(*) FROM messaging_event WHERE id > %s::bigint AND id <= %s::bigint GROUP BY type"
_LIMIT = "SELECT set_config('statement_timeout', '2s', false)"

_LEFT_RISK = ("transfer.approved", "transfer.in_review")
_LEFT_POSTING = ("transfer.posted", "transfer.rejected", "transfer.in_review", "transfer.cancelled", "transfer.parked")


class Backlog:
    """Remembers, between readings, up to which event it has counted."""

    def __init__(self) -> None:
        self._edges: deque[tuple[float, int]] = deque()
        self._counted_to: int | None = None
        self._happened: Counter[str] = Counter()
        self._capped: dict[str, int] = {}

    def read(self) -> Measured:
        """Read what is in front of a new transfer at each stage, and how many each has done since the first reading.

        Events are counted once they are LAG_SECONDS old, as a lower id may commit later.
        """
        fetch_all(_LIMIT)
        now = time.monotonic()
        ((accepted, approved, newest),) = fetch_all(_WAITING)
        self._edges.append((now, newest))
        new = self._count(now)
        accepted = self._beyond_the_cap("accepted", accepted, new["transfer.accepted"] - _sum(new, _LEFT_RISK))
        approved = self._beyond_the_cap("approved", approved, new["transfer.approved"] - new["transfer.posted"])
        return Measured(
            waiting={"risk": accepted, "posting": accepted + approved},
            done={"risk": _sum(self._happened, _LEFT_RISK), "posting": _sum(self._happened, _LEFT_POSTING)},
        )

    def _count(self, now: float) -> Counter[str]:
        """Count the events between the last edge and the newest one that is old enough."""
        edge = self._counted_to
        while self._edges and now - self._edges[0][0] >= LAG_SECONDS:
            edge = self._edges.popleft()[1]
        begin, self._counted_to = self._counted_to, edge
        if begin is None or edge is None or edge <= begin:
            return Counter()
        read_from = max(begin, edge - EVENTS_READ_MAX)
        share = (edge - read_from) / (edge - begin)
        new = Counter({str(kind): round(number / share) for kind, number in fetch_all(_HAPPENED, (read_from, edge))})
        self._happened.update(new)
        return new

    def _beyond_the_cap(self, status: str, counted: int, growth: int) -> int:
        if counted < COUNT_MAX:
            self._capped.pop(status, None)
            return counted
        self._capped[status] = max(counted, self._capped.get(status, counted) + growth)
        return self._capped[status]


def _sum(counts: Counter[str], kinds: tuple[str, ...]) -> int:
    return sum(counts[kind] for kind in kinds)
