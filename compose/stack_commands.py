"""Runs bankcore's own commands against a stack that compose/local.py has brought up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COMMAND_SECONDS_MAX = 600


class CommandFailed(Exception):
    """A manage.py command ended badly; the message has what it said."""


@dataclass(frozen=True)
class Seeded:
    """Accounts to work with, all with the same opening balance, and a token that may use them."""

    accounts: list[str]
    currency: str
    token: str


def seed_demo(stack: Mapping[str, Any], *, accounts: int, opening_minor: int, currency: str = "EUR") -> Seeded:
    """Open accounts that hold money. Raises CommandFailed."""
    options = ["--accounts", str(accounts), "--opening-minor", str(opening_minor), "--currency", currency, "--json"]
    done = manage(stack, "seed_demo", *options)
    if done.returncode != 0:
        raise CommandFailed(f"seed_demo ended with {done.returncode}:\n{done.stderr.strip()[-2000:]}")
    seeded = _last_json(done.stdout)
    return Seeded(accounts=[str(a) for a in seeded["accounts"]], currency=seeded["currency"], token=seeded["token"])


@dataclass(frozen=True)
class Books:
    """What the proof of the books said."""

    balanced: bool
    report: dict[str, Any]


def prove_books(stack: Mapping[str, Any]) -> Books:
    """Check the whole ledger set-wise. Raises CommandFailed when the proof could not be made at all."""
    done = manage(stack, "prove_books", "--json")
    try:
        report = _last_json(done.stdout)
    except ValueError as error:
        raise CommandFailed(f"prove_books ended with {done.returncode}:\n{done.stderr.strip()[-2000:]}") from error
    return Books(balanced=done.returncode == 0, report=report)


def review_amount_minor(stack: Mapping[str, Any]) -> int:
    """From which amount on the stack's risk rules want a person to look."""
    variables = {**os.environ, **stack["environment"]}
    return int(variables.get("RISK_REVIEW_AMOUNT_MINOR") or 1_000_000)


def manage(stack: Mapping[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), *arguments],
        env={**os.environ, **stack["environment"]},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS_MAX,
        check=False,
    )


def _last_json(text: str) -> dict[str, Any]:
    """The JSON object that a command printed: all of its output, or the last line where it said more."""
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = json.loads((text.strip().splitlines() or [""])[-1])
    if not isinstance(parsed, dict):
        raise ValueError("not a JSON object")
    return parsed
