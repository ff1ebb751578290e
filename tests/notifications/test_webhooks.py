"""Webhooks to a real server: who is told, signed, in order, again after a failure, never at anybody's cost."""

import base64
import json
import threading
import time
from collections import Counter

import pytest
from django.utils import timezone
from standardwebhooks import Webhook, WebhookVerificationError

from accounts.models import Customer
from bankcore.messaging import outbox
from bankcore.messaging.breaker import force
from bankcore.messaging.models import DeadLetter, Event
from notifications import webhooks
from notifications.channels import webhook as channel
from notifications.dispatch import dispatch
from notifications.endpoints import forget_old_secrets, replay, rotate_secret
from notifications.models import WebhookDelivery, WebhookEndpoint
from notifications.tasks import deliver_webhooks_task
from notifications.webhooks import deliver_webhooks, redrive, retry_seconds
from tests.outside import http_server

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("forget_breakers")]
SECRET = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
FINE = (204, {}, b"")


class Staff:
    name = "desk"


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


def listen(server, customer, types=("transfer.posted", "transfer.rejected"), **fields):
    return WebhookEndpoint.objects.create(
        customer=customer and customer.pk,
        url=server.url,
        event_types=list(types),
        secret=SECRET,
        created_by="x",
        **fields,
    )


@pytest.fixture
def happen(make_transfer):
    def make(debit, credit, status="posted", **fields):
        posted_at = timezone.now() if status == "posted" else None
        transfer = make_transfer(debit, credit, 12_345, status, posted_at=posted_at, **fields)
        event = Event.objects.filter(subject=str(transfer.pk)).latest("id")
        dispatch([event.pk])
        return event.pk

    return make


def due():
    """Ids of deliveries whose event is owed to the broker now, as the relay would send them."""
    events = Event.objects.filter(type="webhook.pending", published_at=None, due_at__lte=timezone.now()).order_by("id")
    ids = [int(subject) for subject in events.values_list("subject", flat=True)]
    Event.objects.filter(pk__in=[e.pk for e in events]).update(published_at=timezone.now())
    return ids


def make_all_due():
    Event.objects.filter(type="webhook.pending", published_at=None).update(due_at=timezone.now())


def states():
    return Counter(WebhookDelivery.objects.values_list("state", "attempts"))


def told(server):
    return [json.loads(body)["id"] for _, body in server.requests]


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


def test_deliveries_of_one_account_arrive_in_order_and_a_failed_one_holds_back_the_rest(server, ada, shop, happen):
    listen(server, ada)
    mine, other = ada.accounts_in_use
    events = [happen(mine, shop) for _ in range(5)]
    another = happen(other, shop)
    third = f"evt_{events[2]}"
    server.answer = lambda body: (400, {}, b"") if json.loads(body)["id"] == third else FINE

    assert deliver_webhooks(due()) == 3

    in_lane = [e for e in told(server) if e != f"evt_{another}"]
    assert in_lane == [f"evt_{e}" for e in events[:3]]
    # What is behind it is not even due; somebody who looks at it anyway leaves it.
    assert due() == []
    assert deliver_webhooks(list(WebhookDelivery.objects.values_list("pk", flat=True)[:2])) == 0
    server.answer = lambda body: FINE
    make_all_due()
    while ids := due():
        deliver_webhooks(ids)
    assert [e for e in told(server) if e != f"evt_{another}"] == [f"evt_{e}" for e in [*events[:3], *events[2:]]]
    assert set(WebhookDelivery.objects.values_list("state", flat=True)) == {"delivered"}


def test_what_waited_is_woken_by_the_end_of_the_one_before(server, ada, shop, happen):
    listen(server, ada)
    first = happen(ada.accounts_in_use[0], shop)
    (first_id,) = due()
    second = happen(ada.accounts_in_use[0], shop)

    assert deliver_webhooks(due()) == 0
    assert due() == []
    assert deliver_webhooks([first_id]) == 1
    assert deliver_webhooks(due()) == 1

    assert told(server) == [f"evt_{first}", f"evt_{second}"]


def test_an_unordered_endpoint_does_not_wait(server, ada, shop, happen):
    listen(server, ada, ordered=False)
    events = [happen(ada.accounts_in_use[0], shop) for _ in range(4)]
    server.answer = lambda body: (500, {}, b"") if json.loads(body)["id"] == f"evt_{events[0]}" else FINE

    assert deliver_webhooks(due()) == 3


def test_a_message_that_comes_twice_at_a_time_is_sent_once_and_looked_at_again(server, ada, shop, happen):
    listen(server, ada)
    happen(ada.accounts_in_use[0], shop)
    ids = due()
    asked, go_on = threading.Event(), threading.Event()

    def answer(body):
        asked.set()
        go_on.wait(60)
        return FINE

    server.answer = answer
    worker = threading.Thread(target=lambda: (deliver_webhooks(ids), webhooks_connection_close()))
    worker.start()
    assert asked.wait(60)

    assert deliver_webhooks(ids) == 0
    # If the first worker had died now, this is when its delivery would be made.
    event = Event.objects.get(type="webhook.pending")
    assert event.published_at is None
    assert event.due_at > timezone.now()
    go_on.set()
    worker.join(60)

    assert (len(server.requests), states()) == (1, {("delivered", 1): 1})


def webhooks_connection_close():
    from django.db import connection

    connection.close()


