"""Threads with the same kind of work share it: each gets its own result, and nobody another's error."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from bankcore.combining import Combiner


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
