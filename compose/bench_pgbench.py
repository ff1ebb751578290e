"""The yardstick: pgbench's TPC-B-like transaction on the server that bankcore uses, in a database of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from compose import packages
from compose.bench_databases import client_environment

CLIENTS = 8
THREADS = 2
INIT_TIMEOUT_SECONDS = 300
GRACE_SECONDS = 60


class YardstickUnavailable(Exception):
    """pgbench is not on this machine, or it could not do its work."""


def find_pgbench(server_pids: Iterable[int] = ()) -> str:
    """Where pgbench is: beside the running server's program, beside an installed one, or in PATH.

    Raises: YardstickUnavailable.
    """
    installed = packages.installed_postgresql()
    folders = [*filter(None, map(_program_folder, server_pids)), *([installed.program.parent] if installed else [])]
    beside = (shutil.which("pgbench", path=str(folder)) for folder in folders)
    found = next(filter(None, beside), None) or shutil.which("pgbench")
    if found is None:
        raise YardstickUnavailable("pgbench was not found: it comes with the PostgreSQL server or its contrib package")
    return found


def _program_folder(pid: int) -> Path | None:
    try:
        return Path(os.readlink(f"/proc/{pid}/exe")).parent
    except OSError:
        return None


@dataclass(frozen=True)
class Yardstick:
    """pgbench and the database that is its own."""

    program: str
    database_url: str

    def prepare(self, *, scale: int) -> None:
        """Fill pgbench's tables: 100,000 accounts per unit of scale."""
        self._run("-i", "-q", "-s", str(scale), timeout_seconds=INIT_TIMEOUT_SECONDS)

    def measure(self, *, seconds: int) -> float:
        """Transactions per second, without the time that it took to connect."""
        options = ["-M", "prepared", "-c", str(CLIENTS), "-j", str(THREADS), "-T", str(seconds)]
        report = self._run(*options, timeout_seconds=seconds + GRACE_SECONDS)
        found = re.search(r"^tps = ([0-9.]+)", report, re.MULTILINE)
        if found is None:
            raise YardstickUnavailable(f"pgbench reported no rate:\n{report}")
        return float(found[1])

    def _run(self, *options: str, timeout_seconds: int) -> str:
        done = subprocess.run(
            [self.program, *options],
            env=client_environment(self.database_url),
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
        if done.returncode != 0:
            raise YardstickUnavailable(f"pgbench {' '.join(options)} failed:\n{done.stderr.strip()}")
        return done.stdout