def test_a_worker_that_died_with_a_delivery_loses_nothing(server, ada, shop, happen):
    listen(server, ada)
    happen(ada.accounts_in_use[0], shop)
    ids = due()
    webhooks._claim(ids)

    assert deliver_webhooks(ids) == 0
    WebhookDelivery.objects.update(claimed_until=timezone.now())
    make_all_due()
    assert deliver_webhooks(due()) == 1


def test_what_the_broker_lost_is_made_due_again(server, ada, shop, happen):
    listen(server, ada)
    happen(ada.accounts_in_use[0], shop)
    due()

    assert redrive(timezone.now() - timezone.timedelta(seconds=60), 100) == 0
    assert redrive(timezone.now(), 100) == 1
    assert deliver_webhooks(due()) == 1
    assert redrive(timezone.now(), 100) == 0


def test_a_disabled_endpoint_is_told_nothing_more(server, ada, shop, happen):
    endpoint = listen(server, ada)
    happen(ada.accounts_in_use[0], shop)
    WebhookEndpoint.objects.filter(pk=endpoint.pk).update(state="disabled")

    assert deliver_webhooks(due()) == 0

    assert (server.requests, states()) == ([], {("failed", 0): 1})


def test_a_slow_call_holds_no_lock(server, ada, shop, happen):
    endpoint = listen(server, ada)
    happen(ada.accounts_in_use[0], shop)
    seen = []

    def answer(body):
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '200ms'")
            cursor.execute("SELECT 1 FROM notifications_webhookendpoint WHERE id = %s FOR UPDATE", [endpoint.pk])
            cursor.execute("SELECT 1 FROM notifications_webhookdelivery FOR UPDATE")
            seen.append(cursor.fetchall())
        connection.close()
        return FINE

    server.answer = answer

    assert deliver_webhooks(due()) == 1
    assert seen == [[(1,)]]


def test_calls_to_one_endpoint_are_limited_and_late_ones_wait_for_another_message(
    server, ada, shop, happen, settings, monkeypatch
):
    settings.WEBHOOK_ENDPOINT_CALLS = 2
    monkeypatch.setattr(channel, "START_SECONDS_MAX", 0.5)
    listen(server, ada, ordered=False)
    for _ in range(12):
        happen(ada.accounts_in_use[0], shop)
    at_once, most, lock = [0], [0], threading.Lock()

    def answer(body):
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.3)
        with lock:
            at_once[0] -= 1
        return FINE

    server.answer = answer

    sent = deliver_webhooks(due())

    assert most == [2]
    assert 2 <= sent < 12
    assert states() == {("delivered", 1): sent, ("pending", 0): 12 - sent}
    assert Event.objects.filter(type="webhook.pending", published_at=None).count() == 12 - sent


def test_all_workers_together_keep_to_an_endpoints_rate(server, ada, shop, happen, settings, monkeypatch):
    settings.WEBHOOK_ENDPOINT_RATE = "3/day"
    monkeypatch.setattr(channel, "START_SECONDS_MAX", 0.5)
    listen(server, ada, ordered=False)
    for _ in range(8):
        happen(ada.accounts_in_use[0], shop)

    sent = deliver_webhooks(due())

    # Midnight may pass meanwhile.
    assert sent in (3, 6)
    assert len(server.requests) == sent
    assert states() == {("delivered", 1): sent, ("pending", 0): 8 - sent}
    assert Event.objects.filter(type="webhook.pending", published_at=None).count() == 8 - sent


def test_dispatch_and_delivery_take_as_many_statements_for_fifty_as_for_two(server, ada, shop, happen, statements):
    listen(server, ada)
    for _ in range(52):
        happen(ada.accounts_in_use[0], shop)
    ids = due()
    counts = []
    for some in (ids[:2], ids[2:50]):
        calls = webhooks._claim(some)
        statements.clear()
        webhooks._settle([channel.Outcome(call, "delivered", 204) for call in calls])
        counts.append(len(statements))

    assert counts[0] == counts[1]


def test_the_order_is_that_of_the_events_however_dispatch_wrote_them(server, ada, shop, make_transfer):
    listen(server, ada)
    events = []
    for _ in range(3):
        transfer = make_transfer(ada.accounts_in_use[0], shop, 1, "posted", posted_at=timezone.now())
        events.append(Event.objects.get(subject=str(transfer.pk)).pk)
    for event in reversed(events):
        dispatch([event])

    while ids := due():
        deliver_webhooks(ids)

    assert told(server) == [f"evt_{event}" for event in events]


def test_a_delivery_that_cannot_be_made_is_parked_and_ends(server, ada, shop, happen, monkeypatch, settings):
    """A bug in one delivery: it goes to the desk once, and those behind it are made."""
    settings.TASK_ATTEMPTS_MAX = 0
    listen(server, ada)
    first, second = happen(ada.accounts_in_use[0], shop), happen(ada.accounts_in_use[0], shop)
    pay = webhooks.payload

    def broken(fact):
        if fact.event_id == first:
            raise ZeroDivisionError("a bug")
        return pay(fact)

    monkeypatch.setattr(webhooks, "payload", broken)

    deliver_webhooks_task([str(pk) for pk in due()])
    redrive(timezone.now(), 100)
    deliver_webhooks(due())

    assert told(server) == [f"evt_{second}"]
    states = WebhookDelivery.objects.order_by("event").values_list("state", "failure")
    assert list(states) == [("failed", "ZeroDivisionError: a bug"), ("delivered", "")]
    assert DeadLetter.objects.count() == 1
    assert redrive(timezone.now(), 100) == 0
