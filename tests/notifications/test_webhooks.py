"""Webhooks to a real server: who is told, signed, again after a failure, and until when."""

import base64
import json
import threading
from collections import Counter

import pytest
from django.utils import timezone
from standardwebhooks import Webhook, WebhookVerificationError

from accounts.models import Customer
from bankcore.messaging import outbox
from bankcore.messaging.breaker import force
from bankcore.messaging.models import DeadLetter, Event
from notifications import tasks, webhooks
from notifications.channels.webhook import _Sender
from notifications.dispatch import dispatch
from notifications.endpoints import forget_old_secrets, replay, rotate_secret
from notifications.models import WebhookDelivery, WebhookEndpoint
from notifications.webhooks import deliver_webhooks, retry_seconds
from tests.notifications.webhooks_view import FINE, SECRET, due, listen, make_all_due, states
from tests.outside import http_server

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("forget_breakers")]


class Staff:
    name = "desk"


def test_while_a_secret_is_rotated_both_sign_and_then_the_new_one_alone(server, ada, shop, happen):
    endpoint = listen(server, ada)
    rotate_secret(endpoint, actor="ada", keep_old_seconds=600)
    new, other = endpoint.secret, "whsec_" + base64.b64encode(b"somebody else's secret, of 32 by").decode()
    happen(ada.accounts_in_use[0], shop)
    deliver_webhooks(due())
    assert forget_old_secrets() == 0
    WebhookEndpoint.objects.update(previous_until=timezone.now())
    happen(ada.accounts_in_use[0], shop)
    deliver_webhooks(due())

    (both, first), (alone, second) = server.requests
    assert Webhook(SECRET).verify(first, both) == Webhook(new).verify(first, both)
    assert (len(both["webhook-signature"].split()), len(alone["webhook-signature"].split())) == (2, 1)
    Webhook(new).verify(second, alone)
    for secret, body, headers in ((other, first, both), (SECRET, second, alone)):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, headers)
    assert (forget_old_secrets(), forget_old_secrets()) == (1, 0)
    assert list(WebhookEndpoint.objects.values_list("secret", "previous_secret")) == [(new, "")]


def test_an_event_is_told_once_signed_and_complete(server, ada, shop, happen):
    listen(server, ada)
    event = happen(ada.accounts_in_use[0], shop, reference="Rent May")
    dispatch([event])

    assert deliver_webhooks(due()) == 1
    assert deliver_webhooks(list(WebhookDelivery.objects.values_list("pk", flat=True))) == 0

    ((headers, body),) = server.requests
    assert Webhook(SECRET).verify(body, headers) == {
        "id": f"evt_{event}",
        "type": "transfer.posted",
        "timestamp": json.loads(body)["timestamp"],
        "data": {
            "transfer": json.loads(body)["data"]["transfer"],
            "status": "posted",
            "status_reason": None,
            "debit_account": str(ada.accounts_in_use[0].pk),
            "credit_account": str(shop.pk),
            "amount_minor": 12_345,
            "currency": "EUR",
            "reference": "Rent May",
        },
    }
    assert headers["webhook-id"] == f"evt_{event}"
    assert headers["content-type"] == "application/json"
    delivery = WebhookDelivery.objects.get()
    assert (delivery.state, delivery.attempts, delivery.status_code) == ("delivered", 1, 204)


def test_only_who_is_concerned_and_asked_is_told(server, ada, accounts, happen):
    bob = Customer.objects.create(name="Bob")
    (bobs,) = accounts(0, customer=bob)
    adas, bobs_endpoint = listen(server, ada), listen(server, bob)
    all_of_them = listen(server, None)
    listen(server, ada, types=["transfer.parked"])
    listen(server, ada, state="disabled")

    happen(ada.accounts_in_use[0], bobs)
    happen(ada.accounts_in_use[0], bobs, "rejected")

    rows = WebhookDelivery.objects.values_list("endpoint_id", "type")
    assert Counter(rows) == {
        (adas.pk, "transfer.posted"): 1,
        (adas.pk, "transfer.rejected"): 1,
        (all_of_them.pk, "transfer.posted"): 1,
        (all_of_them.pk, "transfer.rejected"): 1,
        (bobs_endpoint.pk, "transfer.posted"): 1,
    }


