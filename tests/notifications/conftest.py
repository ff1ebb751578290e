"""A customer whose webhooks go to a real server."""

import pytest
from django.utils import timezone

from accounts.models import Customer
from bankcore.messaging.models import Event
from notifications.dispatch import dispatch
from tests.notifications.webhooks_view import FINE
from tests.outside import http_server


@pytest.fixture
def server(settings):
    settings.WEBHOOK_ALLOW_LOOPBACK, settings.WEBHOOK_TIMEOUT_SECONDS = True, 60.0
    with http_server(lambda body: FINE) as server:
        yield server


@pytest.fixture
def ada(accounts):
    customer = Customer.objects.create(name="Ada")
    customer.accounts_in_use = accounts(10_000, 10_000, customer=customer)
    return customer


@pytest.fixture
def shop(accounts):
    return accounts(0)[0]


@pytest.fixture
def happen(make_transfer):
    def make(debit, credit, status="posted", **fields):
        posted_at = timezone.now() if status == "posted" else None
        transfer = make_transfer(debit, credit, 12_345, status, posted_at=posted_at, **fields)
        event = Event.objects.filter(subject=str(transfer.pk)).latest("id")
        dispatch([event.pk])
        return event.pk

    return make
