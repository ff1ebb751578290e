"""What a broker loses on the way to those who want to be told is found: events nobody told of, e-mails nobody sent."""

from datetime import timedelta

import pytest
from django.conf import settings
from django.core import mail
from django.db import connection
from django.utils import timezone

from accounts.models import Customer
from bankcore.messaging import dead_letters, outbox
from bankcore.messaging.models import DeadLetter, Event
from notifications import sweep, tasks
from notifications.delivery import deliver
from notifications.dispatch import dispatch
from notifications.models import Notification, Subscription, SweepPosition, WebhookEndpoint
from notifications.sweep import sweep_lost

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("forget_breakers")]


@pytest.fixture(autouse=True)
def _settings(settings):
    settings.STUCK_SECONDS = 45


@pytest.fixture
def ada(accounts):
    """A customer who wants to hear by e-mail."""
    customer = Customer.objects.create(name="ada")
    Subscription.objects.create(customer=customer.pk, channel="email", address="ada@example.com")
    (account,) = accounts(10_000, customer=customer)
    return account


@pytest.fixture
def shop(accounts):
    return accounts(10_000)[0]


@pytest.fixture
def lost(make_transfer):
    """Make a posted transfer whose event was published some time ago, and of which nobody has heard."""

    def make(debit, credit, status="posted", seconds=60):
        transfer = make_transfer(debit, credit, 100, status, posted_at=timezone.now() if status == "posted" else None)
        return published(Event.objects.get(subject=str(transfer.pk)).pk, seconds)

    return make


def published(event_id, seconds=60):
    then = timezone.now() - timedelta(seconds=seconds)
    with connection.cursor() as cursor:
        # What an event says never changes, says its trigger; here it has to have been said earlier.
        cursor.execute("ALTER TABLE messaging_event DISABLE TRIGGER USER")
        cursor.execute("UPDATE messaging_event SET created_at = %s, published_at = %s WHERE id = %s",
                       (then, then, event_id))  # fmt: skip
        cursor.execute("ALTER TABLE messaging_event ENABLE TRIGGER USER")
    return event_id


def position():
    return SweepPosition.objects.get().event


def owed():
    unsent = Event.objects.filter(published_at=None, type__startswith="transfer.")
    return list(unsent.order_by("id").values_list("pk", flat=True))


def test_an_event_whose_message_was_lost_is_told_of_once(ada, shop, lost):
    event = lost(ada, shop)

    assert sweep_lost() == 1
    assert sweep_lost() == 0
    # The worker does it, and never the one that sweeps: it might die of it.
    assert (owed(), Notification.objects.count(), outbox.attempts_of(str(event))) == ([event], 0, 0)
    dispatch([event])
    # Its first message comes after all.
    dispatch([event])
    published(event)

    assert sweep_lost() == 0
    assert position() == event
    assert list(Notification.objects.values_list("event", "state")) == [(event, "pending")]
    assert Event.objects.filter(type="notification.pending").count() == 1


def test_one_that_is_lost_again_is_sent_a_third_time_and_holds_up_nobody(ada, shop, lost):
    bad, later = lost(ada, shop), lost(ada, shop)
    assert sweep_lost() == 2
    dispatch([later])
    published(later)
    published(Event.objects.get(type="notification.pending").pk, seconds=50)
    Notification.objects.update(state="delivered")
    # The relay owes it still: what comes behind it is found.
    behind = lost(ada, shop)
    assert sweep_lost() == 1
    assert (owed(), position() < bad) == ([bad, behind], True)

    published(bad)
    assert sweep_lost() == 1
    assert (owed(), bad <= position() < behind) == ([bad, behind], True)

    published(bad)
    published(behind)
    assert sweep_lost() == 1
    assert (owed(), position() >= behind) == ([behind], True)


@pytest.mark.parametrize("status", ["posted", "rejected"])
@pytest.mark.parametrize("side", ["pays", "receives"])
@pytest.mark.parametrize("means", ["email", "webhook", "webhook of all", "disabled webhook", "webhook of other types"])
def test_the_sweep_knows_who_would_be_told(accounts, shop, lost, status, side, means):
    customer = Customer.objects.create(name="bo")
    (account,) = accounts(10_000, customer=customer)
    if means == "email":
        Subscription.objects.create(customer=customer.pk, channel="email", address="bo@example.com")
    else:
        WebhookEndpoint.objects.create(
            url="https://x.example/",
            customer=None if means == "webhook of all" else customer.pk,
            state="disabled" if means == "disabled webhook" else "active",
            event_types=["transfer.parked"] if means == "webhook of other types" else [f"transfer.{status}"],
            created_by="staff",
        )
    event = lost(*((account, shop) if side == "pays" else (shop, account)), status)

    assert sweep_lost() == dispatch([event])


