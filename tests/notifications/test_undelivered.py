"""A delivery that a bug ended is failed, with the reason, and the desk brings it back or leaves it so."""

import pytest
from django.core import mail

from accounts.models import Customer
from bankcore.errors import BankError
from bankcore.messaging import desk
from bankcore.messaging.desk import Actor
from bankcore.messaging.forecasts import foresee
from bankcore.messaging.models import DeadLetter, Event
from notifications import delivery
from notifications.dispatch import dispatch
from notifications.models import Notification, Subscription, WebhookDelivery, WebhookEndpoint
from notifications.tasks import _park_webhook, deliver_task

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("forget_breakers")]

STAFF = Actor("sam")


@pytest.fixture
def parked(accounts, make_transfer, monkeypatch, settings):
    """A notification whose delivery met a bug, and the letter about it."""
    settings.TASK_ATTEMPTS_MAX = 0
    customer = Customer.objects.create(name="ada")
    Subscription.objects.create(customer=customer.pk, channel="email", address="ada@example.com")
    debit, credit = accounts(1000, customer=customer)[0], accounts(0)[0]
    transfer = make_transfer(debit, credit, 100, "rejected")
    dispatch([Event.objects.get(subject=str(transfer.pk)).pk])
    notification = Notification.objects.get()
    with monkeypatch.context() as broken:
        broken.setattr(delivery.email, "send", lambda *args, **options: 1 // 0)
        deliver_task([str(notification.pk)])
    return notification, DeadLetter.objects.get()


def state(notification):
    notification.refresh_from_db()
    return notification.state, notification.failure


def test_a_parked_notification_has_failed_with_the_reason(parked):
    notification, letter = parked

    assert state(notification) == ("failed", "ZeroDivisionError: integer division or modulo by zero")
    assert (letter.task, letter.subject, letter.state) == ("notifications.deliver", str(notification.pk), "open")
    # It is not taken up again by itself.
    deliver_task([str(notification.pk)])
    assert mail.outbox == []


def test_a_replay_brings_it_back(parked):
    notification, letter = parked
    (forecast,) = foresee([letter.pk])
    assert forecast.would == "be_sent_again"

    assert desk.replay(letter.pk, actor=STAFF).outcome == "replayed"

    assert state(notification) == ("pending", "")
    newest = Event.objects.filter(type="notification.pending", subject=str(notification.pk)).order_by("-pk")[0]
    assert (newest.published_at, newest.attempt) == (None, 0)
    deliver_task([str(notification.pk)])
    assert len(mail.outbox) == 1
    assert state(notification)[0] == "delivered"


def test_a_discard_leaves_it_failed(parked):
    notification, letter = parked

    desk.discard(letter.pk, reason="The address is wrong.", actor=STAFF)

    assert state(notification)[0] == "failed"
    letter.refresh_from_db()
    assert letter.state == "discarded"


def test_a_discard_ends_what_an_older_release_left_pending(parked):
    notification, letter = parked
    Notification.objects.update(state="pending", failure="")

    desk.discard(letter.pk, reason="The address is wrong.", actor=STAFF)

    assert state(notification) == ("failed", "given up by sam")


def test_what_was_delivered_meanwhile_is_not_delivered_again(parked):
    notification, letter = parked
    Notification.objects.update(state="delivered")

    assert [one.would for one in foresee([letter.pk])] == ["nothing"]
    with pytest.raises(BankError, match="delivered meanwhile"):
        desk.replay(letter.pk, actor=STAFF)
    assert state(notification)[0] == "delivered"


def test_letters_about_other_work_with_the_same_number_stay_open(parked):
    _, letter = parked
    other = DeadLetter.objects.create(task="notifications.deliver_webhooks", subject=letter.subject, cause="a bug")

    desk.discard(letter.pk, reason="The address is wrong.", actor=STAFF)

    other.refresh_from_db()
    assert other.state == "open"


def test_a_parked_webhook_comes_back_as_well(make_transfer, accounts):
    endpoint = WebhookEndpoint.objects.create(
        url="https://x.example/", event_types=["transfer.rejected"], created_by="x"
    )
    transfer = make_transfer(*accounts(10, 10), 1, "rejected")
    dispatch([Event.objects.get(subject=str(transfer.pk)).pk])
    hook = WebhookDelivery.objects.get(endpoint=endpoint)
    _park_webhook(str(hook.pk), ZeroDivisionError("a bug"), 1)

    desk.replay(DeadLetter.objects.get().pk, actor=STAFF)

    hook.refresh_from_db()
    assert (hook.state, hook.failure) == ("pending", "")
    assert Event.objects.filter(type="webhook.pending", subject=str(hook.pk)).count() == 2
