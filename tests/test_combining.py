"""Threads with the same kind of work share it: each gets its own result, and nobody another's error."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from bankcore import combining
from bankcore.combining import PACE_TIMES, Combiner


class Work:
    """Doubles numbers, slowly; refuses a whole lot that has a zero in it."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.lots: list[list[int]] = []
        self.at_once = 0

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.at_once += 1
        assert len(items) == 1 or self.at_once == 1
        self.lots.append(list(items))
        time.sleep(self.seconds)
        self.at_once -= 1
        if 0 in items:
            raise ValueError("zero")
        return [2 * item for item in items]


def test_a_lone_item_goes_at_once_and_alone() -> None:
    work = Work()

    assert Combiner(work, lot_max=10).submit(21) == 42
    assert work.lots == [[21]]


def test_what_arrives_meanwhile_is_the_next_lot_and_each_gets_its_own_result() -> None:
    work = Work(seconds=0.05)
    combiner = Combiner(work, lot_max=10)

    with ThreadPoolExecutor(25) as pool:
        results = list(pool.map(combiner.submit, range(1, 26)))

    assert results == [2 * item for item in range(1, 26)]
    assert sorted(item for lot in work.lots for item in lot) == list(range(1, 26))
    assert len(work.lots) < 25
    assert max(map(len, work.lots)) <= 10


def test_one_items_error_reaches_no_other() -> None:
    work = Work(seconds=0.02)
    combiner = Combiner(work, lot_max=10)

    def submit(item: int) -> int | str:
        try:
            return combiner.submit(item)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(submit, range(12)))

    assert results == ["zero", *(2 * item for item in range(1, 12))]


def test_an_error_alone_is_raised_once() -> None:
    work = Work()
    combiner = Combiner(work, lot_max=10)

    with pytest.raises(ValueError, match="zero"):
        combiner.submit(0)

    assert work.lots == [[0]]
    assert combiner.submit(1) == 2


def test_a_leader_that_is_torn_away_leaves_nobody_waiting() -> None:
    """Whatever ends the leader's turn, those behind it go on by themselves."""
    began, gate = threading.Event(), threading.Event()
    turns: list[int] = []

    def work(items: Sequence[int]) -> list[int]:
        turns.append(len(items))
        if len(turns) == 1:
            began.set()
            gate.wait(10)
            raise SystemExit
        return list(items)

    combiner = Combiner(work, lot_max=10)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(combiner.submit, 1)
        began.wait(10)
        others = [pool.submit(combiner.submit, item) for item in (2, 3)]
        time.sleep(0.05)
        gate.set()
        assert [other.result(10) for other in others] == [2, 3]
        assert isinstance(first.exception(10), SystemExit)


class Clock:
    """A clock that goes on only while somebody sleeps by it, and writes down for how long."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(combining, "time", clock)
    return clock


def test_who_sends_one_by_one_is_never_put_off(clock: Clock) -> None:
    def work(items: Sequence[int]) -> list[int]:
        clock.now += 0.001
        return list(items)

    combiner = Combiner(work, lot_max=10)
    for item in range(50):
        combiner.submit(item)

    assert not clock.slept


def test_a_lot_soon_after_one_of_several_is_put_off_and_takes_along_who_comes_meanwhile(clock: Clock) -> None:
    began, gate = threading.Event(), threading.Event()
    lots: list[int] = []

    def work(items: Sequence[int]) -> list[int]:
        lots.append(len(items))
        clock.now += 0.001
        if len(lots) == 1:
            began.set()
            gate.wait(10)
        return list(items)

    combiner = Combiner(work, lot_max=10)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(combiner.submit, 1)
        began.wait(10)
        others = [pool.submit(combiner.submit, item) for item in (2, 3)]
        while len(combiner._waiting) < 2:
            time.sleep(0.001)
        gate.set()
        assert [future.result(10) for future in (first, *others)] == [1, 2, 3]
    assert lots == [1, 2]
    assert not clock.slept

    combiner.submit(4)

    # Each lot took a millisecond, of which the second counts as little as the first.
    usual = 0.001 * (1 - 0.8**2)
    assert clock.slept == pytest.approx([usual * PACE_TIMES - 0.001])
    clock.now += 1
    combiner.submit(5)
    assert len(clock.slept) == 1
