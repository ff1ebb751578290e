"""Load what the rules need, once for a whole batch: a constant number of statements, whatever its size."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings

from bankcore.database import fetch_all
from bankcore.identifiers import oldest_id_at
from bankcore.messaging.stretch import current_stretch
from transfers.risk.recent_debits import RecentDebits
from transfers.risk.rules import Facts
from transfers.states import Claimed

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
    since = {account: oldest[moment] for account, moment in earliest.items()}
    stretch = current_stretch()
    recent = stretch.keep(RecentDebits) if stretch else RecentDebits()
    return recent.up_to(settings.RISK_VELOCITY_COUNT, since, screened=Counter(t.debit_account for t in transfers))
