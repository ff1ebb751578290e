"""Prove that the books balance."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand
from rich.console import Console

from accounts.books import CHECKS as LEDGER_CHECKS
from transfers.books import CHECKS as TRANSFER_CHECKS
from transfers.books import prove


class Command(BaseCommand):
    help = "Check every entry, balance, limit and reference, and name what does not add up. Exit 1 on any violation."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *, json: bool, **options: Any) -> None:
        result = _prove_with_progress(silent=json)
        if json:
            self.stdout.write(_as_json(result))
        else:
            for violation in result.violations:
                self.stdout.write(f"{violation.check}: {violation.subject}: {violation.detail}")
            verdict = "The books balance" if result.balanced else "THE BOOKS DO NOT BALANCE"
            self.stdout.write(f"{verdict}: {result.entries:,} entries, {len(result.counts)} checks.")
        if not result.balanced:
            raise SystemExit(1)


def _prove_with_progress(*, silent: bool) -> Any:
    total = len(LEDGER_CHECKS) + len(TRANSFER_CHECKS)
    done: list[str] = []
    with Console(stderr=True, quiet=silent).status("proving") as status:

        def show(name: str) -> None:
            done.append(name)
            status.update(f"check {len(done)} of {total}: {name.replace('_', ' ')}")

        return prove(show)


def _as_json(result: Any) -> str:
    return json.dumps(
        {
            "books": "balanced" if result.balanced else "unbalanced",
            "entries": result.entries,
            "checks": result.counts,
            "violations": [violation._asdict() for violation in result.violations],
        }
    )
