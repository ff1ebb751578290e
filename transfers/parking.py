"""Put a transfer that cannot be processed into a visible waiting room, so that the rest goes on."""

from uuid import UUID

from django.db import transaction

from bankcore import metrics
from bankcore.messaging import dead_letters, outbox
from transfers import events
from transfers.states import Change, Status, claim, move


@transaction.atomic
def park_transfer(transfer_id: UUID, *, task: str, error: Exception, attempts: int) -> bool:
    """Park a transfer with the traceback of what failed; return whether it was still there to be parked."""
    claimed = claim([transfer_id], status=[Status.SCHEDULED, Status.ACCEPTED, Status.APPROVED])
    dead_letters.park_work(task=task, subject=str(transfer_id), error=error, attempts=attempts)
    if not claimed:
        return False
    changes = [Change(transfer_id, Status.PARKED, "processing_failed")]
    move(claimed, changes)
    outbox.record(events.of_changes(claimed, changes))
    transaction.on_commit(lambda: metrics.count_transfers([("parked", "processing_failed")]))
    return True
