"""Rate limits: one count for all processes, headers that say where a client stands, and a limit without Redis too."""

import os
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client as HttpClient
from limits import parse

from bankcore import metrics, rate_limits
from bankcore.rate_limits import RateLimits, _until_room

REDIS_URL = os.environ.get("REDIS_URL", "")


@pytest.fixture
def limit(settings: Any) -> Any:
    def set_to(text: str, **clients: str) -> None:
        settings.RATE_LIMITS = {**settings.RATE_LIMITS, "transfers": parse(text)}
        settings.RATE_LIMIT_CLIENTS = {client: parse(own) for client, own in clients.items()}

    return set_to


def test_a_client_within_its_limit_is_told_where_it_stands(bank: Any, limit: Any) -> None:
    limit("5/hour")

    answers = [bank.as_anna.order(bank.body()) for _ in range(2)]

    assert [a.status_code for a in answers] == [202, 202]
    assert {a["RateLimit-Policy"] for a in answers} == {'"transfers";q=5;w=3600'}
    assert [re.fullmatch(r'"transfers";r=(\d+);t=(\d+)', a["RateLimit"])[1] for a in answers] == ["4", "3"]  # type: ignore[index]


def test_a_client_beyond_its_limit_waits_and_nobody_else_does(bank: Any, limit: Any, assert_refused: Any) -> None:
    limit("2/hour")
    for _ in range(2):
        assert bank.as_anna.order(bank.body()).status_code == 202

    answer = bank.as_anna.order(bank.body())

    problem = assert_refused(answer, 429, "rate_limited", before=(2, 0, 2))
    assert problem["retryable"]
    assert 1 <= int(answer["Retry-After"]) <= 7200
    assert answer["RateLimit"].startswith('"transfers";r=0;t=')
    other = bank.body(debit_account=str(bank.brunos.id), credit_account=str(bank.annas.id))
    assert bank.as_bruno.order(other).status_code == 202


def test_every_refusal_says_when_there_is_room_and_the_header_agrees(bank: Any, limit: Any) -> None:
    limit("3/hour")
    accepted = [bank.as_anna.order(bank.body(), key=f"same-{number}").status_code for number in range(3)]
    began = time.monotonic()

    # Orders, a batch and a replay; the first asks Redis, and so does the last, as what was heard is good for a second.
    refused = [bank.as_anna.order(bank.body()) for _ in range(3)]
    refused += [bank.as_anna.post("batches", {"transfers": [bank.body()] * 2})]
    refused += [bank.as_anna.order(bank.body(), key="same-0")]
    time.sleep(1.1)
    refused += [bank.as_anna.order(bank.body()) for _ in range(2)]

    assert (accepted, {answer.status_code for answer in refused}) == ([202] * 3, {429})
    waits = [int(answer["Retry-After"]) for answer in refused]
    assert waits == sorted(waits, reverse=True)
    # A third of the window that is used up has to fade, after the rest of it; so much is left whenever the test runs.
    assert waits[0] >= 1200
    assert waits[0] - waits[-1] <= time.monotonic() - began + 1
    assert [answer["RateLimit"] for answer in refused] == [f'"transfers";r=0;t={wait}' for wait in waits]


def test_a_batch_is_told_when_there_is_room_for_all_of_it(limit: Any) -> None:
    limit("4/hour")
    process, client = RateLimits(REDIS_URL), str(uuid4())
    process.take("transfers", client, cost=4)

    single, batch = (process.take("transfers", client, cost=cost).retry_seconds or 0 for cost in (1, 3))

    # A quarter of the window for each.
    assert batch - single == pytest.approx(1800, abs=60)


def test_a_batch_costs_its_rows(bank: Any, limit: Any, assert_refused: Any) -> None:
    limit("5/hour")
    assert bank.as_anna.post("batches", {"transfers": [bank.body()] * 3}).status_code == 202

    assert_refused(
        bank.as_anna.post("batches", {"transfers": [bank.body()] * 3}), 429, "rate_limited", before=(3, 1, 3)
    )
    # Looking at it cost nothing: two are left for single transfers.
    assert [bank.as_anna.order(bank.body()).status_code for _ in range(3)] == [202, 202, 429]


def test_a_batch_of_more_than_the_whole_limit_takes_the_whole_of_it(
    bank: Any, limit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit("5/hour")
    assert bank.as_anna.post("batches", {"transfers": [bank.body()] * 8}).status_code == 202

    def unread(_: Any) -> None:
        pytest.fail("the body of a client with nothing left was read")

    monkeypatch.setattr("transfers.serializers.read_batch_order", unread)
    assert bank.as_anna.post("batches", {"transfers": [bank.body()]}).status_code == 429


def test_a_batch_that_cannot_be_read_costs_as_much_as_a_transfer(bank: Any, limit: Any) -> None:
    limit("2/hour")

    answers = [bank.as_anna.post("batches", {"transfers": "none"}).status_code for _ in range(3)]

    assert answers[-1] == 429
    assert 429 not in answers[:2]


def test_a_client_may_have_a_limit_of_its_own(bank: Any, limit: Any) -> None:
    limit("1/hour", **{f"shop@{bank.anna.id.hex[-12:]}": "3/hour"})

    assert [bank.as_anna.order(bank.body()).status_code for _ in range(4)] == [202, 202, 202, 429]


def test_wrong_tokens_are_limited_per_address(bank: Any, settings: Any) -> None:
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "auth_failures": parse("3/day")}
    address = f"192.0.2.{random.randrange(256)}:{uuid4()}"
    wrong = HttpClient(headers={"Authorization": "Bearer " + "A" * 8 + "." + "b" * 32}, REMOTE_ADDR=address)

    assert [wrong.get("/api/v1/accounts").status_code for _ in range(5)] == [401, 401, 401, 429, 429]
    assert bank.as_anna.get("accounts").status_code == 200


