"""Who is told of what, once; and e-mails that are sent, tried again, and given up in the open."""

import smtplib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.core import mail
from django.core.mail.backends.locmem import EmailBackend
from django.db import connection
from django.utils import timezone

from accounts.models import Customer
from bankcore.messaging import outbox
from bankcore.messaging.breaker import force
from bankcore.messaging.models import Event
from notifications import delivery
from notifications.delivery import deliver
from notifications.dispatch import dispatch
from notifications.models import Notification, Subscription

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("forget_breakers")]


@pytest.fixture
def people(accounts):
    """Alice (in-app and e-mail) and Bob (e-mail) with an account each, and Carol who wants to hear nothing."""
    made = []
    for name, channels in (("alice", ["in_app", "email"]), ("bob", ["email"]), ("carol", [])):
        customer = Customer.objects.create(name=name)
        for channel in channels:
            address = f"{name}@example.com" if channel == "email" else ""
            Subscription.objects.create(customer=customer.pk, channel=channel, address=address)
        made += accounts(10_000, customer=customer)
    return made


@pytest.fixture
def told(make_transfer):
    """Make a transfer that ended as asked, and return the id of the event that says so."""

    def make(debit, credit, status="posted", data=None, **fields):
        posted_at = timezone.now() if status == "posted" else None
        transfer = make_transfer(debit, credit, 12_345, status, posted_at=posted_at, **fields)
        event = Event.objects.get(subject=str(transfer.pk))
        if data:
            event = Event.objects.create(
                type=event.type, partition_key=event.partition_key, subject=event.subject, data=data
            )
        return event.pk

    return make


def notified():
    rows = Notification.objects.order_by("id").values_list("recipient", "channel", "title", "state")
    names = dict(Customer.objects.values_list("pk", "name"))
    return sorted((names[recipient], *rest) for recipient, *rest in rows)


def test_both_sides_hear_of_posted_money_on_each_of_their_channels(people, told):
    alice, bob, _ = people

    assert dispatch([told(alice, bob)]) == 3

    assert notified() == [
        ("alice", "email", "Your transfer of 123.45 EUR was made.", "pending"),
        ("alice", "in_app", "Your transfer of 123.45 EUR was made.", "delivered"),
        ("bob", "email", "You received 123.45 EUR.", "pending"),
    ]
    pending = Notification.objects.filter(channel="email").order_by("id")
    due = Event.objects.filter(type="notification.pending").order_by("id")
    assert list(due.values_list("subject", "partition_key")) == [(str(n.pk), str(n.recipient)) for n in pending]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("rejected", "was refused"),
        ("cancelled", "was cancelled"),
        ("in_review", "is being reviewed"),
        ("parked", "is delayed"),
    ],
)
def test_only_the_payer_hears_of_anything_else(people, told, status, words):
    alice, bob, _ = people

    assert dispatch([told(alice, bob, status)]) == 2

    title = f"Your transfer of 123.45 EUR {words}."
    assert notified() == [("alice", "email", title, "pending"), ("alice", "in_app", title, "delivered")]


def test_reason_and_reference_are_told(people, told):
    alice, bob, _ = people
    event_id = told(alice, bob, "rejected", {"reason": "insufficient_funds"}, reference="Rent May")

    dispatch([event_id])

    notification = Notification.objects.get(channel="in_app")
    assert (notification.event, notification.address) == (event_id, "")
    assert notification.text == (
        "Your transfer of 123.45 EUR was refused.\n"
        "Reason: insufficient funds.\n"
        "Reference: Rent May\n"
        f"Transfer: {notification.transfer}"
    )


def test_who_subscribed_to_nothing_and_the_bank_itself_are_not_told(people, told, accounts):
    _, _, carol = people
    (of_the_bank,) = accounts(10_000)

    assert dispatch([told(carol, of_the_bank), told(of_the_bank, carol)]) == 0

    assert (notified(), Event.objects.filter(type="notification.pending").count()) == ([], 0)


