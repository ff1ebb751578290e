"""A private stack under test, its clients with their history, and what is done to it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg

from compose.gameday import history as histories
from compose.gameday.evidence import gather
from compose.gameday.history import History, digest
from compose.gameday.verdict import Verdict, conclude, judge, weigh
from compose.gameday.workload import RICH_MINOR
from compose.stack_commands import seed_demo
from tests.messaging.broker_view import PATIENCE_SECONDS, eventually

ROOT = Path(__file__).resolve().parent.parent.parent


SEND = """
from django.conf import settings
from bankcore.messaging.publisher import Publisher, TaskMessage
message = TaskMessage({queue!r}, {task!r}, {ids!r})
assert Publisher(settings.BROKER_URL, "bank").publish([message]) == [message]
"""


@dataclass
class Bank:
    """The stack as its clients, its operator and its saboteur see it."""

    stack: dict[str, Any]
    folder: Path
    accounts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.complement = {role: len(pids) for role, pids in self.stack["pids"].items()}

    def open_accounts(self, number: int, opening_minor: int = RICH_MINOR) -> list[str]:
        made = seed_demo(self.stack, accounts=number, opening_minor=opening_minor)
        self.client = httpx.Client(
            base_url=f"{self.stack['api']}/api/v1/",
            headers={"Authorization": f"Bearer {made.token}"},
            timeout=PATIENCE_SECONDS,
            limits=httpx.Limits(max_connections=60),
        )
        self.history = History(self.folder / f"history-{uuid4().hex[:8]}.jsonl")
        self.history.write(
            "accounts",
            group="test",
            accounts=made.accounts,
            opening_minor=opening_minor,
            review_amount_minor=1_000_000,
        )
        return made.accounts

    def order(self, debit: str, credit: str, amount_minor: int = 100) -> str:
        """Order one transfer as a client that keeps its history does; return its id."""
        name = uuid4().hex
        body = {
            "debit_account": debit,
            "credit_account": credit,
            "amount_minor": amount_minor,
            "currency": "EUR",
            "reference": name,
        }
        facts = {"kind": "transfer", "purpose": "plain", "path": "/api/v1/transfers", "key": name, "body": body}
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self.history.write("invoke", op=name, expected=[202], **facts)
            answer = self.client.post("transfers", json=body, headers={"Idempotency-Key": name})
            if answer.status_code not in (429, 503) or time.monotonic() > deadline:
                break
            # Nothing was changed, and the bank says when to come again.
            self.history.write("info", op=name, why=str(answer.status_code))
            time.sleep(min(int(answer.headers["Retry-After"]), 5))
        assert answer.status_code == 202, answer.text
        shown = {"id": answer.json()["id"]}
        self.history.write("ok", op=name, status=202, digest=digest(answer.content), answer=shown)
        return str(shown["id"])

    def status(self, transfer_id: str) -> str:
        try:
            return str(self.client.get(f"transfers/{transfer_id}").json()["status"])
        except httpx.TransportError:
            return "not to be seen"

    def becomes(self, transfer_id: str, status: str, seconds: float = PATIENCE_SECONDS) -> bool:
        return bool(eventually(lambda: self.status(transfer_id) == status, seconds))

    def is_published(self, transfer_id: str, event: str) -> bool:
        """Whether the relay has handed the event to the broker."""
        sql = "SELECT count(*) FROM messaging_event WHERE subject = %s AND type = %s AND published_at IS NOT NULL"
        return bool(eventually(lambda: self.rows(sql, transfer_id, event)[0][0]))

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.stack["database_url"]) as database:
            return database.execute(sql, parameters or None).fetchall()

    def change(self, sql: str, *parameters: Any) -> None:
        with psycopg.connect(self.stack["database_url"]) as database:
            database.execute(sql, parameters or None)

    @contextmanager
    def locked(self, table: str, row_id: str) -> Iterator[None]:
        """Hold one row, so that whoever works on it has to wait."""
        with psycopg.connect(self.stack["database_url"]) as database:
            database.execute(f"SELECT FROM {table} WHERE id = %s FOR UPDATE", (row_id,))
            yield

    def waits_for_a_lock(self, application: str = "posting") -> bool:
        sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE %s"
        return bool(eventually(lambda: self.rows(sql, f"{application}%")[0][0]))

    def pids(self, role: str) -> list[int]:
        return list(json.loads(Path(self.stack["file"]).read_text())["pids"].get(role, []))

    def kill(self, role: str, sign: int = signal.SIGKILL) -> None:
        """End every process of the role and wait until others have taken their places."""
        # Those that were killed before may not be back yet.
        assert eventually(lambda: len(self.pids(role)) == self.complement[role])
        before = self.pids(role)
        for pid in before:
            os.kill(pid, sign)
        assert eventually(lambda: len(self.pids(role)) == len(before) and not set(self.pids(role)) & set(before))
        if role == "web":
            assert eventually(lambda: all(self.is_ready(api) for api in self.stack["apis"]))

    def is_ready(self, api: str) -> bool:
        try:
            return httpx.get(f"{api}/readyz", timeout=30).status_code == 200
        except httpx.TransportError:
            return False

    def freeze(self, pids: list[int]) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)

    def thaw(self, pids: list[int]) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    @contextmanager
    def another_worker(self, *arguments: str) -> Iterator[int]:
        """One more worker process that consumes, beside those of the stack, while the block lasts."""
        path = self.folder / "another-worker.log"
        log = path.open("wb")
        process = subprocess.Popen(
            [sys.executable, "manage.py", "worker", *arguments],
            cwd=ROOT,
            env={**os.environ, **self.stack["environment"]},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            assert eventually(lambda: " ready" in path.read_text(errors="replace")), path.read_text()
            yield process.pid
        finally:
            process.kill()
            process.wait()
            log.close()

    def send(self, queue: str, task: str, ids: list[str]) -> None:
        """Put a message on a queue that no relay has sent: a duplicate, for one. Signed, like those of the relay."""
        self.manage("shell", "--no-imports", "--command", SEND.format(queue=queue, task=task, ids=ids))

    def cut_connections(self) -> None:
        """Let the broker close every connection, as when it is killed."""
        api = self.stack["broker_api_url"]
        listed = eventually(lambda: httpx.get(f"{api}connections").json())
        for connection in listed:
            httpx.delete(f"{api}connections/{connection['name']}")

    def manage(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env={**os.environ, **self.stack["environment"]},
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_SECONDS,
            check=True,
        )
        return done.stdout

    def drained(self) -> bool:
        """Whether everything has come to an end or a waiting room, and every event and notification has left."""
        sql = """
            SELECT (SELECT count(*) FROM transfers_transfer WHERE status IN ('accepted', 'approved'))
                 + (SELECT count(*) FROM messaging_owed)
                 + (SELECT count(*) FROM notifications_notification WHERE state = 'pending')
        """
        return bool(eventually(lambda: self.rows(sql)[0][0] == 0))

    def verdict(self, *, whole: bool = False) -> Verdict:
        """Judge what is there now; `whole` asks the API and `prove_books` as well, which takes seconds."""
        mail = Path(self.stack["mail"])
        if whole:
            return judge(self.folder, [self.stack["api"]], self.stack["database_url"], mail)
        record = histories.read(self.folder)
        return conclude(record, weigh(record, gather(self.stack["database_url"], mail)))
