"""The posting stage: move the money of approved transfers. The ledger decides; this stage records and announces."""

from collections.abc import Sequence
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from accounts import ledger
from bankcore import metrics
from bankcore.messaging.blame import blame
from transfers import events
from transfers.states import Change, Claimed, Status, claim, in_turn


def post_transfers(transfer_ids: Sequence[UUID]) -> int:
    """Move the money of approved transfers, in the order given, and announce each result; return how many ended.

    Earlier ones of the same accounts whose messages the broker lost go with them, first; in transactions of their own,
    where they are very many.

    Safe to repeat: transfers that are no longer approved are left alone, and the journal takes a reference once.
    Locks the transfers, then every account they touch, each in id order.
    """
    ended = 0
    for lot in in_turn(transfer_ids, status=Status.APPROVED):
        with blame(lot, transfer_ids):
            ended += _post(lot)
    return ended


@transaction.atomic
def _post(transfer_ids: Sequence[UUID]) -> int:
    claimed = claim(transfer_ids, status=[Status.APPROVED])
    if not claimed:
        return 0
    live = [c for c in claimed if not c.expired]
    outcomes = iter(ledger.post([_movement(c) for c in live]))
    changes = [_change(c, "expired" if c.expired else next(outcomes)) for c in claimed]

    # From here on every transfer has its answer: the entries are already written.
    events.move_and_tell(claimed, changes)
    transaction.on_commit(lambda: _measure(claimed, changes))
    return len(claimed)


def _movement(claimed: Claimed) -> ledger.Movement:
    reference = f"transfer:{claimed.id}"
    return ledger.Movement(
        reference, claimed.debit_account, claimed.credit_account, claimed.amount_minor, claimed.currency
    )


def _change(claimed: Claimed, outcome: str) -> Change:
    if outcome in (ledger.POSTED, ledger.ALREADY_POSTED):
        return Change(claimed.id, Status.POSTED)
    return Change(claimed.id, Status.REJECTED, outcome)


def _measure(claimed: Sequence[Claimed], changes: Sequence[Change]) -> None:
    now, posted = timezone.now(), [t for t, c in zip(claimed, changes, strict=True) if c.status is Status.POSTED]
    metrics.stage_seconds.labels("post").observe_since((transfer.updated_at for transfer in claimed), now)
    metrics.stage_seconds.labels("end_to_end").observe_since((transfer.created_at for transfer in posted), now)
    metrics.batch_size.labels("post").observe(len(claimed))
    metrics.count_transfers((str(change.status), change.reason) for change in changes)