def test_what_was_told_and_what_nobody_wants_to_hear_is_passed(ada, shop, accounts, lost):
    told = lost(ada, shop)
    dispatch([told])
    published(Event.objects.get(type="notification.pending").pk, seconds=50)
    Notification.objects.update(state="delivered")
    other = lost(shop, *accounts(0))

    assert sweep_lost() == 0
    assert (Notification.objects.count(), position() >= max(told, other)) == (1, True)


@pytest.mark.parametrize("left", ["owed", "young"])
def test_it_waits_for_what_the_relay_owes_or_has_just_published(ada, shop, lost, left):
    first, second = lost(ada, shop), lost(ada, shop)
    if left == "owed":
        Event.objects.filter(pk=first).update(published_at=None)
    else:
        Event.objects.filter(pk=first).update(published_at=timezone.now())

    assert sweep_lost() == 0
    assert position() < first

    published(first)
    assert sweep_lost() == 2
    assert owed() == [first, second]


def test_a_clock_that_is_wrong_lets_nothing_pass_for_old(ada, shop, lost, monkeypatch):
    """An event with a lower id may be uncommitted still."""
    told = lost(ada, shop)
    dispatch([told])
    young = published(lost(ada, shop), seconds=5)
    published(Event.objects.get(type="notification.pending").pk, seconds=5)
    an_hour_on = timezone.now() + timedelta(hours=1)
    monkeypatch.setattr(timezone, "now", lambda: an_hour_on)

    assert sweep_lost() == 0
    tasks.redrive_webhooks_task()

    assert told <= position() < young


def test_an_event_is_read_once(ada, shop, lost, statements):
    for _ in range(3):
        lost(ada, shop)
    sweep_lost()
    before = position()
    statements.clear()

    assert sweep_lost() == 0

    # The e-mails, the position (made sure of, locked), and what is new: however much there is in the table.
    assert len([sql for sql in statements if "SAVEPOINT" not in sql]) == 4
    assert position() == before


def test_many_events_are_looked_at_in_steps(ada, shop, lost, monkeypatch):
    monkeypatch.setattr(sweep, "EVENTS_MAX", 2)
    events = [lost(ada, shop) for _ in range(5)]

    assert sweep_lost() == 5
    assert (owed(), position() < events[0]) == (events, True)


def test_what_is_parked_is_left_to_the_desk(ada, shop, lost):
    event = lost(ada, shop)
    dead_letters.park_work(task="notifications.dispatch", subject=str(event), error=ValueError("a bug"), attempts=1)

    assert sweep_lost() == 0
    assert (owed(), position(), DeadLetter.objects.count()) == ([], event, 1)


def test_a_bug_in_one_goes_the_way_of_bugs_and_holds_up_nobody(ada, shop, lost, monkeypatch):
    """The worker tries it again a few times, by itself, and parks it; the sweep passes by what is parked."""
    bad, good = lost(ada, shop), lost(ada, shop)

    def broken(event_ids):
        if bad in event_ids:
            raise ZeroDivisionError("a bug")
        return dispatch(event_ids)

    monkeypatch.setattr(tasks, "dispatch", broken)

    tasks.dispatch_task([bad, good])
    assert Notification.objects.get().event == good
    assert (owed(), outbox.attempts_of(str(bad)), DeadLetter.objects.count()) == ([bad], 1, 0)
    for _ in range(settings.TASK_ATTEMPTS_MAX):
        tasks.dispatch_task([bad])

    letter = DeadLetter.objects.get()
    assert (letter.subject, letter.cause) == (str(bad), "ZeroDivisionError: a bug")
    published(bad)
    published(Event.objects.get(type="notification.pending").pk, seconds=50)
    Notification.objects.update(state="delivered")
    assert sweep_lost() == 0
    assert position() >= good


def test_an_email_whose_message_was_lost_is_sent_again(ada, shop, lost):
    dispatch([lost(ada, shop)])
    asking = Event.objects.get(type="notification.pending")
    # The relay owes it, or it is on its way: nothing is done.
    assert sweep_lost() == 0
    Event.objects.filter(pk=asking.pk).update(published_at=timezone.now())
    assert sweep_lost() == 0

    published(asking.pk)
    assert sweep_lost() == 1

    asking.refresh_from_db()
    assert asking.published_at is None
    assert deliver([Notification.objects.get().pk]) == 1
    assert len(mail.outbox) == 1
    published(asking.pk)
    assert sweep_lost() == 0
