"""What the gate reads: how many wait in front of each stage, and how many each stage has done."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from transfers import backlog
from transfers.backlog import Backlog
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
