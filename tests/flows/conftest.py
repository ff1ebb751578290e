"""A whole private stack for the tests in this folder: web, relay, workers and Flower as real processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from compose import local
from compose.stack_commands import seed_demo
from tests.messaging.broker_view import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass
class Bank:
    """The stack as a client, an operator and an auditor see it."""

    stack: dict[str, Any]
    client: httpx.Client
    accounts: list[str]

    def order(self, debit: str, credit: str, amount_minor: int, **more: Any) -> dict[str, Any]:
        return {
            "debit_account": debit,
            "credit_account": credit,
            "amount_minor": amount_minor,
            "currency": "EUR",
            **more,
        }

    def send(self, debit: str, credit: str, amount_minor: int, **more: Any) -> dict[str, Any]:
        return self._accepted("transfers", self.order(debit, credit, amount_minor, **more))

    def send_batch(self, body: dict[str, Any]) -> str:
        """Send a batch and return its id."""
        return self._accepted("batches", body)["id"]

    def _accepted(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask, and again when the bank asks to come later, as every client has to."""
        key, deadline = str(uuid4()), time.monotonic() + PATIENCE_SECONDS
        while True:
            answer = self.client.post(path, json=body, headers={"Idempotency-Key": key})
            if answer.status_code != 503 or time.monotonic() > deadline:
                assert answer.status_code == 202, answer.text
                return answer.json()
            assert answer.json()["retryable"], answer.text
            time.sleep(int(answer.headers["Retry-After"]))

    def ended(self, transfer_id: str) -> dict[str, Any]:
        """Wait for the transfer's end or waiting room, and return it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            transfer = self.client.get(f"transfers/{transfer_id}", headers={"Prefer": "wait=5"}).json()
            if transfer["status"] not in ("accepted", "approved") or time.monotonic() > deadline:
                return transfer

    def balance(self, account: str) -> int:
        return self.client.get(f"accounts/{account}/balance").json()["posted_minor"]

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.stack["database_url"]) as database:
            return database.execute(sql, parameters).fetchall()

    def batch_ended(self, batch_id: str) -> dict[str, int]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            counts = self.client.get(f"batches/{batch_id}").json()["status_counts"]
            waiting = counts.get("accepted", 0) + counts.get("approved", 0)
            if not waiting or time.monotonic() > deadline:
                return {status: number for status, number in counts.items() if number}
            time.sleep(0.1)

    def pids(self, role: str) -> list[int]:
        return json.loads(Path(self.stack["file"]).read_text())["pids"].get(role, [])

    def is_complete(self) -> bool:
        """Whether whoever was killed has a successor."""
        return all(len(self.pids(role)) == len(pids) for role, pids in self.stack["pids"].items())

    def manage(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env={**os.environ, **self.stack["environment"]},
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_SECONDS,
            check=False,
        )


def _stack(patch: pytest.MonkeyPatch) -> AbstractContextManager[dict[str, Any]]:
    # The broker is this stack's own, so that each role signs in there as its own user, and so is the mail folder. The
    # other servers are those of the test run.
    for name in ("BROKER_URL", "EMAIL_URL"):
        patch.delenv(name, raising=False)
    return local.stack(name="flows", environment={"STUCK_SECONDS": "3"})


@pytest.fixture(scope="module")
def bank() -> Iterator[Bank]:
    with pytest.MonkeyPatch.context() as patch, _stack(patch) as stack:
        seed = seed_demo(stack, accounts=40, opening_minor=100_000)
        headers = {"Authorization": f"Bearer {seed.token}"}
        with httpx.Client(base_url=f"{stack['api']}/api/v1/", headers=headers, timeout=PATIENCE_SECONDS) as client:
            yield Bank(stack, client, seed.accounts)


@pytest.fixture
def books_balance(bank: Bank) -> Callable[[], None]:
    def prove() -> None:
        proof = bank.manage("prove_books", "--json")
        assert (proof.returncode, json.loads(proof.stdout)["violations"]) == (0, [])

    return prove
