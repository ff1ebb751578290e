"""The sweep: what was handed to the broker and never worked on is due again; nothing else is touched."""

from datetime import date, timedelta
from typing import Any

import pytest
from django.utils import timezone

from bankcore.messaging.models import Event
from transfers import sweep
from transfers.models import Transfer
from transfers.sweep import sweep_stuck

pytestmark = pytest.mark.django_db

LONG_AGO = timedelta(hours=1)


@pytest.fixture
def handed_over(accounts: Any, make_transfer: Any) -> Any:
    """Make a transfer whose event went to the broker that long ago, and return the event."""
    alice, bob = accounts(1000, 0)

    def make(status: str, ago: timedelta, **fields: Any) -> Event:
        transfer = make_transfer(alice, bob, 1, status, **fields)
        Transfer.objects.filter(pk=transfer.pk).update(updated_at=timezone.now() - ago)
        Event.objects.filter(subject=str(transfer.pk)).update(published_at=timezone.now() - ago)
        return Event.objects.get(subject=str(transfer.pk))

    return make


@pytest.mark.parametrize("status", ["accepted", "approved"])
def test_a_stuck_transfers_event_is_due_again(handed_over: Any, status: str) -> None:
    event = handed_over(status, LONG_AGO)

    assert sweep_stuck() == 1

    event.refresh_from_db()
    assert (event.published_at, event.attempt) == (None, 0)
    # The relay owes it now; a second sweep has nothing to add.
    assert sweep_stuck() == 0


@pytest.mark.parametrize(
    ("status", "ago", "fields"),
    [
        ("accepted", timedelta(seconds=1), {}),
        ("in_review", LONG_AGO, {}),
        ("rejected", LONG_AGO, {}),
        ("scheduled", LONG_AGO, {"execute_on": date(2999, 1, 1)}),
    ],
)
def test_what_is_not_stuck_is_left_alone(handed_over: Any, status: str, ago: timedelta, fields: Any) -> None:
    event = handed_over(status, ago, **fields)

    assert sweep_stuck() == 0

    event.refresh_from_db()
    assert event.published_at is not None


def test_what_was_handed_over_just_now_is_on_its_way_however_old_the_transfer_is(handed_over: Any) -> None:
    """After an outage of the broker everything is old, and none of it is stuck."""
    event = handed_over("accepted", LONG_AGO)
    Event.objects.filter(pk=event.pk).update(published_at=timezone.now() - timedelta(seconds=1))

    assert sweep_stuck() == 0

    event.refresh_from_db()
    assert event.published_at is not None


@pytest.mark.parametrize("waits", ["owed", "just published", "replayed for later"])
def test_what_cannot_be_swept_yet_does_not_keep_others_waiting(handed_over: Any, waits: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(sweep, "LOT", 2)
    before = [handed_over("approved", LONG_AGO) for _ in range(3)]
    stuck = handed_over("approved", LONG_AGO)
    for event in before:
        if waits == "replayed for later":
            later = timezone.now() + LONG_AGO
            Event.objects.create(type=event.type, partition_key="a", subject=event.subject, due_at=later)
        else:
            published_at = None if waits == "owed" else timezone.now()
            Event.objects.filter(pk=event.pk).update(published_at=published_at)

    assert sweep_stuck() == 1

    stuck.refresh_from_db()
    assert stuck.published_at is None


def test_one_run_takes_several_lots_and_not_too_many(handed_over: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(sweep, "LOT", 2)
    monkeypatch.setattr(sweep, "SWEPT_MAX", 6)
    for _ in range(7):
        handed_over("accepted", LONG_AGO)

    assert [sweep_stuck(), sweep_stuck(), sweep_stuck()] == [6, 1, 0]
