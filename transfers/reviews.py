"""A person's decision on a transfer that a risk rule held up. Four eyes: nobody decides on what they initiated."""

from uuid import UUID

from django.contrib.auth.models import AbstractBaseUser
from django.db import transaction
from django.utils import timezone

from bankcore import metrics
from bankcore.errors import NotFound
from bankcore.messaging import audit
from bankcore.messaging.outbox import record
from transfers import states
from transfers.errors import NotInReview, OwnTransfer, ReviewAlreadyDecided
from transfers.events import of_change
from transfers.models import Review, Transfer
from transfers.states import Change, Status

REVIEW_DECLINED = "review_declined"


@transaction.atomic
def decide(transfer_id: UUID, *, staff: AbstractBaseUser, decision: Review.Decision, note: str = "") -> Status:
    """Approve or decline a transfer in review, once, and announce it; return the transfer's new status.

    Locks the transfer, then its review; of two people at once, the second one hears ReviewAlreadyDecided.

    Raises:
        NotFound: no such review.
        ReviewAlreadyDecided: someone was first.
        OwnTransfer: `staff` initiated this transfer.
        NotInReview: the transfer has left review another way.
    """
    claimed = states.claim([transfer_id], status=[Status.IN_REVIEW])
    review = Review.objects.select_for_update(no_key=True).filter(pk=transfer_id).first()
    if review is None:
        raise NotFound("There is no review of this transfer.")
    if review.decision == Review.Decision.VOID:
        raise NotInReview
    if review.decision:
        raise ReviewAlreadyDecided
    if Transfer.objects.filter(pk=transfer_id, initiator=staff.pk).exists():
        raise OwnTransfer
    if not claimed:
        raise NotInReview

    change = _change(transfer_id, decision)
    states.move(claimed, [change])
    review.decision, review.decided_by_id, review.note = decision, staff.pk, note
    review.decided_at = timezone.now()
    review.save(update_fields=["decision", "decided_by", "note", "decided_at"])
    record([of_change(claimed[0], change, actor=staff.get_username())])
    audit.record(actor=staff.get_username(), action=f"review.{decision.value}", subject=transfer_id, reason=note)
    transaction.on_commit(lambda: metrics.count_transfers([(str(change.status), change.reason)]))
    return change.status


def _change(transfer_id: UUID, decision: Review.Decision) -> Change:
    if decision == Review.Decision.APPROVE:
        return Change(id=transfer_id, status=Status.APPROVED)
    return Change(id=transfer_id, status=Status.REJECTED, reason=REVIEW_DECLINED)
