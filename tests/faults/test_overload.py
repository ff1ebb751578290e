"""More than can be done: the closed loop from full queues and lost brokers back to the door, on a real stack.

A rival's failing is backpressure that fails open: work is waved through because nobody could tell what waits.
"""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from django.conf import settings

from compose import local
from compose.stack_commands import seed_demo
from tests.messaging.broker_view import PATIENCE_SECONDS, eventually

# A machine that does fifty a second still does the largest backlog within the promise.
BACKLOG_MAX, PROMISE_SECONDS = 300, 6
# Two web processes, each of which may let in some more before its next look at the database.
SLACK = 150


@pytest.fixture(scope="module")
def bank() -> Iterator[dict[str, Any]]:
    environment = {
        "BACKLOG_MAX": str(BACKLOG_MAX),
        "PROMISE_SECONDS": str(PROMISE_SECONDS),
        "STUCK_SECONDS": "5",
        # A queue that is full of one message holds few transfers then.
        "MESSAGE_IDS_MAX": "20",
    }
    roles = {"web": 1, "relay": 1, "risk": 1, "posting": 1, "notifications": 1, "maintenance": 1}
    with pytest.MonkeyPatch.context() as patch:
        # A broker of its own, to be frozen and given policies, and a database that no other stack works on.
        patch.delenv("BROKER_URL", raising=False)
        patch.delenv("DATABASE_URL", raising=False)
        patch.delenv("EMAIL_URL", raising=False)
        with local.stack(name="overload", roles=roles, environment=environment) as stack:
            if not stack["broker_api_url"]:
                pytest.skip("full queues and frozen brokers need RabbitMQ, which this machine does not have")
            yield {**stack, "seed": seed_demo(stack, accounts=40, opening_minor=1_000_000)}


@contextmanager
def _client(bank: dict[str, Any]) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {bank['seed'].token}"}
    with httpx.Client(base_url=f"{bank['api']}/api/v1/", headers=headers, timeout=PATIENCE_SECONDS) as client:
        yield client


def _order(bank: dict[str, Any], number: int) -> dict[str, Any]:
    ids = bank["seed"].accounts
    debit, credit = ids[number % len(ids)], ids[(number + 1) % len(ids)]
    return {"debit_account": debit, "credit_account": credit, "amount_minor": 1, "currency": "EUR"}


def _send(client: httpx.Client, bank: dict[str, Any], number: int = 0) -> httpx.Response:
    return client.post("transfers", json=_order(bank, number), headers={"Idempotency-Key": str(uuid4())})


def _statuses(bank: dict[str, Any]) -> Counter[str]:
    with psycopg.connect(bank["database_url"]) as database:
        return Counter(dict(database.execute("SELECT status, count(*) FROM transfers_transfer GROUP BY 1").fetchall()))


def _all_posted(bank: dict[str, Any], number: int) -> None:
    eventually(lambda: _statuses(bank) == {"posted": number}, 3 * PATIENCE_SECONDS)
    assert _statuses(bank) == {"posted": number}


def _open_again(client: httpx.Client, bank: dict[str, Any]) -> None:
    assert eventually(lambda: _send(client, bank).status_code == 202), "the gate stays closed"


def _checked_refusal(answer: httpx.Response) -> None:
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["retryable"]) == (503, "overloaded", True)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert problem["request_id"] == answer.headers["X-Request-Id"]
    assert 1 <= int(answer.headers["Retry-After"]) <= settings.RETRY_AFTER_SECONDS_MAX


def _filled(client: httpx.Client, bank: dict[str, Any], *, pause: float = 0.0) -> int:
    """Send until the gate has been closed for a while; return how many were taken."""
    taken = refused = 0
    for number in range(5 * BACKLOG_MAX):
        answer = _send(client, bank, number)
        if answer.status_code == 202:
            # A newer reading may find a little room still; how much there is in all, the callers judge.
            taken, refused = taken + 1, 0
        else:
            _checked_refusal(answer)
            refused += 1
        if refused == 60:
            break
        time.sleep(pause)
    assert refused == 60
    return taken


def test_with_the_whole_broker_down_all_is_accepted_up_to_the_cap(bank: dict[str, Any]) -> None:
    with _client(bank) as client:
        _open_again(client, bank)
        before = _statuses(bank).total()
        pids = [pid for role, found in bank["server_pids"].items() if "rabbit" in role for pid in found]
        assert pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            taken = _filled(client, bank, pause=0.005)
            assert BACKLOG_MAX - 20 <= taken <= BACKLOG_MAX + SLACK
            # It took hold: nothing has moved.
            waiting = _statuses(bank)
            assert waiting["accepted"] + waiting["approved"] >= BACKLOG_MAX - 20
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

        _open_again(client, bank)
    _all_posted(bank, before + taken + 1)


def _owed(bank: dict[str, Any]) -> int:
    sql = "SELECT count(*) FROM messaging_event WHERE published_at IS NULL AND type = 'transfer.approved'"
    with psycopg.connect(bank["database_url"]) as database:
        ((number,),) = database.execute(sql).fetchall()
    return int(number)


def test_a_full_queue_closes_the_door_and_loses_nothing(bank: dict[str, Any]) -> None:
    policy = f"{bank['broker_api_url']}policies/bank/full"
    workers = json.loads(Path(bank["file"]).read_text())["pids"]["posting"]
    with _client(bank) as client:
        before = _statuses(bank).total()
        definition = {"pattern": "^posting-", "definition": {"max-length": 1}, "apply-to": "queues"}
        httpx.put(policy, json=definition).raise_for_status()
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        try:
            taken = _filled(client, bank, pause=0.005)
            # Nothing is worked off: however often a newer reading finds room, there is no more of it than the cap.
            assert taken <= BACKLOG_MAX + SLACK
            # The relay still has what the full queues did not take.
            assert eventually(lambda: _owed(bank) > BACKLOG_MAX / 4)
        finally:
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
            httpx.delete(policy).raise_for_status()

        _open_again(client, bank)
    _all_posted(bank, before + taken + 1)


def test_a_burst_beyond_capacity_is_answered_honestly(bank: dict[str, Any]) -> None:
    before = _statuses(bank).total()
    until = time.monotonic() + PATIENCE_SECONDS

    def one_client(number: int) -> tuple[int, Counter[int]]:
        taken, statuses = 0, Counter[int]()
        with _client(bank) as client:
            while statuses[503] < 3 and time.monotonic() < until:
                rows = [_order(bank, number + n) for n in range(500)]
                answer = client.post("batches", json={"transfers": rows}, headers={"Idempotency-Key": str(uuid4())})
                statuses[answer.status_code] += 1
                if answer.status_code == 202:
                    taken += 500
                else:
                    _checked_refusal(answer)
                    time.sleep(0.2)
        return taken, statuses

    with ThreadPoolExecutor(12) as pool:
        outcomes = list(pool.map(one_client, range(12)))

    statuses = sum((statuses for _, statuses in outcomes), Counter[int]())
    assert set(statuses) <= {202, 429, 503}
    assert statuses[202]
    assert statuses[503]
    _all_posted(bank, before + sum(taken for taken, _ in outcomes))


def test_the_gate_tells_what_it_sees(bank: dict[str, Any]) -> None:
    text = httpx.get(f"{bank['api']}/metrics").text

    for metric in (
        'bankcore_admission_total{decision="overloaded"}',
        'bankcore_predicted_wait_seconds{stage="posting"}',
        'bankcore_drain_rate_transfers{stage="risk"}',
    ):
        assert metric in text
