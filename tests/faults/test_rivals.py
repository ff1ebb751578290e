"""Failings that other transfer systems are known for, each as a test: here, or where FAILINGS says."""

import json
import time
from typing import Any
from uuid import uuid4

import httpx
import pytest
import yaml

from tests.faults.bank import ROOT, Bank
from tests.messaging.broker_view import PATIENCE_SECONDS, eventually

BOOKS, SEAL = "tests/accounts/test_books_increment.py", "tests/accounts/test_seal.py"
IDEMPOTENCY, RIVALS = "tests/faults/test_idempotency.py", "tests/faults/test_rivals.py"
# What goes wrong elsewhere, and the test here that would fail with it.
FAILINGS = {
    "balance truth in a cache": (BOOKS, "test_rival_balance_truth_in_a_cache_a_balance_without_a_line_is_named"),
    "balance by summing all entries": (
        BOOKS,
        "test_rival_balance_by_summing_all_entries_no_statement_of_an_increment_reads_a_whole_table",
    ),
    "one ledger-wide lock for the hash chain": (
        SEAL,
        "test_rival_one_lock_for_the_hash_chain_posting_is_not_held_up_by_a_sealer_at_work",
    ),
    "capped or expiring dead letters": ("tests/messaging/test_desk.py", "test_no_capped_or_expiring_dead_letters"),
    "a customer rejection caused by infrastructure errors": (
        RIVALS,
        "test_infrastructure_errors_never_reject_a_customer",
    ),
    "backpressure that fails open": ("tests/messaging/test_backpressure.py", "test_backpressure_fails_closed"),
    "a risk check that fails open": ("tests/transfers/test_risk_provider.py", "test_risk_check_that_fails_open"),
    "parallel workers on an ordered lane": (RIVALS, "test_parallel_workers_keep_the_order_of_a_lane"),
    "publish after commit without outbox": (
        RIVALS,
        "test_the_event_is_in_the_transaction_of_the_transfer_not_published_after_it",
    ),
    "float amounts": (RIVALS, "test_no_amount_is_ever_a_float"),
    "authentication off by default": (RIVALS, "test_nothing_is_open_without_a_token"),
    "retry budget spent by an open breaker": (
        "tests/transfers/test_risk_provider.py",
        "test_retry_budget_spent_by_an_open_breaker",
    ),
    "accepted then 404": (IDEMPOTENCY, "test_what_was_accepted_is_there_at_once_whoever_is_asked"),
    "a failed request that burns its key": (IDEMPOTENCY, "test_a_failed_request_does_not_burn_its_key"),
}


@pytest.mark.parametrize("failing", FAILINGS)
def test_every_failing_has_its_test(failing):
    path, name = FAILINGS[failing]
    assert f"def {name}(" in (ROOT / path).read_text()


def entry_of(bank: Bank, transfer: str) -> int:
    sql = "SELECT id FROM accounts_journalentry WHERE reference = %s"
    return int(bank.rows(sql, f"transfer:{transfer}")[0][0])


def test_infrastructure_errors_never_reject_a_customer(sound, accounts):
    """A database that cuts a worker off again and again costs time: no rejection, no attempt, no dead letter."""
    debit, credit = accounts[:2]
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE %s"
    letters = sound.rows("SELECT count(*) FROM messaging_deadletter")
    with sound.locked("accounts_account", debit):
        transfers = [sound.order(debit, credit) for _ in range(10)]
        for _ in range(3):
            assert sound.waits_for_a_lock()
            sound.rows(cut, "posting%")
            sound.rows(cut, "risk%")
            time.sleep(0.3)

    ended = eventually(lambda: {sound.status(t) for t in transfers} <= {"posted", "rejected", "parked"})

    assert ended
    assert {sound.status(transfer) for transfer in transfers} == {"posted"}
    attempts = "SELECT coalesce(max(attempt), 0) FROM messaging_event WHERE subject = ANY(%s)"
    assert sound.rows(attempts, transfers) == [(0,)]
    assert sound.rows("SELECT count(*) FROM messaging_deadletter") == letters


