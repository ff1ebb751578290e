"""The threads behind the front: every request is answered and waited for, whatever becomes of another."""

import asyncio
import random
import time
from typing import Any

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
