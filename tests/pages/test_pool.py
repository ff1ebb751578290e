"""The threads behind the front: every request is answered and waited for, whatever becomes of another."""

import asyncio
import random
import threading
import time
from functools import partial
from typing import Any

import pytest

from bankcore.pool import Pool


def answer(number: int, answered: list[int]) -> int:
    if number % 7 == 3:
        raise ValueError(number)
    time.sleep(random.random() / 2000)
    answered.append(number)
    return 2 * number


@pytest.mark.parametrize("threads", [1, 8])
def test_all_are_answered_and_an_error_reaches_its_own_request_only(threads: int) -> None:
    pool, answered = Pool(threads=threads), list[int]()

    async def ask_all() -> list[Any]:
        # A wake-up of the loop that is lost leaves one of them waiting: then this times out.
        async with asyncio.timeout(30):
            return await asyncio.gather(
                *(pool.run(partial(answer, n, answered)) for n in range(2000)), return_exceptions=True
            )

    results = asyncio.run(ask_all())

    refused = {n: result for n, result in enumerate(results) if isinstance(result, ValueError)}
    assert list(refused) == [n for n in range(2000) if n % 7 == 3]
    assert all(error.args == (n,) for n, error in refused.items())
    assert all(result == 2 * n for n, result in enumerate(results) if n not in refused)
    assert sorted(answered) == [n for n in range(2000) if n % 7 != 3]


def test_who_goes_first_is_answered_next() -> None:
    answered, busy, go_on = list[int](), threading.Event(), threading.Event()

    def wait_at_first(number: int) -> None:
        if number == 0:
            busy.set()
            go_on.wait(10)
        answered.append(number)

    async def ask_all() -> None:
        pool = Pool(threads=1)
        asked = [asyncio.create_task(pool.run(partial(wait_at_first, 0)))]
        await asyncio.to_thread(busy.wait, 10)
        asked += [asyncio.create_task(pool.run(partial(wait_at_first, n), first=n > 3)) for n in range(1, 6)]
        await asyncio.sleep(0)
        go_on.set()
        async with asyncio.timeout(10):
            await asyncio.gather(*asked)

    asyncio.run(ask_all())

    # One for each that a thread takes from the queue, so that the queue moves as well.
    assert answered == [0, 4, 1, 5, 2, 3]


def test_a_client_that_has_gone_costs_the_others_nothing() -> None:
    pool, answered = Pool(threads=1), list[int]()

    async def go_away() -> None:
        gone = asyncio.create_task(pool.run(partial(answer, 0, answered)))
        staying = asyncio.create_task(pool.run(partial(answer, 1, answered)))
        await asyncio.sleep(0)
        gone.cancel()
        async with asyncio.timeout(10):
            await staying

    asyncio.run(go_away())

    assert 1 in answered
