"""The outbox: events are written in order, never change, come due again, and wake a relay that sleeps."""

from datetime import timedelta

import psycopg
import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from bankcore.messaging import outbox
from bankcore.messaging.models import Event
from bankcore.messaging.outbox import NewEvent
from bankcore.messaging.relay import ASLEEP_LOCK
from bankcore.topology import RELAY_WAKE_CHANNEL

pytestmark = pytest.mark.django_db


def run(sql, *parameters):
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)


def test_events_are_recorded_in_order_with_what_they_say():
    later = timezone.now() + timedelta(hours=1)

    outbox.record(
        [
            NewEvent("transfer.accepted", "a", "1", {"reason": "ünï"}, request_id="req", actor="user:7"),
            NewEvent("transfer.posted", "b", "2", due_at=later),
        ]
    )

    first, second = Event.objects.order_by("id")
    assert (first.type, first.partition_key, first.subject, first.data) == (
        "transfer.accepted", "a", "1", {"reason": "ünï"},
    )  # fmt: skip
    assert (first.request_id, first.actor, first.attempt, first.published_at) == ("req", "user:7", 0, None)
    assert first.due_at == first.created_at
    assert (second.subject, second.data, second.due_at, second.request_id) == ("2", {}, later, "")


def test_any_number_of_events_is_one_statement_and_none_is_no_statement(statements):
    outbox.record([])
    assert statements == []

    outbox.record([NewEvent("transfer.posted", "k", str(i)) for i in range(200)])

    assert len(statements) == 1
    assert list(Event.objects.order_by("id").values_list("subject", flat=True)) == [str(i) for i in range(200)]


def test_events_vanish_with_the_transaction_that_wrote_them():
    with transaction.atomic():
        outbox.record([NewEvent("transfer.posted", "k", "1")])
        transaction.set_rollback(True)

    assert Event.objects.count() == 0


def test_defer_makes_the_newest_event_of_the_types_due_again_later():
    outbox.record([NewEvent(t, "k", "1") for t in ("transfer.approved", "transfer.approved", "transfer.posted")])
    outbox.record([NewEvent("transfer.approved", "k", "2")])
    Event.objects.update(published_at=timezone.now())
    older, newest, other, stranger = Event.objects.order_by("id")

    assert outbox.defer(["transfer.approved"], "1", 60) is True

    newest.refresh_from_db()
    assert (newest.published_at, newest.attempt) == (None, 1)
    assert newest.due_at > timezone.now() + timedelta(seconds=30)
    for untouched in (older, other, stranger):
        untouched.refresh_from_db()
        assert untouched.attempt == 0
        assert untouched.published_at is not None


def test_attempts_counts_how_often_an_event_was_deferred():
    outbox.record([NewEvent("transfer.approved", "k", "1")])
    for _ in range(3):
        outbox.defer(["transfer.approved"], "1", 0)

    assert outbox.attempts(["transfer.approved"], "1") == 3
    assert outbox.attempts(["transfer.accepted"], "1") == 0


def test_what_was_never_told_cannot_be_deferred():
    assert outbox.defer(["transfer.approved"], "1", 0) is False
    assert outbox.attempts(["transfer.approved"], "1") == 0


@pytest.mark.parametrize(
    "column", ["id", "type", "partition_key", "subject", "data", "request_id", "actor", "created_at"]
)
def test_what_an_event_says_never_changes(column):
    outbox.record([NewEvent("transfer.posted", "k", "1")])
    before = Event.objects.values().get()

    with pytest.raises(IntegrityError, match="never changed or removed"), transaction.atomic():
        run(f"UPDATE messaging_event SET {column} = NULL")  # noqa: S608

    assert Event.objects.values().get() == before


@pytest.mark.parametrize("statement", ["DELETE FROM messaging_event", "TRUNCATE messaging_event"])
def test_an_event_never_goes(statement):
    outbox.record([NewEvent("transfer.posted", "k", "1")])

    with pytest.raises(IntegrityError, match="never changed or removed"), transaction.atomic():
        run(statement)

    assert Event.objects.count() == 1


@pytest.fixture
def listener(transactional_db):
    """A session that listens as the relay does."""
    parameters = connection.get_connection_params()
    parameters.pop("cursor_factory", None)
    parameters.pop("context", None)
    parameters.pop("prepare_threshold", None)
    with psycopg.connect(**parameters, autocommit=True) as session:
        session.execute(f"LISTEN {RELAY_WAKE_CHANNEL}")
        yield session


def first_heard(session):
    """The first notification; one of our own, sent last, ends the wait."""
    run("SELECT pg_notify(%s, 'sent by the test')", RELAY_WAKE_CHANNEL)
    return next(session.notifies(timeout=10, stop_after=1)).payload


def fall_asleep(session):
    assert session.execute("SELECT pg_try_advisory_lock(%s)", (ASLEEP_LOCK,)).fetchone() == (True,)


@pytest.mark.django_db(transaction=True)
def test_a_new_event_wakes_a_relay_that_sleeps(listener):
    fall_asleep(listener)

    outbox.record([NewEvent("transfer.posted", "k", "1")])

    assert first_heard(listener) == ""


@pytest.mark.django_db(transaction=True)
def test_a_deferred_event_wakes_a_relay_that_sleeps(listener):
    outbox.record([NewEvent("transfer.approved", "k", "1")])
    fall_asleep(listener)

    outbox.defer(["transfer.approved"], "1", 0)

    assert first_heard(listener) == ""


@pytest.mark.django_db(transaction=True)
def test_a_relay_that_is_awake_is_not_notified(listener):
    outbox.record([NewEvent("transfer.posted", "k", "1")])

    assert first_heard(listener) == "sent by the test"


@pytest.mark.django_db(transaction=True)
def test_marking_an_event_wakes_nobody(listener):
    outbox.record([NewEvent("transfer.posted", "k", "1")])
    fall_asleep(listener)

    Event.objects.update(published_at=timezone.now())

    assert first_heard(listener) == "sent by the test"


@pytest.mark.django_db(transaction=True)
def test_a_relay_cannot_fall_asleep_between_a_write_and_its_commit(listener):
    with transaction.atomic():
        outbox.record([NewEvent("transfer.posted", "k", "1")])
        row = listener.execute("SELECT pg_try_advisory_lock(%s)", (ASLEEP_LOCK,)).fetchone()

    assert row == (False,)
    fall_asleep(listener)
