"""Load what the rules need, once for a whole batch: a constant number of statements, whatever its size."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings

from bankcore.database import fetch_all
from bankcore.identifiers import oldest_id_at
from transfers.risk.rules import Facts
from transfers.states import Claimed

# Ids begin with their time of creation, so the index on (debit account, id) answers "how many lately" by itself, and
# counting stops at the limit: a hot account costs no more than that. "Lately" is seen from the transfers themselves, so
# that waiting, for an outage or for a later day, hides nothing.
_RECENT = """
SELECT a.id, (SELECT count(*) FROM (SELECT FROM transfers_transfer t
                                     WHERE t.debit_account_id = a.id AND t.id >= a.since LIMIT %b) AS recent)
  FROM unnest(%b::uuid[], %b::uuid[]) AS a(id, since)
"""
_DENIED = "SELECT account_id FROM transfers_deniedaccount WHERE account_id = ANY(%b::uuid[])"


def load(transfers: Sequence[Claimed]) -> list[Facts]:
    """Return the facts of each transfer, in the same order."""
    recent = _recent_debits(transfers)
    sides = {t.debit_account for t in transfers} | {t.credit_account for t in transfers}
    denied = {row[0] for row in fetch_all(_DENIED, (list(sides),))}
    return [
        Facts(
            amount_minor=t.amount_minor,
            recent_debits=recent.get(t.debit_account, 0),
            denied=t.debit_account in denied or t.credit_account in denied,
        )
        for t in transfers
    ]


def _recent_debits(transfers: Sequence[Claimed]) -> dict[UUID, int]:
    if not settings.RISK_VELOCITY_COUNT:
        return {}
    earliest: dict[UUID, datetime] = {}
    for t in transfers:
        known = earliest.get(t.debit_account)
        if known is None or t.created_at < known:
            earliest[t.debit_account] = t.created_at
    window = timedelta(seconds=settings.RISK_VELOCITY_WINDOW_SECONDS)
    # A batch was created at one moment.
    oldest = {moment: oldest_id_at(moment - window) for moment in set(earliest.values())}
    since = [oldest[moment] for moment in earliest.values()]
    return dict(fetch_all(_RECENT, (settings.RISK_VELOCITY_COUNT + 1, list(earliest), since)))
