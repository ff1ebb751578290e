"""What the gate reads: how many wait in front of each stage, and how many each stage has done."""

import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.utils import timezone

from bankcore.messaging.backpressure import Gate, Priority
from transfers import backlog
from transfers.backlog import Backlog
from transfers.models import DeniedAccount, Transfer
from transfers.posting import post_transfers
from transfers.risk.screening import check_risk

pytestmark = pytest.mark.django_db


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let two seconds pass at once."""
    ahead = [0.0]
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + ahead[0])

    def go_on() -> None:
        ahead[0] += 2.0

    return go_on


def test_posting_has_the_work_of_risk_in_front_of_it(accounts: Any, make_transfer: Any) -> None:
    alice, bob = accounts(1000, 0)
    for status in ("accepted", "accepted", "approved", "in_review", "parked"):
        make_transfer(alice, bob, status=status)

    assert Backlog().read().waiting == {"risk": 2, "posting": 3}


def test_what_was_scheduled_waits_from_its_day_on(accounts: Any, make_transfer: Any) -> None:
    alice, bob = accounts(1000, 0)
    today = timezone.now().date()
    for days in (0, 0, 1):
        make_transfer(alice, bob, status="scheduled", execute_on=today + timedelta(days=days))

    assert Backlog().read().waiting == {"risk": 2, "posting": 2}


def test_what_was_done_is_counted_once_it_is_old_enough(
    accounts: Any, make_transfer: Any, later: Callable[[], None]
) -> None:
    alice, bob = accounts(250, 0)
    reader = Backlog()
    ids = [make_transfer(alice, bob, 100).id for _ in range(3)]
    reader.read()
    later()
    assert reader.read().done == {"risk": 0, "posting": 0}

    post_transfers(ids)
    reader.read()
    later()

    # Two posted and one refused for want of funds: all three are done.
    assert reader.read().done == {"risk": 0, "posting": 3}
    later()
    assert reader.read().done == {"risk": 0, "posting": 3}


def test_who_rejected_a_transfer_is_told_apart(accounts: Any, make_transfer: Any, later: Callable[[], None]) -> None:
    alice, bob, carol = accounts(250, 0, 0)
    past = timezone.now() - timedelta(seconds=1)
    DeniedAccount.objects.create(account=carol, why="court order")
    reader = Backlog()
    denied, expired = (
        make_transfer(alice, carol, 1, "accepted"),
        make_transfer(alice, bob, 1, "accepted", expires_at=past),
    )
    late = make_transfer(alice, bob, 1, "accepted", expires_at=timezone.now() + timedelta(seconds=0.3))
    poor = make_transfer(alice, bob, 1000, "accepted")
    ids = [t.id for t in (denied, expired, late, poor)]
    reader.read()
    later()
    reader.read()

    check_risk(ids)
    time.sleep(0.35)
    post_transfers(ids)
    reader.read()
    later()

    # Risk has done with all four, twice by rejecting; posting rejected two more, one of them late.
    assert reader.read().done == {"risk": 4, "posting": 4}
    assert Transfer.objects.filter(status="rejected").count() == 4


def test_a_flood_of_denials_does_not_close_the_gate(
    accounts: Any, make_transfer: Any, later: Callable[[], None], monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """More and more waits, and all that risk does is to deny: it works, and what comes will be done."""
    settings.BACKLOG_MAX = 300
    alice, carol = accounts(1000, 0)
    DeniedAccount.objects.create(account=carol, why="court order")
    gate = Gate(Backlog().read)
    waiting = deque[UUID]()
    for _ in range(6):
        waiting.extend(make_transfer(alice, carol, 1, "accepted").id for _ in range(80))
        check_risk([waiting.popleft() for _ in range(20)])
        gate.refresh()
        later()
    monkeypatch.setattr(gate, "_start", lambda: None)

    gate.admit("shop", 1, Priority.INTERACTIVE)


def test_a_backlog_beyond_the_cap_is_followed_by_what_happens(
    accounts: Any, make_transfer: Any, later: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "COUNT_MAX", 3)
    monkeypatch.setattr(backlog, "_WAITING", backlog._WAITING.replace("100000", "3"))
    alice, bob = accounts(1000, 0)
    reader = Backlog()
    ids = [make_transfer(alice, bob, status="accepted").id for _ in range(5)]
    assert reader.read().waiting == {"risk": 3, "posting": 3}
    later()
    reader.read()

    ids += [make_transfer(alice, bob, status="accepted").id for _ in range(4)]
    check_risk(ids[:2])
    post_transfers(ids[:1])
    reader.read()
    later()

    found = reader.read()
    assert found.waiting == {"risk": 5, "posting": 6}
    # The first five came before the reader had begun to count.
    assert found.taken == 4
    check_risk(ids[:8])
    post_transfers(ids[:8])
    assert reader.read().waiting == {"risk": 1, "posting": 1}


def test_a_reading_is_three_statements(accounts: Any, make_transfer: Any, statements: list[str], later: Any) -> None:
    reader = Backlog()
    reader.read()
    later()
    reader.read()
    make_transfer(*accounts(1000, 0))
    reader.read()
    later()
    statements.clear()

    reader.read()

    assert len(statements) == 3