def test_a_payment_to_oneself_is_told_once_per_channel(people, told, accounts):
    alice, _, _ = people
    (savings,) = accounts(0, customer=alice.customer)

    assert dispatch([told(alice, savings)]) == 2

    assert {title for _, _, title, _ in notified()} == {"Your transfer of 123.45 EUR was made."}


def test_dispatch_tells_once_however_often_it_is_delivered(people, told):
    alice, bob, _ = people
    first, second = told(alice, bob), told(alice, bob, "rejected")
    assert dispatch([first]) == 3

    assert dispatch([first]) == 0
    assert dispatch([first, second, first]) == 2
    assert dispatch([first, second]) == 0

    assert Notification.objects.count() == 5
    assert Event.objects.filter(type="notification.pending").count() == 3


def test_dispatch_of_an_unknown_event_tells_nobody(people):
    assert dispatch([987_654_321]) == 0
    assert Notification.objects.count() == 0


@pytest.fixture
def pending(people, told):
    """Bob's e-mail about money that came, not yet sent."""
    alice, bob, _ = people
    dispatch([told(alice, bob)])
    return Notification.objects.get(recipient=bob.customer_id)


@pytest.fixture
def mail_server_away(monkeypatch):
    def refuse(backend, messages):
        raise smtplib.SMTPServerDisconnected("Connection unexpectedly closed")

    monkeypatch.setattr(EmailBackend, "send_messages", refuse)


@pytest.fixture
def message_refused(monkeypatch):
    def refuse(backend, messages):
        raise smtplib.SMTPDataError(554, b"transaction failed")

    monkeypatch.setattr(EmailBackend, "send_messages", refuse)


def test_an_email_is_sent_and_marked(pending):
    assert deliver([pending.pk]) == 1

    pending.refresh_from_db()
    assert (pending.state, pending.attempts, pending.failure) == ("delivered", 1, "")
    assert pending.delivered_at is not None
    (sent,) = mail.outbox
    assert (sent.to, sent.subject, sent.body) == (["bob@example.com"], "You received 123.45 EUR.", pending.text)
    assert sent.extra_headers == {"Message-ID": f"<notification-{pending.pk}@bankcore.invalid>"}


def test_what_was_delivered_is_not_sent_again(pending):
    deliver([pending.pk])

    assert deliver([pending.pk, pending.pk]) == 0

    assert len(mail.outbox) == 1


def test_an_in_app_notification_is_never_sent(pending):
    in_app = Notification.objects.get(channel="in_app")

    assert deliver([in_app.pk]) == 0
    assert mail.outbox == []


def test_a_failure_is_postponed_and_said(pending, mail_server_away):
    event = Event.objects.get(type="notification.pending", subject=str(pending.pk))
    Event.objects.filter(pk=event.pk).update(published_at=timezone.now())
    now = timezone.now()

    assert deliver([pending.pk]) == 0

    pending.refresh_from_db()
    # The server is away: that is no attempt of this message.
    assert (pending.state, pending.attempts, pending.delivered_at) == ("pending", 0, None)
    assert pending.failure == "SMTPServerDisconnected: Connection unexpectedly closed"
    event.refresh_from_db()
    assert (event.published_at, event.attempt) == (None, 1)
    assert event.due_at > now


def test_the_last_attempt_fails_in_the_open_and_is_the_last(pending, message_refused, monkeypatch, forget_breakers):
    for _ in range(delivery.ATTEMPTS_MAX):
        deliver([pending.pk])
        forget_breakers()

    pending.refresh_from_db()
    assert (pending.state, pending.attempts) == ("failed", 8)
    event = Event.objects.get(type="notification.pending", subject=str(pending.pk))
    assert event.attempt == 7
    monkeypatch.undo()
    assert deliver([pending.pk]) == 0
    assert mail.outbox == []