@pytest.mark.parametrize(
    ("answer", "status_code", "failure"),
    [
        ((500, {}, b""), 500, "the endpoint answered 500"),
        ((404, {}, b""), 404, "the endpoint answered 404"),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), 302, "the endpoint answered 302"),
    ],
)
def test_a_failure_is_tried_again_later_and_said(server, ada, shop, happen, answer, status_code, failure):
    listen(server, ada)
    happen(ada.accounts_in_use[0], shop)
    server.answer = lambda body: answer
    now = timezone.now()

    assert deliver_webhooks(due()) == 0

    delivery = WebhookDelivery.objects.get()
    assert (delivery.state, delivery.attempts, delivery.status_code, delivery.failure) == (
        "pending", 1, status_code, failure,
    )  # fmt: skip
    event = Event.objects.get(type="webhook.pending")
    assert (event.due_at - now).total_seconds() >= 4.9
    assert outbox.attempts(["webhook.pending"], str(delivery.pk)) == 0
    server.answer = lambda body: FINE
    make_all_due()
    assert deliver_webhooks(due()) == 1
    first, second = server.requests
    assert (first[1], first[0]["webhook-id"]) == (second[1], second[0]["webhook-id"])


def test_a_bug_in_one_is_found_counted_and_parked_and_the_others_arrive(
    server, ada, shop, happen, settings, monkeypatch
):
    settings.TASK_ATTEMPTS_MAX = 1
    listen(server, ada, ordered=False)
    bad = [happen(ada.accounts_in_use[0], shop) for _ in range(4)][2]
    culprit = WebhookDelivery.objects.get(event=bad)
    post = _Sender._post

    async def broken(self, call):
        if call.delivery == culprit.pk:
            raise ZeroDivisionError("a bug")
        return await post(self, call)

    monkeypatch.setattr(_Sender, "_post", broken)

    tasks.deliver_webhooks_task([str(pk) for pk in due()])

    assert Counter(WebhookDelivery.objects.values_list("state", flat=True)) == {"delivered": 3, "pending": 1}
    assert outbox.attempts(["webhook.pending"], str(culprit.pk)) == 1

    tasks.deliver_webhooks_task([str(culprit.pk)])

    culprit.refresh_from_db()
    assert (culprit.state, culprit.claimed_until) == ("failed", None)
    assert DeadLetter.objects.get().subject == str(culprit.pk)


def test_a_hung_endpoint_is_left_after_the_time_limit(server, ada, shop, happen, settings):
    settings.WEBHOOK_TIMEOUT_SECONDS = 0.5
    listen(server, ada)
    happen(ada.accounts_in_use[0], shop)
    go_on = threading.Event()
    server.answer = lambda body: (go_on.wait(60), FINE)[1]

    # It would answer, in the end.
    assert deliver_webhooks(due()) == 0

    go_on.set()
    assert "Timeout" in WebhookDelivery.objects.get().failure


def test_the_last_attempt_fails_in_the_open_and_can_be_replayed(server, ada, shop, happen, forget_breakers):
    endpoint = listen(server, ada)
    happen(ada.accounts_in_use[0], shop)
    server.answer = lambda body: (500, {}, b"")
    for _ in range(webhooks.ATTEMPTS_MAX):
        make_all_due()
        deliver_webhooks(due())
        forget_breakers()
    assert states() == {("failed", 12): 1}
    make_all_due()
    assert due() == []
    assert 20 * 3600 < sum(retry_seconds(n) for n in range(1, 12)) < 26 * 3600

    server.answer = lambda body: FINE
    assert replay(Staff, endpoint, [WebhookDelivery.objects.get().pk]) == 1
    assert deliver_webhooks(due()) == 1
    assert states() == {("delivered", 1): 1}


def test_retry_budget_spent_by_an_open_breaker(server, ada, shop, happen):
    """A rival's failing. Here deliveries behind an open breaker keep all their attempts."""
    endpoint = listen(server, ada)
    happen(ada.accounts_in_use[0], shop)
    force(f"webhook:{endpoint.pk}", "open")

    for _ in range(2 * webhooks.ATTEMPTS_MAX):
        make_all_due()
        deliver_webhooks(due())

    assert (server.requests, states()) == ([], {("pending", 0): 1})
    assert Event.objects.get(type="webhook.pending").published_at is None
    force(f"webhook:{endpoint.pk}", "")
    make_all_due()
    assert deliver_webhooks(due()) == 1


def test_an_endpoint_that_fails_is_asked_no_more_and_others_are(server, ada, shop, happen, settings):
    settings.BREAKER_CALLS_MIN, settings.BREAKER_OPEN_SECONDS, settings.WEBHOOK_ENDPOINT_CALLS = 3, 30, 1
    with http_server(lambda body: (503, {}, b"")) as broken:
        listen(broken, ada, ordered=False)
        listen(server, ada, ordered=False)
        for _ in range(10):
            happen(ada.accounts_in_use[0], shop)

        assert deliver_webhooks(due()) == 10

        assert (len(server.requests), len(broken.requests)) == (10, 3)
    assert states() == {("delivered", 1): 10, ("pending", 1): 3, ("pending", 0): 7}
