"""Calling a transfer off before its money has moved."""

from uuid import UUID

from django.db import transaction
from django.db.models.functions import Now

from accounts.access import Client
from bankcore.errors import NotFound
from bankcore.messaging import dead_letters, outbox
from bankcore.messaging.models import DeadLetter
from bankcore.metrics import count_transfers
from transfers import events, states
from transfers.errors import AlreadyPosted, NotCancellable
from transfers.models import Review, Transfer
from transfers.states import TRANSITIONS, Change, Claimed, Status

REASON = "cancelled_by_client"
CANCELLABLE = [status for status, following in TRANSITIONS.items() if Status.CANCELLED in following]


@transaction.atomic
def cancel_transfer(transfer_id: UUID, *, client: Client) -> Transfer:
    """Cancel the transfer. Locks it, so that posting either came before or finds it cancelled.

    Raises:
        NotFound: the caller may not debit the account, though perhaps see the transfer.
        AlreadyPosted: the money has moved.
        NotCancellable: it has ended without moving money.
    """
    transfer = Transfer.objects.select_related("debit_account").get(id=transfer_id)
    if not client.may_use(transfer.debit_account.customer_id):
        raise NotFound
    claimed = states.claim([transfer_id], status=CANCELLABLE)
    if not claimed:
        transfer.refresh_from_db()
        raise AlreadyPosted if transfer.status == Status.POSTED else NotCancellable
    change = Change(transfer_id, Status.CANCELLED, REASON)
    states.move(claimed, [change])
    _close_what_waited(claimed[0], client)
    outbox.record([events.of_change(claimed[0], change, actor=client.name)])
    count_transfers([(str(Status.CANCELLED), REASON)])
    transfer.refresh_from_db()
    return transfer


def _close_what_waited(was: Claimed, client: Client) -> None:
    """Take the transfer out of its waiting room: nobody is to decide on what has ended."""
    if was.status == Status.IN_REVIEW:
        Review.objects.filter(pk=was.id, decision="").update(
            decision=Review.Decision.VOID, decided_at=Now(), note=f"Cancelled by {client.name}."
        )
    elif was.status == Status.PARKED:
        resolution = f"Cancelled by {client.name}."
        dead_letters.close_about(str(was.id), state=DeadLetter.State.DISCARDED, resolution=resolution)
