"""Whole messages at the dead-letter desk: read, replayed as what is owed, or only discarded."""

import threading
from datetime import UTC, datetime

import pytest
from backports import zstd

from bankcore.database import open_session
from bankcore.messaging import dead_letters, desk, outbox
from bankcore.messaging.errors import (
    LetterResolved,
    NotReplayable,
)
from bankcore.messaging.forecasts import foresee
from bankcore.messaging.models import DeadLetter, Event
from bankcore.messaging.relay import Relay
from tests.messaging.desk_view import POST, owed

pytestmark = pytest.mark.django_db


def message(body, task=POST, **headers):
    kept = {"task": task, "content_type": "application/json", "x-death": [{"queue": "posting-0"}], **headers}
    return DeadLetter.objects.create(task=str(task), cause="undeliverable: rejected", headers=kept, body=body)


def call(*ids):
    return ('[[["' + '","'.join(ids) + '"]], {}, {}]').encode()


@pytest.fixture
def sent(accounts, make_transfer):
    """A transfer whose event the broker has taken."""
    transfer = make_transfer(*accounts(1000, 0), 300)
    outbox.record([outbox.NewEvent("transfer.accepted", "p", str(transfer.pk))])
    Event.objects.update(published_at=datetime.now(UTC))
    return transfer


def test_a_message_is_replayed_by_making_its_events_due_again(sent, olga, settings):
    letter = message(call(str(sent.pk)))

    (forecast,) = foresee([letter.pk])
    assert (forecast.would, owed()) == ("be_sent_again", [])
    queue = settings.TOPOLOGY.queue_of(settings.TOPOLOGY_ROUTES["transfer.approved"], str(sent.debit_account_id))
    assert forecast.detail == f"1 event(s) to {queue}, in new messages"
    desk.replay(letter.pk, actor=olga)

    assert owed() == [("transfer.approved", str(sent.pk), 0)]
    with pytest.raises(LetterResolved):
        desk.replay(letter.pk, actor=olga)


def test_a_compressed_message_is_read(sent, olga):
    letter = message(zstd.compress(call(str(sent.pk))), compression="application/zstd")
    first_release = message(call(str(sent.pk)), compression="application/zstd")

    assert [f.would for f in foresee([letter.pk, first_release.pk])] == ["be_sent_again"] * 2


def test_a_message_of_event_ids_is_replayed(sent, olga):
    event = Event.objects.filter(subject=str(sent.pk)).first()
    outbox.record([outbox.NewEvent("transfer.posted", "p", str(sent.pk))])
    told = Event.objects.get(type="transfer.posted")
    Event.objects.update(published_at=datetime.now(UTC))
    letter = message(f"[[[{told.pk}, {event.pk}, 999999]], {{}}, {{}}]".encode(), "notifications.dispatch")

    desk.replay(letter.pk, actor=olga)

    assert owed() == [("transfer.posted", str(sent.pk), 0)]


def _bomb():
    return zstd.compress(b"[" + b" " * 50_000_000)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: message(b"\xff\x00"), "not JSON in UTF-8"),
        (lambda: message(b"[" * 200_000), "not JSON in UTF-8"),
        (lambda: message(b"{}"), "not a call"),
        (lambda: message(b"[[[]], {}, {}]"), "not a call"),
        (lambda: message(call("a\\u0000b")), "which is none"),
        (lambda: message(b"[[[1.5]], {}, {}]"), "which is none"),
        (lambda: message(b"[[[99999999999999999999]], {}, {}]"), "which is none"),
        (lambda: message(call("1"), "transfers.nonsense"), "No event asks for the task"),
        (lambda: message(call("1"), 7), "name no task"),
        (lambda: message(call("1"), content_type="application/x-python-serialize"), "content type"),
        (lambda: message(b"x", compression="application/zstd"), "cannot be decompressed"),
        (lambda: message(b"x", compression="application/x-nope"), "none that is used here"),
        (lambda: message(_bomb(), compression="application/zstd"), "Decompressed"),
        (lambda: message(b"[" * 300_000), "300,000 bytes"),
        (lambda: message(call("0190b3a0-0000-7000-8000-000000000000")), "none of its ids is known"),
    ],
)
def test_what_can_never_be_read_says_why_and_can_only_be_discarded(make, why, olga):
    letter = make()

    (forecast,) = foresee([letter.pk])
    with pytest.raises(NotReplayable, match=why):
        desk.replay(letter.pk, actor=olga)

    assert (forecast.would, forecast.reason) == ("nothing", "not_replayable")
    assert why in forecast.detail
    assert owed() == []
    desk.discard(letter.pk, reason="Rubbish.", actor=olga)
    letter.refresh_from_db()
    assert (letter.state, bytes(letter.body) != b"") == ("discarded", True)


def test_work_without_a_room_is_due_again(olga):
    outbox.record([outbox.NewEvent("transfer.posted", "n", "7")])
    Event.objects.update(published_at=datetime.now(UTC))
    subject = str(Event.objects.get().pk)
    letter = dead_letters.park_work(task="notifications.dispatch", subject=subject, error=ValueError(), attempts=9)

    desk.replay(letter.pk, actor=olga)

    assert owed() == [("transfer.posted", "7", 0)]


@pytest.mark.django_db(transaction=True)
def test_a_replayed_message_is_a_new_one(broker, sent, olga, settings):
    """Nothing of the dead message travels on: not its headers, not its ids."""
    letter = message(call(str(sent.pk)), id="the-old-id", retries=7, expires="2020-01-01T00:00:00Z")
    desk.replay(letter.pk, actor=olga)
    stop = threading.Event()
    stop.set()
    relay = Relay(stop)

    with open_session("a test's relay") as database:
        relay.step(database)
    relay._drop_publisher()

    queue = settings.TOPOLOGY.queue_of(settings.TOPOLOGY_ROUTES["transfer.approved"], str(sent.debit_account_id))
    (fresh,) = broker.take(queue)
    assert (fresh.headers["task"], fresh.decode()[0][0]) == (POST, [str(sent.pk)])
    assert (fresh.headers["id"] != "the-old-id", fresh.headers["retries"], fresh.headers.get("expires")) == (
        True,
        0,
        None,
    )
    assert [name for name in fresh.headers if name.startswith("x-")] == []
    assert owed() == []
