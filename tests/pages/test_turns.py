"""Turns of heavy requests: never too many at once, no client behind another's crowd, and none lost."""

import asyncio
import time
from typing import Any

import pytest

from bankcore.turns import CROWD, PATIENCE_TIMES, NoTurn, Turns

LONG = 30.0
LINE = 1000


async def _hold(turns: Turns, client: str, served: list[str], until: asyncio.Event) -> None:
    async with turns.turn(client):
        served.append(client)
        await until.wait()


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_no_more_run_at_once_than_there_are_turns() -> None:
    running, most = 0, 0

    async def work(turns: Turns) -> None:
        nonlocal running, most
        async with turns.turn("shop"):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

    async def all_of_them() -> None:
        turns = Turns(at_once=3, answer_seconds=LONG, line_max=LINE)
        async with asyncio.timeout(LONG):
            await asyncio.gather(*(work(turns) for _ in range(200)))

    asyncio.run(all_of_them())

    assert (running, most) == (0, 3)


def test_a_crowd_of_one_client_keeps_no_other_waiting() -> None:
    async def crowd() -> list[str]:
        turns, served, go_on = Turns(at_once=1, answer_seconds=LONG, line_max=LINE), list[str](), asyncio.Event()
        tasks = [asyncio.create_task(_hold(turns, "loud", served, go_on)) for _ in range(20)]
        await _settle()
        tasks.append(asyncio.create_task(_hold(turns, "quiet", served, go_on)))
        await _settle()
        go_on.set()
        async with asyncio.timeout(LONG):
            await asyncio.gather(*tasks)
        return served

    served = asyncio.run(crowd())

    # One of the loud was running, and one was first in line.
    assert served.index("quiet") <= 2
    assert len(served) == 21


def test_who_gets_no_turn_is_told_and_takes_none_along() -> None:
    async def try_both() -> tuple[Any, list[str]]:
        turns, served, go_on = Turns(at_once=1, answer_seconds=0.01, line_max=LINE), list[str](), asyncio.Event()
        holder = asyncio.create_task(_hold(turns, "first", served, go_on))
        await _settle()
        with pytest.raises(NoTurn) as missed:
            async with turns.turn("second"):
                served.append("second")
        go_on.set()
        await holder
        async with turns.turn("third"):
            served.append("third")
        return missed.value.seconds, served

    seconds, served = asyncio.run(try_both())

    assert seconds >= 0
    assert served == ["first", "third"]


@pytest.mark.parametrize("at_the_last_moment", [False, True])
def test_who_goes_away_takes_no_turn_along(at_the_last_moment: bool) -> None:
    async def go_away() -> list[str]:
        turns, served, go_on = Turns(at_once=1, answer_seconds=LONG, line_max=LINE), list[str](), asyncio.Event()

        async def first() -> None:
            await _hold(turns, "first", served, go_on)
            # The turn is handed over by now, and whom it is for has not noticed yet.
            gone.cancel()

        holder = asyncio.create_task(first())
        await _settle()
        gone = asyncio.create_task(_hold(turns, "gone", served, go_on))
        await _settle()
        if not at_the_last_moment:
            gone.cancel()
            await _settle()
        go_on.set()
        await asyncio.gather(holder, gone, return_exceptions=True)
        async with asyncio.timeout(5), turns.turn("last"):
            served.append("last")
        return served

    assert asyncio.run(go_away()) == ["first", "last"]


def test_few_in_line_wait_it_out_where_one_more_makes_a_crowd() -> None:
    async def line_up(clients: int) -> list[str]:
        turns, served, go_on = Turns(at_once=1, answer_seconds=0.1, line_max=LINE), list[str](), asyncio.Event()
        tasks = [asyncio.create_task(_hold(turns, str(place), served, go_on)) for place in range(1 + clients)]
        # Twice as long as a crowd waits, and a fifth of the time that a few have.
        await asyncio.sleep(0.2)
        go_on.set()
        async with asyncio.timeout(LONG):
            await asyncio.gather(*tasks, return_exceptions=True)
        return served

    assert asyncio.run(line_up(CROWD - 1)) == [str(place) for place in range(CROWD)]
    # All were told, also those who came first.
    assert asyncio.run(line_up(CROWD)) == ["0"]


