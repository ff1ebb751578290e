"""What would become of parked transfers today, by letting the stages do it and taking everything back.

So a dry run and the real thing cannot disagree about balances, limits and rules, and a bug that is still there shows.
"""

from collections.abc import Mapping
from typing import NamedTuple
from uuid import UUID

from django.db import connection, transaction

from bankcore.messaging.pause import is_infrastructure
from transfers.models import Transfer
from transfers.posting import post_transfers
from transfers.risk import provider
from transfers.risk.rules import Opinion
from transfers.risk.screening import screen
from transfers.states import Change, Status, claim, move

# The accounts are locked for a moment, as for posting. A dry run would rather fail than keep posting waiting.
LOCK_TIMEOUT_MS = 2_000


Verdicts = Mapping[UUID, Opinion] | None


class End(NamedTuple):
    """The state a transfer would come to rest in, with the reason; `error` if a stage failed once more."""

    status: str
    reason: str = ""
    error: str = ""


def foresee(resumed: Mapping[UUID, Status]) -> dict[UUID, End]:
    """Say how parked transfers would end if they went on now from these states, in the order given.

    Transfers that are not parked are left out. Nothing is kept, no message is sent and no number is counted. The risk
    provider outside (if there is one) is asked, before anything is locked.

    Raises:
        OperationalError: the database is away, or the accounts are too busy for LOCK_TIMEOUT_MS.
    """
    unscreened = [transfer_id for transfer_id, status in resumed.items() if status is Status.ACCEPTED]
    verdicts = provider.ask(unscreened, [Status.PARKED]) if unscreened and provider.is_configured() else None
    return _each_if_need_be(resumed, verdicts)


def _each_if_need_be(resumed: Mapping[UUID, Status], verdicts: Verdicts) -> dict[UUID, End]:
    try:
        return _rehearse(resumed, verdicts)
    except Exception as error:
        if is_infrastructure(error):
            raise
        if len(resumed) == 1:
            # PostgreSQL adds lines that name the place, as in the letter.
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            return {next(iter(resumed)): End(Status.PARKED, error=said[:300])}
    # One of them fails: each is seen alone, so that it is known which.
    ends: dict[UUID, End] = {}
    for transfer_id, status in resumed.items():
        ends |= _each_if_need_be({transfer_id: status}, verdicts)
    return ends


@transaction.atomic
def _rehearse(resumed: Mapping[UUID, Status], verdicts: Verdicts) -> dict[UUID, End]:
    with connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
    claimed = claim(resumed, status=[Status.PARKED])
    ids = [c.id for c in claimed]
    move(claimed, [Change(c.id, resumed[c.id]) for c in claimed])
    screen([i for i in ids if resumed[i] is Status.ACCEPTED], verdicts)
    post_transfers(ids)
    ends = {
        row[0]: End(row[1], row[2])
        for row in Transfer.objects.filter(pk__in=ids).values_list("pk", "status", "status_reason")
    }
    transaction.set_rollback(True)
    return ends
