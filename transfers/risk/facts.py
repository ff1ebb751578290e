"""Load what the rules need, once for a whole batch: a constant number of statements, whatever its size."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.utils import timezone

from bankcore.database import fetch_all
from bankcore.identifiers import oldest_id_at
from transfers.risk.rules import Facts
from transfers.states import Claimed

# Ids begin with their time of creation, so the index on (debit account, id) answers "how many lately" by itself, and
# counting stops at the limit: a hot account costs no more than that.
_RECENT = """
SELECT a.id, (SELECT count(*) FROM (SELECT FROM transfers_transfer t
                                     WHERE t.debit_account_id = a.id AND t.id >= %b LIMIT %b) AS recent)
  FROM unnest(%b::uuid[]) AS a(id)
"""
_DENIED = "SELECT account_id FROM transfers_deniedaccount WHERE account_id = ANY(%b::uuid[])"


def load(transfers: Sequence[Claimed]) -> list[Facts]:
    """Return the facts of each transfer, in the same order."""
    payers = list({t.debit_account for t in transfers})
    recent = _recent_debits(payers)
    denied = {row[0] for row in fetch_all(_DENIED, (payers + [t.credit_account for t in transfers],))}
    return [
        Facts(
            amount_minor=t.amount_minor,
            recent_debits=recent.get(t.debit_account, 0),
            denied=t.debit_account in denied or t.credit_account in denied,
        )
        for t in transfers
    ]


def _recent_debits(accounts: Sequence[UUID]) -> dict[UUID, int]:
    if not settings.RISK_VELOCITY_COUNT:
        return {}
    since = oldest_id_at(timezone.now() - timedelta(seconds=settings.RISK_VELOCITY_WINDOW_SECONDS))
    return dict(fetch_all(_RECENT, (since, settings.RISK_VELOCITY_COUNT + 1, list(accounts))))