def test_impatience_does_not_make_a_crowd_look_small() -> None:
    async def come_one_by_one() -> tuple[list[float], list[str]]:
        turns, served, go_on = Turns(at_once=1, answer_seconds=0.1, line_max=LINE), list[str](), asyncio.Event()
        tasks = [asyncio.create_task(_hold(turns, str(place), served, go_on)) for place in range(1 + CROWD)]
        await asyncio.sleep(0.2)
        waits = list[float]()
        for late in range(3):
            came = time.monotonic()
            with pytest.raises(NoTurn):
                await _hold(turns, f"late {late}", served, go_on)
            waits.append(time.monotonic() - came)
        # Nobody was sent away for as long as a few may wait: a lone one stays again.
        await asyncio.sleep(0.1 * PATIENCE_TIMES)
        tasks.append(asyncio.create_task(_hold(turns, "lone", served, go_on)))
        await asyncio.sleep(0.2)
        go_on.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        return waits, served

    waits, served = asyncio.run(come_one_by_one())

    assert max(waits) < 0.1 * PATIENCE_TIMES / 2
    assert served == ["0", "lone"]


def test_in_a_crowd_a_clients_newest_is_first_and_else_its_oldest() -> None:
    async def line_up(requests: int) -> list[str]:
        turns, served, go_on = Turns(at_once=1, answer_seconds=LONG, line_max=LINE), list[str](), asyncio.Event()

        async def request(name: str) -> None:
            async with turns.turn("shop"):
                served.append(name)
                await go_on.wait()

        tasks = [asyncio.create_task(request(str(number))) for number in range(requests)]
        await _settle()
        go_on.set()
        async with asyncio.timeout(LONG):
            await asyncio.gather(*tasks)
        return served

    assert asyncio.run(line_up(4)) == ["0", "1", "2", "3"]
    first, *others = asyncio.run(line_up(1 + CROWD))
    assert (first, others[0]) == ("0", str(CROWD))


def test_one_clients_crowd_does_not_make_another_impatient() -> None:
    async def crowd() -> list[str]:
        turns, served, go_on = Turns(at_once=1, answer_seconds=0.1, line_max=LINE), list[str](), asyncio.Event()
        tasks = [asyncio.create_task(_hold(turns, "quiet", served, go_on))]
        await _settle()
        tasks += [asyncio.create_task(_hold(turns, "loud", served, go_on)) for _ in range(2 * CROWD)]
        tasks.append(asyncio.create_task(_hold(turns, "calm", served, go_on)))
        await asyncio.sleep(0.3)
        go_on.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        return served

    assert asyncio.run(crowd()) == ["quiet", "calm"]


def test_a_full_line_sends_one_more_away_but_not_for_one_clients_crowd() -> None:
    async def line_up() -> tuple[list[str], int]:
        turns, served, go_on = Turns(at_once=1, answer_seconds=LONG, line_max=4), list[str](), asyncio.Event()
        tasks = [asyncio.create_task(_hold(turns, "loud", served, go_on)) for _ in range(6)]
        await _settle()
        assert [task.done() for task in tasks] == [False] * 5 + [True], "the line is longer than it may be"
        for client in ("quiet", "calm", "late"):
            tasks.append(asyncio.create_task(_hold(turns, client, served, go_on)))
            await _settle()
        go_on.set()
        async with asyncio.timeout(LONG):
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            async with turns.turn("last"):
                served.append("last")
        return served, sum(isinstance(end, NoTurn) for end in ends)

    served, sent_away = asyncio.run(line_up())

    # The loud one was beyond the line once, and gave up three of four places to those who had none.
    assert sorted(served) == ["calm", "last", "late", "loud", "loud", "quiet"]
    assert sent_away == 4
