"""Reading what waits for the stages and what they have done, cheaply enough to do it a few times a second."""

import time
from collections import Counter, deque

from bankcore.database import fetch_all
from bankcore.messaging.backpressure import Measured
from bankcore.messaging.reachability import IS_AWAY

# Above this many waiting the count stops; from there on arrivals and departures are added up.
COUNT_MAX = 100_000
# Events are counted once they are this old, as a transaction may commit after one that began later.
LAG_SECONDS = 1.0
# More new events than this are counted in part, and the part is taken for the whole.
EVENTS_READ_MAX = 10_000

# Open transfers have a table of their own, and the count stops; what is for later days is passed over row by row. From
# its day on it stands in front of risk: its events are older than a newcomer's, and so come first.
_WAITING = f"""
SELECT count(*) FILTER (WHERE status <> 'approved'), count(*) FILTER (WHERE status = 'approved'),
       coalesce((SELECT id FROM messaging_event ORDER BY id DESC LIMIT 1), 0),
       {IS_AWAY}
  FROM (SELECT status FROM transfers_opentransfer
         WHERE status IN ('accepted', 'approved') OR status = 'scheduled' AND since <= statement_timestamp()
         LIMIT {COUNT_MAX}) AS waiting
"""  # noqa: S608
# Both stages reject. What risk rejects was never approved; only of what has expired does that have to be looked up.
_HAPPENED = """
SELECT CASE WHEN type <> 'transfer.rejected' THEN type
            WHEN data->>'reason' = 'risk_denied' OR data->>'reason' = 'expired' AND NOT EXISTS (
                 SELECT FROM messaging_event AS b WHERE b.subject = e.subject AND b.type = 'transfer.approved')
            THEN 'rejected by risk' ELSE type END AS kind, count(*)
  FROM messaging_event AS e WHERE id > %s::bigint AND id <= %s::bigint GROUP BY kind
"""
_LIMIT = "SELECT set_config('statement_timeout', '2s', false)"

_LEFT_RISK = ("transfer.approved", "transfer.in_review", "rejected by risk")
_LEFT_POSTING = (
    "transfer.posted", "transfer.rejected", "rejected by risk", "transfer.in_review", "transfer.cancelled",
    "transfer.parked",
)  # fmt: skip


class Backlog:
    """Remembers, between readings, up to which event it has counted."""

    def __init__(self) -> None:
        self._edges: deque[tuple[float, int]] = deque()
        self._counted_to: int | None = None
        self._counted_at: float | None = None
        self._happened: Counter[str] = Counter()
        # Waiting for risk, and in all, while more wait than are counted.
        self._beyond: tuple[int, int] | None = None

    def read(self) -> Measured:
        """Read what is in front of a new transfer at each stage, and how many each has done since the first reading.

        Events are counted once they are LAG_SECONDS old, as a lower id may commit later.
        """
        fetch_all(_LIMIT)
        now = time.monotonic()
        ((accepted, approved, newest, away),) = fetch_all(_WAITING)
        self._edges.append((now, newest))
        self._counted_at = self._counted_at or now
        new = self._count(now)
        risk, total = self._follow(accepted, accepted + approved, new)
        return Measured(
            waiting={"risk": risk, "posting": total},
            done={"risk": _sum(self._happened, _LEFT_RISK), "posting": _sum(self._happened, _LEFT_POSTING)},
            taken=self._happened["transfer.accepted"],
            done_at=self._counted_at,
            broker_is_away=away,
        )

    def _count(self, now: float) -> Counter[str]:
        """Count the events between the last edge and the newest one that is old enough."""
        edge = self._counted_to
        while self._edges and now - self._edges[0][0] >= LAG_SECONDS:
            self._counted_at, edge = self._edges.popleft()
        begin, self._counted_to = self._counted_to, edge
        if begin is None or edge is None or edge <= begin:
            return Counter()
        read_from = max(begin, edge - EVENTS_READ_MAX)
        share = (edge - read_from) / (edge - begin)
        new = Counter({str(kind): round(number / share) for kind, number in fetch_all(_HAPPENED, (read_from, edge))})
        self._happened.update(new)
        return new

    def _follow(self, risk: int, total: int, new: Counter[str]) -> tuple[int, int]:
        """Take the counts as they are, or where they stopped at the cap add up what has come and gone since."""
        if total < COUNT_MAX:
            self._beyond = None
            return risk, total
        if self._beyond is not None:
            risk, total = self._beyond
            risk += new["transfer.accepted"] - _sum(new, _LEFT_RISK)
            total += new["transfer.accepted"] - _sum(new, _LEFT_POSTING)
        total = max(total, COUNT_MAX)
        self._beyond = min(max(risk, 0), total), total
        return self._beyond


def _sum(counts: Counter[str], kinds: tuple[str, ...]) -> int:
    return sum(counts[kind] for kind in kinds)
