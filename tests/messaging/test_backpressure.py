"""The gate: what it lets in, whom it turns away first, and that it closes when it cannot see."""

import os
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from django.conf import settings as django_settings

from bankcore.messaging import backpressure
from bankcore.messaging.backpressure import GRACE_SECONDS, Gate, Measured, Overloaded, Priority
from bankcore.messaging.shares import Shares, greedy

REAL_REDIS_URL = os.environ.get("REDIS_URL", "")


@pytest.fixture(autouse=True)
def _settings(settings: Any) -> None:
    settings.PROMISE_SECONDS = 30
    settings.BACKLOG_MAX = 50_000
    settings.OUTAGE_ACCEPT_SECONDS = 600
    settings.DRAIN_RATE_START = 1000
    settings.INTAKE_COST = 0.0
    settings.REDIS_URL = "redis://127.0.0.1:1/0"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [1_000_000.0]

    def go_on(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return go_on


@pytest.fixture
def gate_with(clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Gate]:
    monkeypatch.setattr(Gate, "_start", lambda self: None)

    def make(waiting: int = 0, *, done: int = 0) -> Gate:
        state = {"waiting": waiting, "done": done, "away": False}

        def probe() -> Measured:
            waits, did = {"posting": state["waiting"]}, {"posting": state["done"]}
            return Measured(waits, did, broker_is_away=state["away"])

        gate = Gate(probe=probe)
        gate.state = state  # type: ignore[attr-defined]
        gate.refresh()
        return gate

    return make


def refused(gate: Gate, priority: Priority = Priority.INTERACTIVE, *, rows: int = 1, client: str = "shop") -> int:
    with pytest.raises(Overloaded) as caught:
        gate.admit(client, rows, priority)
    assert caught.value.retryable
    assert caught.value.http_status == 503
    assert caught.value.retry_after is not None
    return caught.value.retry_after


def test_work_within_the_promise_is_let_in(gate_with: Callable[..., Gate]) -> None:
    gate_with(30_000).admit("shop", 1, Priority.INTERACTIVE)


def test_work_beyond_the_promise_is_told_when_to_come_again(gate_with: Callable[..., Gate]) -> None:
    # 50,000 at 1,000 a second are done in 50 s, which is 20 s more than promised.
    assert 20 <= refused(gate_with(50_000)) <= 22


@pytest.mark.parametrize(("priority", "most"), [("INTERACTIVE", 30_000), ("BATCH", 24_000), ("BULK", 18_000)])
def test_what_a_person_waits_for_is_turned_away_last(gate_with: Callable[..., Gate], priority: str, most: int) -> None:
    gate_with(most).admit("shop", 1, Priority[priority])
    assert refused(gate_with(most + 100), Priority[priority]) == 1


def test_each_kind_of_work_is_told_when_its_own_wait_is_bearable(gate_with: Callable[..., Gate]) -> None:
    """Before it is read, what a request is told is what it would be told behind it: 40,000 are done in 40 s."""
    gate = gate_with(40_000)

    for priority, seconds in ((Priority.INTERACTIVE, 10), (Priority.BATCH, 16), (Priority.BULK, 22)):
        assert seconds <= (gate.turned_away(priority) or 0) <= seconds * 1.1 + 1
        assert seconds <= refused(gate, priority) <= seconds * 1.1 + 1
    gate.state["waiting"] = 20_000  # type: ignore[attr-defined]
    gate.refresh()
    assert [gate.turned_away(priority) is None for priority in Priority] == [True, True, False]


def test_when_to_come_again_counts_on_the_rate_without_intake(gate_with: Callable[..., Gate], settings: Any) -> None:
    settings.INTAKE_COST = 0.25
    # As long as more comes in, 1,000 a second are done, and 1,250 when nothing does.
    assert 16 <= refused(gate_with(50_000)) <= 18


@pytest.mark.parametrize(
    ("rows", "size", "expected"),
    [
        (1000, 200_000, "BATCH"),
        (1001, 200_000, "BULK"),
        (500, 1_000_000, "BULK"),
        (0, 100_000, "BATCH"),
        (0, 300_000, "BULK"),
    ],
)
def test_what_kind_of_work_a_batch_is(rows: int, size: int, expected: str) -> None:
    assert backpressure.priority_of(rows, size) is Priority[expected]


def test_a_full_batch_is_let_in_however_slow_the_bank_is_when_nothing_waits(gate_with: Callable[..., Gate]) -> None:
    gate_with(0).admit("shop", 10_000, Priority.BULK)


def test_what_was_let_in_since_the_last_reading_counts(gate_with: Callable[..., Gate]) -> None:
    gate = gate_with(0)
    for _ in range(4):
        gate.admit("shop", 10_000, Priority.INTERACTIVE)

    assert 10 <= refused(gate) <= 11
    gate.refresh()
    gate.admit("shop", 1, Priority.INTERACTIVE)


def test_backpressure_fails_closed(gate_with: Callable[..., Gate], clock: Callable[[float], None]) -> None:
    """A rival's failing: a gate that cannot measure and waves everything through."""
    gate = gate_with(0)
    gate.probe = None

    clock(GRACE_SECONDS - 0.1)
    gate.admit("shop", 1, Priority.INTERACTIVE)
    clock(0.2)

    assert refused(gate) in (5, 6)


def test_a_gate_that_has_never_seen_anything_closes_after_the_grace(
    clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gate, "_start", lambda self: None)
    gate = Gate()

    gate.admit("shop", 1, Priority.INTERACTIVE)
    clock(GRACE_SECONDS + 0.1)

    refused(gate)


def _stalled(gate: Gate, clock: Callable[[float], None], waiting: int) -> None:
    for _ in range(4):
        clock(1)
        gate.state["waiting"] = waiting  # type: ignore[attr-defined]
        gate.refresh()


def test_an_outage_is_bridged_up_to_the_largest_backlog(
    gate_with: Callable[..., Gate], clock: Callable[[float], None]
) -> None:
    gate = gate_with(0)

    _stalled(gate, clock, 49_998)

    # 50 seconds of work: beyond the promise, but nobody could keep it now.
    gate.admit("shop", 1, Priority.INTERACTIVE)
    gate.admit("shop", 1, Priority.BULK)
    assert refused(gate) >= backpressure.OUTAGE_RETRY_SECONDS


def test_an_outage_is_bridged_for_a_bounded_time(
    gate_with: Callable[..., Gate], clock: Callable[[float], None]
) -> None:
    gate = gate_with(0)
    gate.admit("shop", 1, Priority.INTERACTIVE)
    _stalled(gate, clock, 5000)

    for _ in range(12):
        clock(49.5)
        gate.refresh()
        gate.admit("shop", 1, Priority.INTERACTIVE)
    clock(10)
    gate.refresh()

    refused(gate)


def test_an_outage_of_the_broker_is_not_first_taken_for_slowness(
    gate_with: Callable[..., Gate], clock: Callable[[float], None]
) -> None:
    """Ten thousand a second come: in the two seconds after which a stage stands still it would be too late."""
    gate = gate_with(29_000)
    clock(0.25)
    gate.state.update(waiting=49_998, away=True)  # type: ignore[attr-defined]
    gate.refresh()

    gate.admit("shop", 1, Priority.INTERACTIVE)
    assert gate.turned_away(Priority.BULK) is None
    gate.admit("shop", 1, Priority.BULK)
    assert refused(gate) >= backpressure.OUTAGE_RETRY_SECONDS

    # The broker is back, and the stages have not stood still for long: what waits is 50 seconds of work.
    gate.state["away"] = False  # type: ignore[attr-defined]
    gate.refresh()
    assert 20 <= refused(gate) <= 22


def test_an_outage_of_the_broker_is_bridged_for_a_bounded_time(
    gate_with: Callable[..., Gate], clock: Callable[[float], None]
) -> None:
    gate = gate_with(5000)
    gate.state["away"] = True  # type: ignore[attr-defined]
    gate.admit("shop", 1, Priority.INTERACTIVE)
    gate.refresh()

    for _ in range(12):
        clock(49.5)
        gate.refresh()
        gate.admit("shop", 1, Priority.INTERACTIVE)
    clock(10)
    gate.refresh()

    refused(gate)


def test_a_few_stuck_transfers_do_not_close_the_bank(
    gate_with: Callable[..., Gate], clock: Callable[[float], None]
) -> None:
    gate = gate_with(0)
    gate.admit("shop", 1, Priority.INTERACTIVE)
    _stalled(gate, clock, 3)
    for _ in range(15):
        clock(50)
        gate.refresh()
        gate.admit("shop", 1, Priority.INTERACTIVE)
    refused(gate)

    # The one that was let in got through, so it was no outage.
    gate.state["done"] = 1  # type: ignore[attr-defined]
    gate.refresh()
    gate.admit("shop", 1, Priority.INTERACTIVE)


def test_a_long_quiet_time_is_no_outage(gate_with: Callable[..., Gate], clock: Callable[[float], None]) -> None:
    gate = gate_with(0)
    _stalled(gate, clock, 5000)
    clock(8 * 3600)
    gate.refresh()

    for _ in range(3):
        gate.admit("shop", 1, Priority.INTERACTIVE)


def test_nobody_is_told_to_wait_for_an_hour(gate_with: Callable[..., Gate], clock: Callable[[float], None]) -> None:
    """A machine on its knees, for ten seconds: a rate near zero is true then, and says nothing of the next hour."""
    gate = gate_with(20_000)
    for _ in range(40):
        clock(0.25)
        gate.state["done"] += 1  # type: ignore[attr-defined]
        gate.refresh()

    assert 60 < refused(gate) <= django_settings.RETRY_AFTER_SECONDS_MAX
    assert gate.turned_away(Priority.INTERACTIVE) == pytest.approx(django_settings.RETRY_AFTER_SECONDS_MAX, rel=0.15)

    # What is told is what waits, by what was measured lately.
    for _ in range(8):
        clock(0.25)
        gate.state["done"] += 500  # type: ignore[attr-defined]
        gate.state["waiting"] -= 500  # type: ignore[attr-defined]
        gate.refresh()
    gate.admit("shop", 1, Priority.INTERACTIVE)


def test_a_killed_worker_closes_the_gate_to_no_batch(
    gate_with: Callable[..., Gate], clock: Callable[[float], None]
) -> None:
    gate = gate_with(0)
    for number in range(8):
        gate.admit("shop", 1000, Priority.BATCH)
        gate.state["waiting"] = 1000  # type: ignore[attr-defined]
        for _ in range(7):
            clock(0.25)
            gate.refresh()
            gate.check("shop", 1000, Priority.BATCH)
        gate.state.update(waiting=0, done=1000 * (number + 1))  # type: ignore[attr-defined]
        clock(0.25)
        gate.refresh()


def test_after_an_outage_the_promise_counts_again(
    gate_with: Callable[..., Gate], clock: Callable[[float], None]
) -> None:
    gate = gate_with(0)
    _stalled(gate, clock, 45_000)

    gate.state.update(waiting=44_000, done=1000)  # type: ignore[attr-defined]
    gate.refresh()

    assert 14 <= refused(gate) <= 16


def test_a_client_with_more_than_its_share_is_turned_away_first(gate_with: Callable[..., Gate]) -> None:
    gate = gate_with(0)
    for _ in range(9):
        gate.admit("loud", 100, Priority.INTERACTIVE)
    gate.admit("quiet", 100, Priority.INTERACTIVE)
    gate.state["waiting"] = 22_000  # type: ignore[attr-defined]
    gate.refresh()

    refused(gate, client="loud")
    gate.admit("quiet", 1, Priority.INTERACTIVE)


def test_a_client_alone_has_all_there_is(gate_with: Callable[..., Gate]) -> None:
    gate = gate_with(0)
    gate.admit("loud", 100, Priority.INTERACTIVE)
    gate.state["waiting"] = 29_000  # type: ignore[attr-defined]
    gate.refresh()

    gate.admit("loud", 1, Priority.INTERACTIVE)


@pytest.mark.parametrize(
    ("counts", "weights", "expected"),
    [
        ({}, {}, set()),
        ({"a": 100}, {}, set()),
        ({"a": 50, "b": 50}, {}, set()),
        ({"a": 54, "b": 46}, {}, set()),
        ({"a": 60, "b": 40}, {}, {"a"}),
        ({"a": 100, "b": 0}, {}, {"a"}),
        ({"a": 60, "b": 40}, {"a": 2}, {"b"}),
        ({"a": 66, "b": 34}, {"a": 2}, set()),
        ({"a": 0, "b": 0}, {}, set()),
    ],
)
def test_who_is_above_their_share(counts: dict[str, int], weights: dict[str, int], expected: set[str]) -> None:
    assert greedy(counts, weights) == expected


def test_shares_are_counted_over_the_whole_cluster(settings: Any) -> None:
    settings.REDIS_URL = REAL_REDIS_URL
    one, other = Shares(), Shares()

    one.count("shares-loud", 90)
    other.count("shares-quiet", 10)
    one.refresh(cluster_wide=True)
    other.refresh(cluster_wide=True)

    assert other.is_greedy("shares-loud")
    assert not other.is_greedy("shares-quiet")


def test_what_was_counted_while_redis_was_away_is_told_later(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bankcore.messaging.shares._KEY", f"bankcore:admitted:{uuid4()}:{{}}")
    one, other, names = Shares(), Shares(), [f"shares-{uuid4()}" for _ in range(2)]
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    one.count(names[0], 90)
    one.refresh(cluster_wide=True)
    one._redis, one._retry_at, settings.REDIS_URL = None, 0.0, REAL_REDIS_URL

    one.refresh(cluster_wide=True)
    other.count(names[1], 1)
    other.refresh(cluster_wide=True)

    assert other.is_greedy(names[0])


def test_without_redis_each_process_counts_its_own(caplog: pytest.LogCaptureFixture) -> None:
    shares = Shares()
    shares.count("loud", 90)
    shares.count("quiet", 10)

    shares.refresh(cluster_wide=True)

    assert shares.is_greedy("loud")
    assert "Redis is away" in caplog.text
