"""A mail server that is down, slow, refuses or hangs, as a real one (F33): nobody else waits, and all is sent, once."""

import smtplib
from collections import Counter

import pytest
from django.conf import settings as django_settings
from django.utils import timezone

from accounts.models import Customer
from bankcore import call_rates
from bankcore.messaging.models import Event
from bankcore.messaging.publisher import Publisher, TaskMessage
from bankcore.rate_limits import redis_storage
from notifications import delivery
from notifications.channels import email
from notifications.delivery import deliver
from notifications.models import Notification, Subscription
from tests.messaging.broker_view import PATIENCE_SECONDS, Broker, eventually
from tests.outside import mail_server
from tests.workers import running

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("forget_breakers")]


@pytest.fixture
def server(settings):
    with mail_server() as server:
        settings.EMAIL_BACKEND = "notifications.channels.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT, settings.EMAIL_TIMEOUT = "127.0.0.1", server.port, 0.5
        settings.BREAKER_CALLS_MIN, settings.BREAKER_OPEN_SECONDS = 2, 300
        yield server


def emails(number):
    Notification.objects.bulk_create(
        Notification(
            event=n, recipient=Customer.objects.create(name="Ada").pk, channel="email", address=f"a{n}@example.com",
            transfer=Customer.objects.create(name="x").pk, title=f"Mail {n}", text="Paid.", state="pending",
        )
        for n in range(number)
    )  # fmt: skip
    ids = list(Notification.objects.order_by("pk").values_list("pk", flat=True))
    Event.objects.bulk_create(
        Event(type="notification.pending", partition_key="x", subject=str(pk), published_at=timezone.now())
        for pk in ids
    )
    return ids


def states():
    return Counter(Notification.objects.values_list("state", "attempts"))


@pytest.mark.parametrize("mood", ["hangs", "refuses", "failing"])
def test_after_an_outage_everything_is_sent_once(server, mood, settings, end_pauses):
    ids = emails(30)
    server.mood = mood
    for _ in range(6):
        deliver(ids)
    assert server.messages == []
    # Nobody is asked once the breaker is open.
    asked = server.connections
    assert asked < 6
    deliver(ids)
    assert server.connections == asked

    # From now on a slow answer is an answer: a message that was taken unheard would be sent again.
    server.mood, settings.EMAIL_TIMEOUT = "well", PATIENCE_SECONDS
    end_pauses()
    deliver(ids)
    while pending := Notification.objects.filter(state="pending").count():
        end_pauses()
        deliver(ids)
        assert Notification.objects.filter(state="pending").count() < pending
    assert states().total() == sum(number for (state, _), number in states().items() if state == "delivered")

    subjects = Counter(line for m in server.messages for line in m.splitlines() if line.startswith("Subject:"))
    assert (len(subjects), set(subjects.values())) == (30, {1})


@pytest.mark.parametrize("mood", ["dribbles", "babbles"])
def test_a_reply_has_its_time_as_a_whole(server, mood):
    """A valid reply in the end, whose every byte comes well within the time-out: it is not waited for."""
    ids = emails(3)
    server.mood = mood
    with email.connection() as mail, pytest.raises(smtplib.SMTPServerDisconnected):
        mail.open()

    assert deliver(ids) == 0

    assert (states(), server.messages) == ({("pending", 0): 3}, [])


def test_an_outage_costs_no_attempt(server):
    ids = emails(3)
    server.mood = "hangs"

    for _ in range(2 * delivery.ATTEMPTS_MAX):
        deliver(ids)

    assert states() == {("pending", 0): 3}
    assert Event.objects.filter(published_at=None, due_at__gt=timezone.now()).count() == 3


def test_a_slow_server_holds_a_task_for_a_bounded_time(server, settings, monkeypatch):
    monkeypatch.setattr(delivery, "CHUNK_SECONDS_MAX", 1.0)
    monkeypatch.setattr(delivery, "TASK_SECONDS_MAX", 3.0)
    ids = emails(20)
    server.mood = "slow"
    # Each step takes longer than nothing and less than its limit.
    settings.EMAIL_TIMEOUT = PATIENCE_SECONDS

    sent = deliver(ids)

    assert 0 < sent < 20
    assert states() == {("delivered", 1): sent, ("pending", 0): 20 - sent}


@pytest.mark.parametrize("redis_url", [None, "redis://127.0.0.1:1/0"])
def test_all_workers_together_keep_to_the_rate_and_the_rest_is_sent_later(server, monkeypatch, settings, redis_url):
    settings.REDIS_URL = redis_url or settings.REDIS_URL
    call_rates._counter.cache_clear()
    if redis_url is None:
        redis_storage(settings.REDIS_URL).reset()
    # Two windows at most pass meanwhile, and who has no turn has not been tried.
    settings.EMAIL_RATE = "3/day"
    monkeypatch.setattr(delivery, "CHUNK_SECONDS_MAX", 0.2)
    monkeypatch.setattr(delivery, "TASK_SECONDS_MAX", 0.5)
    server.mood = "well"
    ids = emails(8)

    sent = deliver(ids) + deliver(ids)

    assert 3 <= sent <= 6
    assert states() == {("delivered", 1): sent, ("pending", 0): 8 - sent}
    assert Event.objects.filter(published_at=None, due_at__gt=timezone.now()).count() == 8 - sent


@pytest.fixture
def broker():
    broker = Broker(django_settings.BROKER_URL, django_settings.TOPOLOGY)
    broker.fill_from_scratch()
    yield broker
    broker.fill_from_scratch()
    broker.connection.release()


def test_a_mail_server_that_hangs_starves_nobody(server, broker, accounts, make_transfer, tmp_path):
    """Bulkhead: deliveries may hold three of the worker's threads, and the in-app messages have the others."""
    ids = emails(40)
    server.mood = "hangs"
    ada = Customer.objects.create(name="Ada")
    Subscription.objects.create(customer=ada.pk, channel="in_app")
    payer, payee = accounts(1000, 0, customer=ada)
    settings = {"EMAIL_URL": f"smtp://127.0.0.1:{server.port}", "EMAIL_TIMEOUT_SECONDS": "600",
                "BREAKER_CALLS_MIN": "1000"}  # fmt: skip
    publisher = Publisher(django_settings.BROKER_URL, "bank")
    publisher.publish([TaskMessage("deliveries", "notifications.deliver", [str(pk)]) for pk in ids])

    with running(tmp_path, **settings) as start:
        start("worker", "notifications")
        assert eventually(lambda: server.connections == 3), (tmp_path / "worker-notifications.log").read_text()
        told = []
        for _ in range(8):
            transfer = make_transfer(payer, payee, 1, "posted", posted_at=timezone.now())
            told.append(Event.objects.get(subject=str(transfer.pk)).pk)
        publisher.publish([TaskMessage("notifications", "notifications.dispatch", [event]) for event in told])

        assert eventually(lambda: Notification.objects.filter(channel="in_app").count() == 8)

        # All that deliveries could hold is still held.
        assert server.connections == 3
        assert broker.depth("deliveries") == 40 - 3
        server.mood = "well"
        assert eventually(lambda: Notification.objects.filter(state="delivered", channel="email").count() == 40)
    publisher.close()
    assert len(server.messages) == 40
