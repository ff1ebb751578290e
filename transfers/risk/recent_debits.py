"""How many debits an account had lately: counted now and then while it is far from the limit, and always near it.

PostgreSQL counts by visiting each row. With hundreds of thousands of transfers underway that made up most of what the
rules cost, for accounts that were nowhere near the limit. So a count serves for a while: for the batches that come
after, what was screened since is added to it. The sum may be too high, since the count has seen some of those already,
and then it is counted anew; it is too low only by what was accepted since the count and is still to be screened.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from django.conf import settings

from bankcore.database import fetch_all

# A count of an account without debits serves for so much of the window; the nearer to the limit, the shorter.
SERVES_SHARE = 0.05
KEPT_MIN = 1_000

# Ids begin with their time of creation, so the index on (debit account, id) answers "how many lately" by itself, and
# counting stops at the limit: a hot account costs no more than that. "Lately" is seen from the transfers themselves, so
# that waiting, for an outage or for a later day, hides nothing.
_RECENT = """
SELECT a.id, (SELECT count(*) FROM (SELECT FROM transfers_transfer t
                                     WHERE t.debit_account_id = a.id AND t.id >= a.since LIMIT %b) AS recent)
  FROM unnest(%b::uuid[], %b::uuid[]) AS a(id, since)
"""


@dataclass(slots=True)
class _Count:
    since: UUID
    debits: int
    until: float


class RecentDebits:
    """The counts that one process keeps while every transfer of these accounts is screened by it (a stretch)."""

    def __init__(self) -> None:
        self._counts: dict[UUID, _Count] = {}
        self._kept_max = KEPT_MIN

    def up_to(self, limit: int, since: Mapping[UUID, UUID], *, screened: Mapping[UUID, int]) -> dict[UUID, int]:
        """Return for each account at least as many debits as it has with an id from `since` on; `limit` + 1 is enough.

        What is more than the limit has just been counted. `screened` says how many are being screened now: the
        (limit + 1)-th of a window is never taken for less, however fast it comes. At most one statement.
        """
        now = time.monotonic()
        found: dict[UUID, int] = {}
        for account, begin in since.items():
            known = self._counts.get(account)
            if known is not None and known.since <= begin and now < known.until:
                known.debits += screened[account]
                if known.debits <= limit:
                    found[account] = known.debits
        if len(found) < len(since):
            found |= self._count(limit, {account: since[account] for account in since if account not in found}, now)
        return found

    def _count(self, limit: int, since: Mapping[UUID, UUID], now: float) -> dict[UUID, int]:
        counted: dict[UUID, int] = dict(fetch_all(_RECENT, (limit + 1, list(since), list(since.values()))))
        serves_seconds = SERVES_SHARE * settings.RISK_VELOCITY_WINDOW_SECONDS
        for account, debits in counted.items():
            self._counts[account] = _Count(since[account], debits, now + serves_seconds * (1 - debits / limit))
        if len(self._counts) > self._kept_max:
            self._counts = {account: count for account, count in self._counts.items() if count.until > now}
            self._kept_max = max(KEPT_MIN, 2 * len(self._counts))
        return counted
