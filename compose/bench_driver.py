"""Starts probe processes (compose/bench_probe.py) on a database, and talks to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any
from urllib.parse import urlsplit, urlunsplit

from compose.bench_databases import scratch_database
from compose.stack_commands import ROOT, CommandFailed, Seeded, manage, seed_demo

STOP_SECONDS_MAX = 10


class ProbeFailed(Exception):
    """A probe process ended, or answered something else than a result; its own words are on standard error."""


class Driver:
    """One probe process. `ask` waits for its answer; `tell` and `hear` are its halves, for several at once."""

    def __init__(self, orders: IO[str], answers: IO[str]) -> None:
        self._orders, self._answers = orders, answers

    def ask(self, do: str, **options: Any) -> dict[str, Any]:
        self.tell(do, **options)
        return self.hear()

    def tell(self, do: str, **options: Any) -> None:
        try:
            self._orders.write(json.dumps({"do": do, **options}) + "\n")
            self._orders.flush()
        except BrokenPipeError as error:
            raise ProbeFailed("a probe process has ended") from error

    def hear(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise ProbeFailed("a probe process has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def ledger_database(stack: Mapping[str, Any], name: str, *, accounts: int, opening_minor: int) -> Iterator[Ledger]:
    """An empty bankcore database beside the stack's own, migrated and with accounts that hold money."""
    with scratch_database(stack["database_url"], name):
        url = urlunsplit(urlsplit(stack["database_url"])._replace(path=f"/{name}"))
        ledger = Ledger({**stack["environment"], "DATABASE_URL": url, "BANKCORE_STACK": ""}, url)
        if (done := manage({"environment": ledger.environment}, "migrate", "--verbosity", "0")).returncode != 0:
            raise CommandFailed(f"migrate ended with {done.returncode}:\n{done.stderr.strip()[-2000:]}")
        ledger.seeded = seed_demo({"environment": ledger.environment}, accounts=accounts, opening_minor=opening_minor)
        yield ledger


class Ledger:
    """A database of bankcore's, its accounts, and the environment that a process on it needs."""

    seeded: Seeded

    def __init__(self, environment: Mapping[str, str], url: str) -> None:
        self.environment = dict(environment)
        self.url = url


@contextmanager
def drivers(ledger: Ledger, count: int) -> Iterator[Sequence[Driver]]:
    """So many probe processes on this database, ready; ended with the block."""
    with ExitStack() as running:
        started = [running.enter_context(_driver(ledger)) for _ in range(count)]
        for number, driver in enumerate(started):
            seeded = ledger.seeded
            driver.tell(
                "begin", accounts=seeded.accounts, currency=seeded.currency, token=seeded.token, seed=number
            )  # fmt: skip
        for driver in started:
            driver.hear()
        yield started


@contextmanager
def _driver(ledger: Ledger) -> Iterator[Driver]:
    command = [sys.executable, "-m", "compose.bench_probe"]
    environment = {**os.environ, **ledger.environment, "LOG_LEVEL": "WARNING"}
    with subprocess.Popen(
        command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise ProbeFailed("a probe process has no pipes")
        try:
            yield Driver(process.stdin, process.stdout)
        finally:
            process.stdin.close()
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
