"""The comparison: the naive synchronous Django project, under the same web server and on the same database server."""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

import psycopg

from compose.client import Load, Target, drive
from compose.roles import WEB_WORKERS

ROOT = Path(__file__).resolve().parent.parent
ACCOUNTS = 10_000
OPENING_MINOR = 10**12
START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 10.0
PATH = "/api/v1/transfers"
CREATED = 201
# The view holds row locks for a whole request, so threads and clients that queue up for one row slow it down. It is
# measured under the web server as bankcore has it and with one thread, from few and from many clients; the best counts.
THREADS = (1, 4)
CLIENTS = (8, 32)


class NaiveServerFailed(Exception):
    """The naive project did not start, or answered something else than a transfer."""


@contextmanager
def naive_servers(database_url: str, *, logs: Path) -> Iterator[list[Target]]:
    """Make the tables and accounts, and serve the naive project in each shape until the block ends."""
    environment = os.environ | {
        "DJANGO_SETTINGS_MODULE": "compose.naive.settings",
        "NAIVE_DATABASE_URL": database_url,
        "NAIVE_SECRET_KEY": secrets.token_urlsafe(32),
        "PYTHONPATH": str(ROOT),
    }
    migrate = [sys.executable, "-m", "django", "migrate", "--run-syncdb", "--verbosity", "0"]
    subprocess.run(migrate, env=environment, cwd=ROOT, check=True)
    _open_accounts(database_url)
    with ExitStack() as servers:
        yield [servers.enter_context(_server(environment, n, logs / f"naive-{n}.log")) for n in THREADS]


@contextmanager
def _server(environment: Mapping[str, str], threads: int, log: Path) -> Iterator[Target]:
    port = _free_port()
    command = _server_command(port, threads)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=output)
    try:
        _await_port(server, port, log)
        yield Target(f"http://127.0.0.1:{port}")
    finally:
        _stop(server)


def measure(targets: Sequence[Target], *, hot: bool, seconds: float, random: Random) -> float:
    """Transfers per second under the server and the number of clients that suit the view best; answered is finished."""
    loads = [
        drive(target, _requests(target, hot, random), clients=clients, seconds=seconds, wanted=CREATED)
        for target, clients in itertools.product(targets, CLIENTS)
    ]
    for load in loads:
        _check(load)
    return max(load.per_second for load in loads)


def _requests(target: Target, hot: bool, random: Random) -> Iterator[bytes]:
    while True:
        debit, credit = (random.randrange(2, ACCOUNTS + 1), 1) if hot else random.sample(range(1, ACCOUNTS + 1), 2)
        body = b'{"debit_account":%d,"credit_account":%d,"amount_minor":%d,"currency":"EUR"}'
        yield target.post(PATH, body % (debit, credit, random.randrange(1, 100)))


def _check(load: Load) -> None:
    if set(load.statuses) != {CREATED} or load.broken:
        raise NaiveServerFailed(f"answers {dict(load.statuses)}, {load.broken} broken connections")


def _open_accounts(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO naive_account (currency, balance_minor) SELECT 'EUR', %s FROM generate_series(1, %s)",
            (OPENING_MINOR, ACCOUNTS),
        )
        connection.execute("VACUUM ANALYZE naive_account")


def _server_command(port: int, threads: int) -> Sequence[str]:
    size = ["--workers", str(WEB_WORKERS), "--blocking-threads", str(threads)]
    where = ["--host", "127.0.0.1", "--port", str(port), "--no-ws", "--log-level", "warning"]
    return [sys.executable, "-m", "granian", "--interface", "wsgi", *size, *where, "compose.naive.wsgi:application"]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _await_port(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return
        except OSError:
            time.sleep(0.1)
    raise NaiveServerFailed(f"the naive project did not start:\n{log.read_text()[-2000:]}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
