"""Webhooks in turn: in order for each account, once at a time, and within an endpoint's limits."""

import json
import threading
import time

import pytest
from django.utils import timezone

from bankcore.messaging.models import DeadLetter, Event
from notifications import webhooks
from notifications.channels import webhook as channel
from notifications.dispatch import dispatch
from notifications.models import WebhookDelivery, WebhookEndpoint
from notifications.tasks import deliver_webhooks_task
from notifications.webhooks import deliver_webhooks, redrive
from tests.notifications.webhooks_view import FINE, due, listen, make_all_due, states, told

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("forget_breakers")]


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

    assert redrive(60, 100) == 0
    assert redrive(0, 100) == 1
    assert deliver_webhooks(due()) == 1
    assert redrive(0, 100) == 0


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
    monkeypatch.setattr(channel, "START_SECONDS_MAX", 1.0)
    listen(server, ada, ordered=False)
    for _ in range(12):
        happen(ada.accounts_in_use[0], shop)
    at_once, most, lock, both = [0], [0], threading.Lock(), threading.Barrier(2)

    def answer(body):
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        both.wait(timeout=60)
        # Until no other may begin.
        time.sleep(1.1)
        with lock:
            at_once[0] -= 1
        return FINE

    server.answer = answer

    sent = deliver_webhooks(due())

    assert most == [2]
    assert sent == 2
    assert states() == {("delivered", 1): 2, ("pending", 0): 10}
    assert Event.objects.filter(type="webhook.pending", published_at=None).count() == 10


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
    redrive(0, 100)
    deliver_webhooks(due())

    assert told(server) == [f"evt_{second}"]
    states = WebhookDelivery.objects.order_by("event").values_list("state", "failure")
    assert list(states) == [("failed", "ZeroDivisionError: a bug"), ("delivered", "")]
    assert DeadLetter.objects.count() == 1
    assert redrive(0, 100) == 0
