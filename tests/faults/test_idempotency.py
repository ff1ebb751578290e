"""One key is one transfer and one answer: at the same moment, across restarts, after the end, and after a week."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from tests.faults.bank import Bank
from tests.messaging.broker_view import PATIENCE_SECONDS, eventually

AT_ONCE = 50


def order(accounts: list[str], **more: Any) -> dict[str, Any]:
    return {
        "debit_account": accounts[0],
        "credit_account": accounts[1],
        "amount_minor": 7,
        "currency": "EUR",
        "reference": uuid4().hex,
        **more,
    }


def send(bank: Bank, body: dict[str, Any], key: str, place: int = 0) -> httpx.Response:
    """Ask as a client does that was cut off or told to come back: again, under the same key."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    apis = bank.stack["apis"]
    headers = {"Idempotency-Key": key}
    while True:
        place += 1
        try:
            answer = bank.client.post(f"{apis[place % len(apis)]}/api/v1/transfers", json=body, headers=headers)
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
        else:
            if answer.status_code not in (429, 503) or time.monotonic() > deadline:
                return answer
        time.sleep(0.2)


def send_at_once(bank: Bank, body: dict[str, Any], key: str) -> list[httpx.Response]:
    barrier = threading.Barrier(AT_ONCE)

    def one(place: int) -> httpx.Response:
        barrier.wait()
        return send(bank, body, key, place)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, range(AT_ONCE)))


def copies(bank: Bank, body: dict[str, Any]) -> int:
    return int(bank.rows("SELECT count(*) FROM transfers_transfer WHERE reference = %s", body["reference"])[0][0])


def test_fifty_identical_requests_at_once_make_one_transfer_and_fifty_equal_answers(sound, accounts):
    body, key = order(accounts), uuid4().hex

    answers = send_at_once(sound, body, key)

    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    assert sum("Idempotent-Replayed" not in answer.headers for answer in answers) == 1
    assert copies(sound, body) == 1


def test_fifty_identical_requests_while_every_web_process_is_killed_make_one_transfer(sound, accounts):
    body, key = order(accounts), uuid4().hex
    killer = threading.Timer(0.03, lambda: [os.kill(pid, signal.SIGKILL) for pid in sound.pids("web")])
    killer.start()

    answers = send_at_once(sound, body, key)
    killer.join()

    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    assert copies(sound, body) == 1


def test_a_repetition_after_the_end_and_a_restart_gets_the_first_answer(sound, accounts):
    body, key = order(accounts), uuid4().hex
    first = send(sound, body, key)
    assert sound.becomes(first.json()["id"], "posted")
    sound.kill("web", signal.SIGTERM)

    again = send(sound, body, key)

    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert sound.status(first.json()["id"]) == "posted"


def test_a_repetition_after_a_week_gets_the_first_answer(sound, accounts):
    body, key = order(accounts), uuid4().hex
    first = send(sound, body, key).json()
    assert sound.becomes(first["id"], "posted")
    with psycopg.connect(sound.stack["database_url"]) as database:
        # What was asked for never changes: a trigger has to look away for a week to pass.
        database.execute("ALTER TABLE transfers_transfer DISABLE TRIGGER transfer_is_as_asked")
        database.execute(
            "UPDATE transfers_transfer SET created_at = created_at - interval '8 days' WHERE id = %s", (first["id"],)
        )
        database.execute("ALTER TABLE transfers_transfer ENABLE TRIGGER transfer_is_as_asked")

    again = send(sound, body, key)

    moments = {"created_at", "updated_at"}
    assert again.status_code == 202
    assert {k: v for k, v in again.json().items() if k not in moments} == {
        k: v for k, v in first.items() if k not in moments
    }
    assert copies(sound, body) == 1
    assert send(sound, body | {"amount_minor": 8}, key).status_code == 422


@pytest.mark.parametrize(
    ("spoilt", "status"),
    [
        ({"amount_minor": -1}, 400),
        ({"credit_account": str(uuid4())}, 422),
        ({"currency": "USD"}, 422),
        ({"expires_at": "2001-01-01T00:00:00Z"}, 400),
    ],
    ids=["malformed", "unknown account", "other currency", "expired"],
)
def test_a_failed_request_does_not_burn_its_key(sound, accounts, spoilt, status):
    body, key = order(accounts), uuid4().hex

    assert send(sound, body | spoilt, key).status_code == status
    accepted = send(sound, body, key)

    assert (accepted.status_code, "Idempotent-Replayed" in accepted.headers) == (202, False)
    assert copies(sound, body) == 1


def test_a_request_that_the_database_cut_off_does_not_burn_its_key(sound, accounts):
    body, key = order(accounts), uuid4().hex
    cut = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
              WHERE application_name LIKE 'web%' AND wait_event_type = 'Lock'"""
    headers = {"Idempotency-Key": key}
    with psycopg.connect(sound.stack["database_url"]) as database, ThreadPoolExecutor(1) as pool:
        database.execute("LOCK TABLE transfers_transfer IN EXCLUSIVE MODE")
        asked = pool.submit(sound.client.post, "transfers", json=body, headers=headers)
        assert eventually(lambda: sound.rows(cut))
        cut_off = asked.result()

    assert (cut_off.status_code, cut_off.json()["retryable"]) == (503, True)
    assert send(sound, body, key).status_code == 202
    assert copies(sound, body) == 1


def test_what_was_accepted_is_there_at_once_whoever_is_asked(sound, accounts):
    """Accepted, then 404: where reads come from a copy that lags behind, or the row is written after the answer."""
    apis = sound.stack["apis"]

    def accept_and_look(place: int) -> int:
        accepted = send(sound, order(accounts), uuid4().hex, place)
        assert accepted.status_code == 202
        other = apis[place % len(apis)]
        return sound.client.get(f"{other}{accepted.headers['Location']}").status_code

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(accept_and_look, range(60))) == {200}
