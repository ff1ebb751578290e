"""Rows of every kind, made the way the pipeline makes them where a verb exists, and people to look at them."""

from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from accounts import ledger
from accounts.models import Account, ApiToken, Customer, Proof
from bankcore.messaging import audit
from bankcore.messaging.models import BreakerSwitch, DeadLetter
from bankcore.messaging.outbox import NewEvent, record
from notifications.models import Notification, Subscription, WebhookDelivery, WebhookEndpoint
from transfers.models import Batch, DeniedAccount, Review, Transfer


@pytest.fixture
def superuser() -> User:
    return User.objects.create_superuser("root", "root@example.invalid", "a long enough password")


@pytest.fixture
def reviewer() -> User:
    user = User.objects.create_user("reviewer", password="a long enough password", is_staff=True)
    names = ["view_review", "change_review", "view_transfer"]
    user.user_permissions.set(Permission.objects.filter(codename__in=names, content_type__app_label="transfers"))
    return user


@pytest.fixture
def desk(superuser: User) -> Client:
    client = Client()
    client.force_login(superuser)
    return client


@pytest.fixture
def accounts() -> SimpleNamespace:
    customer = Customer.objects.create(name="Ada Lovelace", email="ada@example.invalid")
    bank = Account.objects.create(name="Opening balances", currency="EUR", limit_minor=None)
    payer = Account.objects.create(customer=customer, name="Everyday", currency="EUR")
    payee = Account.objects.create(customer=customer, name="Savings", currency="EUR")
    ledger.post([ledger.Movement(f"opening:{payer.pk}", bank.pk, payer.pk, 500_000, "EUR")])
    return SimpleNamespace(customer=customer, bank=bank, payer=payer, payee=payee)


def make_transfer(accounts: SimpleNamespace, *, status: str = "accepted", **values: Any) -> Transfer:
    transfer = Transfer.objects.create(
        client="test", debit_account=accounts.payer, credit_account=accounts.payee, amount_minor=123_456,
        currency="EUR", status=status, request_id="request-1", **values,
    )  # fmt: skip
    subject = str(transfer.pk)
    record([NewEvent(type="transfer.accepted", partition_key=str(accounts.payer.pk), subject=subject, actor="test")])
    return transfer


def make_review(accounts: SimpleNamespace, **values: Any) -> Review:
    return Review.objects.create(
        transfer=make_transfer(accounts, status="in_review", **values), reasons=["large_amount", "new_payee"]
    )


@pytest.fixture
def rows(accounts: SimpleNamespace, superuser: User) -> SimpleNamespace:
    """One row at least of everything there is a page for."""
    batch = Batch.objects.create(
        client="test", atomic=False, accepted=1, refused=[{"field": "transfers.1", "code": "invalid", "message": "No."}]
    )
    transfer = make_transfer(accounts, batch=batch, metadata={"order": "7"})
    reference = f"transfer:{transfer.pk}"
    ledger.post([ledger.Movement(reference, accounts.payer.pk, accounts.payee.pk, transfer.amount_minor, "EUR")])
    parked = make_transfer(accounts, status="parked")
    letter = DeadLetter.objects.create(
        cause="ZeroDivisionError", subject=str(parked.pk), task="transfers.post_transfers",
        detail="Traceback:\n  line 1", headers={"x-death": [{"queue": "posting-0"}]}, body=b'[["\xff"]]',
    )  # fmt: skip
    BreakerSwitch.objects.create(name="email", mode="open", reason="Moving house", set_by="root")
    audit.record(actor="root", action="account.freeze", subject=accounts.payee.pk)
    endpoint = WebhookEndpoint.objects.create(
        customer=accounts.customer.pk, url="https://shop.example/hook", event_types=["transfer.posted"],
        secret="whsec_c2VjcmV0", created_by="shop",
    )  # fmt: skip
    WebhookDelivery.objects.create(endpoint=endpoint, event=1, type="transfer.posted", transfer=transfer.pk)
    token, secret = ApiToken.objects.create_key(name="test", customer=accounts.customer, scopes=["transfers:read"])
    return SimpleNamespace(
        **vars(accounts),
        batch=batch,
        transfer=transfer,
        parked=parked,
        letter=letter,
        review=make_review(accounts),
        denied=DeniedAccount.objects.create(account=accounts.payee, why="A court order.", created_by=superuser),
        notification=Notification.objects.create(
            event=1, recipient=accounts.customer.pk, channel="in_app", transfer=transfer.pk, title="Paid", text="Paid.",
            state="delivered",
        ),
        subscription=Subscription.objects.create(customer=accounts.customer.pk, channel="in_app"),
        proof=Proof.objects.create(entries=2, violations={"entries_balanced": 0, "balances_match": 0}),
        token=token,
        secret=secret,
    )  # fmt: skip
