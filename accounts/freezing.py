"""Freezing an account and lifting it: a frozen account neither pays nor is paid until a person says otherwise."""

from uuid import UUID

from django.db import transaction

from accounts.models import Account
from bankcore.logs import current_request_id
from bankcore.messaging import audit
from bankcore.messaging.outbox import NewEvent, record


def freeze_account(account_id: UUID, *, actor: str) -> bool:
    """Freeze an open account; say whether it was open. Transfers posted from then on are refused."""
    return _turn(account_id, was=Account.Status.OPEN, now=Account.Status.FROZEN, event="account.frozen", actor=actor)


def unfreeze_account(account_id: UUID, *, actor: str) -> bool:
    """Open a frozen account again; say whether it was frozen."""
    return _turn(account_id, was=Account.Status.FROZEN, now=Account.Status.OPEN, event="account.unfrozen", actor=actor)


@transaction.atomic
def _turn(account_id: UUID, *, was: str, now: str, event: str, actor: str) -> bool:
    # The row lock of the update waits for a posting that holds the account; the guard decides after it.
    if not Account.objects.filter(pk=account_id, status=was).update(status=now):
        return False
    subject = str(account_id)
    record([NewEvent(type=event, partition_key=subject, subject=subject, actor=actor, request_id=current_request_id())])
    audit.record(
        actor=actor, action="account.freeze" if now == Account.Status.FROZEN else "account.unfreeze", subject=subject
    )
    return True
