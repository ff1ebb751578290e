"""Calling a transfer off before its money has moved."""

from uuid import UUID

from django.db import transaction

from accounts.access import Client
from bankcore.errors import NotFound
from bankcore.messaging import outbox
from bankcore.metrics import count_transfers
from transfers import events, states
from transfers.errors import AlreadyPosted, NotCancellable
from transfers.models import Transfer
from transfers.states import TRANSITIONS, Change, Status

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
    outbox.record([events.of_change(claimed[0], change, actor=client.name)])
    count_transfers([(str(Status.CANCELLED), REASON)])
    transfer.refresh_from_db()
    return transfer