def test_a_failure_holds_up_no_other(people, told, monkeypatch):
    alice, bob, _ = people
    dispatch([told(alice, bob)])
    send = EmailBackend.send_messages

    def refuse_bob(backend, messages):
        if messages[0].to == ["bob@example.com"]:
            raise smtplib.SMTPRecipientsRefused({})
        return send(backend, messages)

    monkeypatch.setattr(EmailBackend, "send_messages", refuse_bob)
    ids = Notification.objects.filter(channel="email").order_by("-address").values_list("pk", flat=True)

    assert deliver(list(ids)) == 1

    assert [message.to for message in mail.outbox] == [["alice@example.com"]]
    states = Notification.objects.filter(channel="email").order_by("address").values_list("state", flat=True)
    assert list(states) == ["delivered", "pending"]


def test_a_mail_server_that_is_away_is_asked_once_a_chunk(people, told, monkeypatch):
    alice, bob, _ = people
    dispatch([told(alice, bob)])
    asked = []

    def away(backend, messages):
        asked.append(messages)
        raise TimeoutError("no answer")

    monkeypatch.setattr(EmailBackend, "send_messages", away)
    emails = Notification.objects.filter(channel="email")

    assert deliver(list(emails.values_list("pk", flat=True))) == 0

    assert len(asked) == 1
    assert sorted(emails.values_list("state", "attempts", "failure")) == [
        ("pending", 0, ""),
        ("pending", 0, "TimeoutError: no answer"),
    ]
    owed = Event.objects.filter(type="notification.pending", published_at=None, due_at__gt=timezone.now())
    assert owed.count() == 2


@pytest.mark.django_db(transaction=True)
def test_workers_at_once_send_one_email(pending):
    together = threading.Barrier(4)

    def work(_):
        try:
            together.wait(timeout=10)
            return deliver([pending.pk])
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        sent = list(pool.map(work, range(4)))

    assert sum(sent) == 1
    assert len(mail.outbox) == 1


def test_retry_budget_spent_by_an_open_breaker(people, told):
    """A rival's failing. Here what an open breaker holds back has all its attempts left, and is sent once later."""
    alice, bob, _ = people
    dispatch([told(alice, bob)])
    emails = Notification.objects.filter(channel="email")
    ids = list(emails.values_list("pk", flat=True))
    force("email", "open")

    for _ in range(3 * delivery.ATTEMPTS_MAX):
        assert deliver(ids) == 0

    assert mail.outbox == []
    assert set(emails.values_list("state", "attempts")) == {("pending", 0)}
    owed = Event.objects.filter(type="notification.pending", published_at=None, due_at__gt=timezone.now())
    assert owed.count() == 2
    assert {outbox.attempts(["notification.pending"], str(pk)) for pk in ids} == {0}
    force("email", "")
    assert deliver(ids) == 2
    assert deliver(ids) == 0
    assert len(mail.outbox) == 2


def test_an_event_that_is_postponed_before_it_is_marked_is_not_taken_for_delivered(pending):
    """The relay marks by (id, attempt): a postponement in between has to change it, without counting."""
    event = Event.objects.get(type="notification.pending", subject=str(pending.pk))
    seen = event.attempt

    outbox.postpone(["notification.pending"], [str(pending.pk)], 5)

    event.refresh_from_db()
    assert event.attempt != seen
    assert outbox.attempts(["notification.pending"], str(pending.pk)) == 0
    outbox.defer(["notification.pending"], str(pending.pk), 5)
    assert outbox.attempts(["notification.pending"], str(pending.pk)) == 1


def test_a_message_that_makes_the_server_hang_up_lets_others_go_first(people, told, monkeypatch):
    alice, bob, _ = people
    dispatch([told(alice, bob)])
    poison, other = Notification.objects.filter(channel="email").order_by("pk")
    send = EmailBackend.send_messages

    def hang_up(backend, messages):
        if messages[0].to == [poison.address]:
            raise smtplib.SMTPServerDisconnected("Connection unexpectedly closed")
        return send(backend, messages)

    monkeypatch.setattr(EmailBackend, "send_messages", hang_up)
    for _ in range(3):
        deliver([poison.pk])
    deliver([poison.pk, other.pk])

    due = dict(Event.objects.filter(type="notification.pending").values_list("subject", "due_at"))
    assert due[str(poison.pk)] > due[str(other.pk)]
    assert deliver([other.pk]) == 1