def test_processes_share_one_count(limit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limit("1000/hour")
    monkeypatch.setattr(rate_limits, "LEASE_SECONDS", 60.0)
    processes, client = [RateLimits(REDIS_URL) for _ in range(4)], str(uuid4())

    def use(number: int) -> int:
        return processes[number % 4].take("transfers", client).retry_seconds is None

    with ThreadPoolExecutor(8) as pool:
        let_in = sum(pool.map(use, range(1500)))

    # What is left in leases of other processes at the end is all that may be missing.
    assert 900 <= let_in <= 1000


@pytest.mark.parametrize("burst_max", [1, 4, 12])
def test_little_is_lost_of_what_is_used_by_fits_and_starts(
    limit: Any, monkeypatch: pytest.MonkeyPatch, burst_max: int
) -> None:
    limit("1000/hour")
    monkeypatch.setattr(rate_limits, "LEASE_SECONDS", 0.01)
    processes, client = [RateLimits(REDIS_URL) for _ in range(4)], str(uuid4())

    def use(process: RateLimits) -> int:
        let_in = 0
        for left in range(200, 0, -burst_max):
            for _ in range(min(left, burst_max)):
                let_in += process.take("transfers", client).retry_seconds is None
            # Nothing of a lease lives that long.
            time.sleep(0.012)
        return let_in

    with ThreadPoolExecutor(4) as pool:
        let_in = sum(pool.map(use, processes))
    left = RateLimits(REDIS_URL).look("transfers", client).remaining

    assert let_in == 800
    # Besides a tenth of what was used, each process may lose a two-hundredth of the limit once.
    assert 1000 - 800 - 80 - 4 * 5 <= left <= 1000 - 800
    for process in processes:
        while process.take("transfers", client).retry_seconds is None:
            let_in += 1
    assert 800 + left - left // 10 - 4 * 5 <= let_in <= 1000


def test_threads_that_ask_at_once_lose_no_more_than_one(limit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limit("6000/hour")
    monkeypatch.setattr(rate_limits, "LEASE_SECONDS", 0.0)
    process, client, at_once = RateLimits(REDIS_URL), str(uuid4()), Barrier(16)

    def use(_: int) -> None:
        at_once.wait()
        process.take("transfers", client)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(use, range(16)))

    assert RateLimits(REDIS_URL).look("transfers", client).remaining >= 6000 - 16 - rate_limits.LEASE_START - 2


def test_most_requests_ask_nobody(limit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limit("6000/minute")
    # A lease is spent before its time is up, however slow the machine is.
    monkeypatch.setattr(rate_limits, "LEASE_SECONDS", 60.0)
    process, client = RateLimits(REDIS_URL), str(uuid4())
    process.take("transfers", client)
    asked = []
    ask = process._ask
    monkeypatch.setattr(process, "_ask", lambda *words: (asked.append(words), ask(*words))[1])

    for _ in range(300):
        process.take("transfers", client)

    assert len(asked) <= 15


def test_the_limit_holds_without_redis(limit: Any, caplog: pytest.LogCaptureFixture) -> None:
    limit("50/hour")
    process, client = RateLimits("redis://127.0.0.1:1/0"), str(uuid4())

    standings = [process.take("transfers", client) for _ in range(60)]

    assert sum(s.retry_seconds is None for s in standings) == 50
    assert caplog.text.count("Redis is away") == 1
    assert metrics.rate_limits_alone._value.get() == 1


@pytest.mark.parametrize(
    ("window", "cost", "seconds"),
    [
        ((0, 0.0, 50, 110.0), 1, 0),
        ((0, 0.0, 100, 110.0), 1, 50 + 0.6),
        ((100, 30.0, 50, 90.0), 1, 0.6),
        ((100, 30.0, 90, 90.0), 1, 24.6),
        ((100, 30.0, 100, 90.0), 100, 30 + 60),
    ],
)
def test_retry_after_is_when_there_is_room_again(
    window: tuple[int, float, int, float], cost: int, seconds: float
) -> None:
    assert _until_room(parse("100/minute"), window, cost) == pytest.approx(seconds)


def test_the_limit_is_open_again_when_it_said(limit: Any) -> None:
    limit("10/second")
    process, client = RateLimits(REDIS_URL), str(uuid4())
    # At once, so that a slow machine uses it up as well.
    while (standing := process.take("transfers", client, cost=5)).retry_seconds is None:
        pass

    time.sleep(standing.retry_seconds + 0.05)

    assert process.take("transfers", client, cost=5).retry_seconds is None
