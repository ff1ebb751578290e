"""What comes at the same time shares the work: each gets its own result, a lone one never waits."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from bankcore import combining
from bankcore.combining import PACE_TIMES, Combiner


class Clock:
    """A clock that goes on only while somebody sleeps by it, and writes down for how long."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        self.meanwhile()
        await asyncio.sleep(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(combining, "time", clock)
    monkeypatch.setattr(combining, "sleep", clock.sleep)
    return clock


class Work:
    """Doubles numbers, in a millisecond of the clock's; refuses a whole lot that has a zero in it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.lots: list[list[int]] = []
        self.at_once = 0

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.at_once += 1
        assert self.at_once == 1
        self.lots.append(list(items))
        # Others come meanwhile.
        for _ in range(5):
            await asyncio.sleep(0)
        self.clock.now += 0.001
        self.at_once -= 1
        if 0 in items:
            raise ValueError("zero")
        return [2 * item for item in items]


def test_what_arrives_meanwhile_is_the_next_lot_and_each_gets_its_own_result(clock: Clock) -> None:
    work = Work(clock)

    async def run_all() -> list[int]:
        combiner = Combiner(work, lot_max=10)
        return await asyncio.gather(*(combiner.run(item) for item in range(1, 26)))

    assert asyncio.run(run_all()) == [2 * item for item in range(1, 26)]
    assert [item for lot in work.lots for item in lot] == list(range(1, 26))
    assert max(map(len, work.lots)) == 10


def test_a_lots_error_ends_nothing_but_the_lot(clock: Clock) -> None:
    work = Work(clock)

    async def run_all() -> None:
        combiner = Combiner(work, lot_max=2)
        results = await asyncio.gather(*(combiner.run(item) for item in (0, 1, 2)), return_exceptions=True)
        assert [str(result) for result in results] == ["zero", "zero", "4"]
        assert await combiner.run(3) == 6

    asyncio.run(run_all())


def test_whoever_gives_up_takes_nobody_along(clock: Clock) -> None:
    work = Work(clock)

    async def run_all() -> None:
        combiner = Combiner(work, lot_max=10)
        gone, stays = (asyncio.create_task(combiner.run(item)) for item in (1, 2))
        await asyncio.sleep(0)
        gone.cancel()
        assert await stays == 4
        assert await combiner.run(3) == 6

    asyncio.run(run_all())


def test_who_sends_one_by_one_is_never_put_off(clock: Clock) -> None:
    work = Work(clock)

    async def run_all() -> None:
        combiner = Combiner(work, lot_max=10)
        for item in range(1, 51):
            await combiner.run(item)

    asyncio.run(run_all())

    assert work.lots == [[item] for item in range(1, 51)]
    assert not clock.slept


def test_a_lot_soon_after_one_of_several_is_put_off_and_takes_along_who_comes_meanwhile(clock: Clock) -> None:
    work = Work(clock)

    async def run_all() -> None:
        combiner = Combiner(work, lot_max=10)
        await asyncio.gather(combiner.run(1), combiner.run(2))
        await combiner.run(3)
        assert not clock.slept
        late = list[asyncio.Task[int]]()
        clock.meanwhile = lambda: late.append(asyncio.create_task(combiner.run(5)))
        await combiner.run(4)
        assert await late[0] == 10
        # A while later there is no need.
        clock.now += 1
        await combiner.run(6)

    asyncio.run(run_all())

    assert work.lots == [[1, 2], [3], [4, 5], [6]]
    # Each lot took a millisecond, of which the second counts as little as the first.
    usual = 0.001 * (1 - 0.8**2)
    assert clock.slept == pytest.approx([usual * PACE_TIMES - 0.001])
