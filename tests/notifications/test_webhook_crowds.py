"""An endpoint that has more to hear than it takes holds up nobody else's webhooks and e-mails."""

import json
import threading
from datetime import timedelta

import pytest
from django.conf import settings as django_settings
from django.db import connection
from django.utils import timezone

from bankcore.messaging.models import Event
from bankcore.messaging.publisher import Publisher, TaskMessage
from notifications.models import WebhookDelivery
from notifications.webhooks import deliver_webhooks
from tests.messaging.broker_view import PATIENCE_SECONDS, Broker, eventually
from tests.notifications.test_webhook_load import slow_server
from tests.notifications.webhooks_view import FINE, due, listen, make_all_due, states, told
from tests.outside import http_server
from tests.workers import running

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("forget_breakers")]

PLACES = 3
CALLS = 4


@pytest.fixture
def in_hand(server):
    """Let a worker have deliveries in hand: no call for them ends before the test does, or lets them go on."""
    asked, go_on, workers = threading.Event(), threading.Event(), []

    def hold(ids):
        held = {f"evt_{d.event}" for d in WebhookDelivery.objects.filter(pk__in=ids)}

        def answer(body):
            if json.loads(body)["id"] in held:
                asked.set()
                go_on.wait(PATIENCE_SECONDS)
            return FINE

        def work():
            deliver_webhooks(ids)
            connection.close()

        server.answer = answer
        workers.append(threading.Thread(target=work))
        workers[-1].start()
        assert asked.wait(PATIENCE_SECONDS)

    def let_go():
        go_on.set()
        for worker in workers:
            worker.join(PATIENCE_SECONDS)

    hold.let_go = let_go
    yield hold
    let_go()


def test_what_comes_for_an_endpoint_whose_calls_are_in_use_is_left_for_later(
    server, ada, shop, happen, settings, in_hand
):
    settings.WEBHOOK_ENDPOINT_CALLS = 2
    crowded = listen(server, ada, ordered=False)
    for _ in range(3):
        happen(ada.accounts_in_use[0], shop)
    in_hand(due())
    with http_server(lambda body: FINE) as other:
        well = listen(other, ada, ordered=False)
        events = [happen(ada.accounts_in_use[0], shop) for _ in range(4)]

        assert deliver_webhooks(due()) == 4

        assert sorted(told(other)) == sorted(f"evt_{event}" for event in events)
        assert set(well.deliveries.values_list("state", flat=True)) == {"delivered"}
    left = crowded.deliveries.filter(event__in=events)
    assert set(left.values_list("state", "attempts")) == {("pending", 0)}
    # As few wait, they are looked at again soon, and together.
    again = Event.objects.filter(type="webhook.pending", published_at=None)
    assert {int(subject) for subject in again.values_list("subject", flat=True)} == {d.pk for d in left}
    moments = set(again.values_list("due_at", flat=True))
    assert all(moment.microsecond == 0 for moment in moments)
    assert max(moments) < timezone.now() + timedelta(seconds=3)
    in_hand.let_go()
    make_all_due()
    assert deliver_webhooks(due()) == 4
    assert states() == {("delivered", 1): 11}


def test_of_an_account_in_order_only_the_first_is_looked_at_again(server, ada, shop, happen, settings, in_hand):
    settings.WEBHOOK_ENDPOINT_CALLS = 1
    listen(server, ada)
    mine, other = ada.accounts_in_use
    happen(other, shop)
    in_hand(due())
    events = [happen(mine, shop) for _ in range(3)]

    assert deliver_webhooks(due()) == 0

    first = WebhookDelivery.objects.get(event=events[0])
    assert list(Event.objects.filter(type="webhook.pending", published_at=None).values_list("subject", flat=True)) == [
        str(first.pk)
    ]
    in_hand.let_go()
    make_all_due()
    while ids := due():
        deliver_webhooks(ids)
    assert told(server)[1:] == [f"evt_{event}" for event in events]


def test_an_account_with_much_in_hand_has_one_call_open_and_crowds_out_no_other(
    server, ada, shop, happen, settings, in_hand
):
    settings.WEBHOOK_ENDPOINT_CALLS = 2
    listen(server, ada)
    mine, other = ada.accounts_in_use
    for _ in range(5):
        happen(mine, shop)
    in_hand(due())
    event = happen(other, shop)

    assert deliver_webhooks(due()) == 1

    assert told(server)[-1] == f"evt_{event}"


def test_an_endpoint_that_hangs_takes_one_place_of_a_worker_and_not_all(ada, shop, happen, server, tmp_path, settings):
    settings.WEBHOOK_ENDPOINT_CALLS = CALLS
    broker = Broker(django_settings.BROKER_URL, django_settings.TOPOLOGY)
    broker.fill_from_scratch()
    environment = {
        "WEBHOOK_ALLOW_LOOPBACK": "on", "WEBHOOK_TIMEOUT_SECONDS": "600", "WEBHOOK_ENDPOINT_CALLS": str(CALLS)
    }  # fmt: skip
    with slow_server() as slow, running(tmp_path, **environment) as start:
        slow.url = f"http://127.0.0.1:{slow.port}/"
        listen(slow, ada, ordered=False)
        for _ in range(CALLS * (PLACES + 1)):
            happen(ada.accounts_in_use[0], shop)
        ids = due()
        well = listen(server, None, types=["transfer.rejected"])
        happen(ada.accounts_in_use[0], shop, status="rejected")
        (mine,) = well.deliveries.values_list("pk", flat=True)
        start("worker", "notifications")
        publisher = Publisher(django_settings.BROKER_URL, "bank")

        def publish(*some):
            publisher.publish([TaskMessage("deliveries", "notifications.deliver_webhooks", [str(pk) for pk in some])])

        publish(*ids[:CALLS])
        assert eventually(lambda: slow.open == CALLS)
        for place in range(1, PLACES + 1):
            publish(*ids[place * CALLS : (place + 1) * CALLS])
        publish(mine)

        assert eventually(lambda: well.deliveries.filter(state="delivered").exists())

        assert (slow.open, slow.most) == (CALLS, CALLS)
        slow.released = True
        assert eventually(lambda: slow.answered == CALLS)
        publisher.close()
    broker.fill_from_scratch()
    broker.connection.release()
