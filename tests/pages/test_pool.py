"""The threads behind the front: every request is answered and waited for, whatever becomes of another."""

import asyncio
import random
import threading
import time
from typing import Any, cast

import pytest

from bankcore.pool import Pool


def answer(environ: dict[str, Any], exchange: Any, loop: asyncio.AbstractEventLoop) -> None:
    if environ["number"] % 7 == 3:
        raise ValueError(environ["number"])
    time.sleep(random.random() / 2000)
    exchange.append(environ["number"])


@pytest.mark.parametrize("threads", [1, 8])
def test_all_are_answered_and_an_error_reaches_its_own_request_only(threads: int) -> None:
    pool, answered = Pool(answer, threads=threads), list[int]()

    async def ask_all() -> list[Any]:
        # A wake-up of the loop that is lost leaves one of them waiting: then this times out.
        async with asyncio.timeout(30):
            return await asyncio.gather(
                *(pool.run({"number": n}, answered) for n in range(2000)), return_exceptions=True
            )

    results = asyncio.run(ask_all())

    assert [n for n, result in enumerate(results) if result is not None] == [n for n in range(2000) if n % 7 == 3]
    assert all(isinstance(result, ValueError) and result.args == (n,) for n, result in enumerate(results) if result)
    assert sorted(answered) == [n for n in range(2000) if n % 7 != 3]


def test_who_goes_first_is_answered_next() -> None:
    answered, busy, go_on = list[int](), threading.Event(), threading.Event()

    def wait_at_first(environ: dict[str, Any], exchange: Any, loop: asyncio.AbstractEventLoop) -> None:
        if environ["number"] == 0:
            busy.set()
            go_on.wait(10)
        answered.append(environ["number"])

    async def ask_all() -> None:
        pool, exchange = Pool(wait_at_first, threads=1), cast(Any, None)
        asked = [asyncio.create_task(pool.run({"number": 0}, exchange))]
        await asyncio.to_thread(busy.wait, 10)
        asked += [asyncio.create_task(pool.run({"number": n}, exchange, first=n > 3)) for n in range(1, 6)]
        await asyncio.sleep(0)
        go_on.set()
        async with asyncio.timeout(10):
            await asyncio.gather(*asked)

    asyncio.run(ask_all())

    # One for each that a thread takes from the queue, so that the queue moves as well.
    assert answered == [0, 4, 1, 5, 2, 3]


def test_a_client_that_has_gone_costs_the_others_nothing() -> None:
    pool, answered = Pool(answer, threads=1), list[int]()

    async def go_away() -> None:
        gone = asyncio.create_task(pool.run({"number": 0}, answered))
        staying = asyncio.create_task(pool.run({"number": 1}, answered))
        await asyncio.sleep(0)
        gone.cancel()
        async with asyncio.timeout(10):
            await staying

    asyncio.run(go_away())

    assert 1 in answered
