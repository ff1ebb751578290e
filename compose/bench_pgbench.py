"""The yardstick: pgbench's TPC-B-like transaction on the server that bankcore uses, in a database of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from compose.bench_databases import client_environment

CLIENTS = 8
THREADS = 2
INIT_TIMEOUT_SECONDS = 300
GRACE_SECONDS = 60


class YardstickUnavailable(Exception):
    """pgbench is not on this machine, or it could not do its work."""


def find_pgbench() -> str:
    """Where pgbench is: in PATH, or beside the server's own programs. Raises YardstickUnavailable."""
    found = shutil.which("pgbench")
    if found is None and (config := shutil.which("pg_config")):
        beside = Path(subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True).stdout.strip())
        found = shutil.which("pgbench", path=str(beside))
    if found is None:
        raise YardstickUnavailable("pgbench was not found: it comes with the PostgreSQL server or its contrib package")
    return found


def prepare(database_url: str, *, scale: int) -> None:
    """Fill pgbench's tables: 100,000 accounts per unit of scale."""
    _run(["-i", "-q", "-s", str(scale)], database_url, timeout_seconds=INIT_TIMEOUT_SECONDS)


def measure(database_url: str, *, seconds: int) -> float:
    """Transactions per second, without the time that it took to connect."""
    options = ["-M", "prepared", "-c", str(CLIENTS), "-j", str(THREADS), "-T", str(seconds)]
    report = _run(options, database_url, timeout_seconds=seconds + GRACE_SECONDS)
    found = re.search(r"^tps = ([0-9.]+)", report, re.MULTILINE)
    if found is None:
        raise YardstickUnavailable(f"pgbench reported no rate:\n{report}")
    return float(found[1])


def _run(options: list[str], database_url: str, *, timeout_seconds: int) -> str:
    done = subprocess.run(
        [find_pgbench(), *options],
        env=client_environment(database_url),
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    if done.returncode != 0:
        raise YardstickUnavailable(f"pgbench {' '.join(options)} failed:\n{done.stderr.strip()}")
    return done.stdout
