"""Opening an account. Money comes into it only by transfers."""

from uuid import UUID

from django.db import transaction

from accounts.access import Client
from accounts.models import Account, Customer
from bankcore.errors import FieldError, Invalid
from bankcore.identifiers import new_id
from bankcore.logs import current_request_id
from bankcore.messaging import outbox
from bankcore.messaging.outbox import NewEvent


@transaction.atomic
def open_account(
    client: Client, *, currency: str, name: str, customer_id: UUID | None = None, limit_minor: int | None = None
) -> Account:
    """Open an account for the caller's customer; staff name any customer, and may allow it `limit_minor` below zero.

    Raises:
        Invalid: something only staff may say, or no customer to open it for.
    """
    if not client.is_staff:
        if limit_minor is not None:
            raise Invalid(errors=[FieldError("limit_minor", "staff_only", "Only staff may set it.")])
        if customer_id not in (None, client.customer_id):
            raise Invalid(errors=[FieldError("customer", "staff_only", "Only staff may open for another.")])
    owner = customer_id or client.customer_id
    if owner is None or not Customer.objects.filter(id=owner).exists():
        raise Invalid(errors=[FieldError("customer", "unknown_customer", "There is no such customer.")])

    account = Account.objects.create(
        id=new_id(), customer_id=owner, name=name, currency=currency, limit_minor=limit_minor or 0
    )
    opened = NewEvent(
        type="account.opened",
        partition_key=str(account.id),
        subject=str(account.id),
        data={"currency": currency},
        request_id=current_request_id(),
        actor=client.name,
    )
    outbox.record([opened])
    account.refresh_from_db()
    return account
