"""The database is lost with its disk, and restored from a base backup and the log: to the last commit, and on from it.

The restore is game day's own (compose/gameday/faults/restore.py), on a plain stack with nobody ordering meanwhile: so
what was there before is known row by row.
"""

import random
import time
import xmlrpc.client
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from compose import local
from compose.gameday.faults import restore
from compose.gameday.faults.restore import RestoreDatabase
from compose.gameday.rig import POSTGRESQL
from compose.instance import Instance, read_json, started_at
from compose.stack_commands import Seeded, manage, seed_demo
from compose.supervision import SERVERS, Supervisor
from tests.messaging.broker_view import PATIENCE_SECONDS, eventually

ROLES = {"web": 1, "relay": 1, "risk": 1, "posting": 1, "notifications": 1, "maintenance": 1}
# They write by themselves, or send what others work on; without them risk and posting stand idle, and live through it.
AT_WORK = ("relay", "notifications", "maintenance")
# Everything that says what the bank promised and did; what is chained is compared by the proof as well.
TABLES = (
    "transfers_transfer", "accounts_account", "accounts_journalentry", "accounts_journalline", "messaging_event",
    "messaging_seal", "messaging_auditentry", "notifications_notification",
)  # fmt: skip


@dataclass
class PlainRig:
    """What the fault asks of a rig, on a stack without a proxy."""

    stack: Mapping[str, Any]
    supervisor: Supervisor
    superuser_url: str

    def home(self, server: str) -> Path:
        return Path(self.stack["file"]).parent / "servers" / server

    def pids(self) -> dict[str, int]:
        return {state["name"]: int(state["pid"]) for state in self.supervisor.states() if state["pid"]}

    def is_gone(self, pid: int) -> bool:
        return started_at(pid) is None and pid not in self.pids().values()

    def stop(self, *programs: str) -> None:
        for program in programs:
            with suppress(xmlrpc.client.Fault):
                self.supervisor.rpc.stopProcess(self._full(program), False)

    def start(self, *programs: str) -> None:
        for program in programs:
            self.supervisor.start(self._full(program))

    def _full(self, program: str) -> str:
        return f"{SERVERS if program == POSTGRESQL else 'roles'}:{program}"


@pytest.fixture
def bank() -> Iterator[tuple[PlainRig, Seeded]]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DATABASE_URL", "BROKER_URL", "EMAIL_URL"):
            patch.delenv(name, raising=False)
        with local.stack(name="restore", roles=ROLES, environment={"STUCK_SECONDS": "5"}) as stack:
            folder = Path(stack["file"]).parent
            port = httpx.URL(stack["database_url"]).port
            password = read_json(folder / "secrets.json")["database_superuser"]
            url = f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"
            supervisor = Supervisor(Instance(folder=folder, throwaway=True))
            yield PlainRig(stack, supervisor, url), seed_demo(stack, accounts=10, opening_minor=1_000_000)


def order(bank: tuple[PlainRig, Seeded], key: str) -> httpx.Response:
    rig, seeded = bank
    rows = [
        {"debit_account": debit, "credit_account": credit, "amount_minor": 1, "currency": seeded.currency}
        for debit, credit in zip(seeded.accounts, [*seeded.accounts[1:], seeded.accounts[0]], strict=True)
    ]
    headers = {"Authorization": f"Bearer {seeded.token}", "Idempotency-Key": key}
    return httpx.post(
        f"{rig.stack['api']}/api/v1/batches", json={"transfers": rows}, headers=headers, timeout=PATIENCE_SECONDS
    )


def ask(rig: PlainRig, sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(rig.stack["database_url"]) as database:
        return database.execute(sql).fetchall()


def content(rig: PlainRig) -> dict[str, tuple[Any, ...]]:
    """Every row of every table, as its number and a digest."""
    sql = "SELECT count(*), md5(coalesce(string_agg(t::text, E'\\n' ORDER BY t::text), '')) FROM {} AS t"
    return {table: ask(rig, sql.format(table))[0] for table in TABLES}


def all_posted(rig: PlainRig, number: int) -> bool:
    return ask(rig, "SELECT status, count(*) FROM transfers_transfer GROUP BY 1") == [("posted", number)]


def test_a_database_restored_from_backup_and_log_has_every_commit_and_goes_on(bank, monkeypatch, tmp_path):
    rig, _ = bank
    assert order(bank, "before-the-backup").status_code == 202
    assert eventually(lambda: all_posted(rig, 10))
    assert eventually(lambda: ask(rig, "SELECT 1 FROM messaging_seal LIMIT 1"))
    heads = eventually(lambda: manage(rig.stack, "seal_head").stdout)
    assert heads
    (tmp_path / "heads").write_text(heads)
    before: dict[str, Any] = {}

    def after_the_backup(_seconds: float) -> None:
        """Committed when the backup is made: in the log alone. Nobody works on it, so it is owed to the broker."""
        rig.stop(*AT_WORK)
        assert eventually(lambda: not {*AT_WORK} & {*rig.pids()})
        assert order(bank, "after-the-backup").status_code == 202
        before.update(content(rig))

    monkeypatch.setattr(restore, "time", SimpleNamespace(monotonic=time.monotonic, sleep=after_the_backup))
    fault = RestoreDatabase()
    fault.inject(rig, random.Random(1))  # type: ignore[arg-type]

    assert "restored to the last commit, as timeline 2" in fault.evidence()
    assert content(rig) == before
    assert ask(rig, "SELECT status, count(*) FROM transfers_transfer GROUP BY 1 ORDER BY 1") == [
        ("accepted", 10),
        ("posted", 10),
    ]
    # A client that does not know what became of its order repeats it, and is answered as before.
    again = eventually(lambda: (answer := order(bank, "after-the-backup")).status_code == 202 and answer)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert order(bank, str(uuid4())).status_code == 202
    rig.start(*AT_WORK)
    assert eventually(lambda: all_posted(rig, 30))
    assert ask(
        rig, "SELECT count(*), count(DISTINCT reference) FROM accounts_journalentry WHERE reference LIKE 'transfer:%'"
    ) == [(30, 30)]
    # All balances, and the chain of before the backup is still the one in the database.
    books = manage(rig.stack, "prove_books", "--json", "--head", str(tmp_path / "heads"))
    assert books.returncode == 0, books.stdout + books.stderr