def test_parallel_workers_keep_the_order_of_a_lane(sound, accounts):
    """The second worker on a queue stands by: it does not take what the first one is slow with."""
    debit, credit = accounts[2:4]
    with sound.another_worker("posting") as other:
        workers = [*sound.pids("posting"), other]
        sound.freeze(workers)
        first = sound.order(debit, credit)
        assert sound.is_published(first, "transfer.approved")
        second = sound.order(debit, credit)
        assert sound.is_published(second, "transfer.approved")
        with sound.locked("transfers_transfer", first):
            sound.thaw(workers)
            assert not sound.becomes(second, "posted", 3)
        assert sound.becomes(first, "posted")
        assert sound.becomes(second, "posted")

    assert entry_of(sound, first) < entry_of(sound, second)


def test_the_event_is_in_the_transaction_of_the_transfer_not_published_after_it(sound, accounts):
    """Where the message is sent after the commit, a process that dies in between loses it."""
    debit, credit = accounts[:2]
    relays = sound.pids("relay")
    sound.freeze(relays)
    transfer = sound.order(debit, credit)
    both = """
        SELECT t.xmin = e.xmin
          FROM transfers_transfer t JOIN messaging_event e ON e.subject = t.id::text WHERE t.id = %s
    """
    together = sound.rows(both, transfer)
    sound.kill("web")
    sound.kill("relay")

    assert together == [(True,)]
    assert sound.becomes(transfer, "posted")


def test_no_amount_is_ever_a_float(sound, accounts):
    """Not in a request, not in an answer, not in a column: 0.1 + 0.2 has no place here."""
    debit, credit = accounts[:2]
    body = {"debit_account": debit, "credit_account": credit, "currency": "EUR"}
    for amount in ("10.0", "10.5", "1e2", "0.1", '"10"', "1E400"):
        answer = post(sound, f'{json.dumps(body)[:-1]}, "amount_minor": {amount}}}')
        assert answer.status_code == 400, (amount, answer.text)
    exact = post(sound, json.dumps(body | {"amount_minor": 999_999_999_999_999}))
    assert b'"amount_minor":999999999999999,' in exact.content.replace(b" ", b"")
    columns = sound.rows(
        """SELECT table_name, column_name, data_type FROM information_schema.columns
            WHERE table_schema = 'public' AND column_name LIKE '%%\\_minor' AND data_type <> 'bigint'"""
    )
    inexact = sound.rows(
        """SELECT table_name, column_name FROM information_schema.columns
            WHERE table_schema = 'public' AND data_type IN ('real', 'double precision')
              AND table_name ~ '^(accounts|transfers)_' AND column_name <> 'seconds'"""
    )
    assert (columns, inexact) == ([], [])


def post(bank: Bank, raw: str) -> httpx.Response:
    headers = {"Idempotency-Key": uuid4().hex, "Content-Type": "application/json"}
    return bank.client.post("transfers", content=raw.encode(), headers=headers)


def test_nothing_is_open_without_a_token(sound):
    """Authentication that has to be switched on is off somewhere. Here each call of the schema asks for it."""
    paths: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "openapi.yaml").read_text())["paths"]
    calls = [(method, path) for path, methods in paths.items() for method in methods if method in METHODS]
    assert len(calls) > 10

    stranger = httpx.Client(timeout=PATIENCE_SECONDS)
    for method, path in calls:
        url = sound.stack["api"] + path.replace("{", "").replace("}", "")
        for headers in ({}, {"Authorization": "Bearer nobody.nothing"}, {"Authorization": "Basic YTpi"}):
            assert stranger.request(method, url, headers=headers).status_code == 401, (method, path, headers)
    for page in ("/admin/", "/admin/transfers/transfer/"):
        assert "/login/" in stranger.get(sound.stack["api"] + page).headers["Location"]


METHODS = {"get", "post", "put", "patch", "delete"}
