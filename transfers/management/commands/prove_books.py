"""Prove that the books balance."""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from accounts.books import CHECKS as LEDGER_CHECKS
from accounts.books import SEAL_CHECKS
from accounts.proofs import Result
from bankcore.messaging.seal_checks import KeptHead
from transfers.books import CHECKS as TRANSFER_CHECKS
from transfers.books import prove, prove_increment


class Command(BaseCommand):
    help = (
        "Check every entry, balance, limit, reference and seal, and name what does not add up. Exit 1 on any violation."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        how = parser.add_mutually_exclusive_group()
        how.add_argument("--full", action="store_true", help="prove everything from the beginning (the default)")
        how.add_argument(
            "--incremental",
            action="store_true",
            help="prove what is new since the last proof, as the maintenance worker does every minute",
        )
        parser.add_argument(
            "--head",
            action="append",
            default=[],
            metavar="FILE|VALUE",
            help="heads kept outside, from seal_head: a file (- is standard input) or one value such as"
            " accounts_journalline:17:<hex>; each must still be in its chain",
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *, json: bool, full: bool, incremental: bool, head: list[str], **options: Any) -> None:
        kept = [one for value in head for one in _kept_heads(value)]
        if incremental and kept:
            raise CommandError("--head belongs to a full proof: leave --incremental out.")
        result = prove_increment() if incremental else _prove_with_progress(kept, silent=json)
        if result is None:
            raise CommandError("Another increment is running: wait for it, or look at its result in the admin.")
        if json:
            self.stdout.write(_as_json(result))
        else:
            for violation in result.violations:
                self.stdout.write(f"{violation.check}: {violation.subject}: {violation.detail}")
            verdict = "The books balance" if result.balanced else "THE BOOKS DO NOT BALANCE"
            self.stdout.write(f"{verdict}: {result.entries:,} entries, {len(result.counts)} checks.")
        if not result.balanced:
            raise SystemExit(1)


def _prove_with_progress(kept: Iterable[KeptHead], *, silent: bool) -> Result:
    steps = [*LEDGER_CHECKS, *TRANSFER_CHECKS, *SEAL_CHECKS]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, quiet=silent), transient=True, disable=silent) as bar:
        task = bar.add_task("proving", total=len(steps))

        def show(name: str, share: float) -> None:
            done = steps.index(name)
            text = f"check {done + 1} of {len(steps)}: {name.replace('_', ' ')}"
            bar.update(task, completed=done + share, description=text)

        return prove(show, kept_heads=list(kept))


def _kept_heads(value: str) -> list[KeptHead]:
    """Read heads from one value, or from a file with what seal_head printed, with or without --json."""
    text = value
    if value == "-":
        text = sys.stdin.read()
    elif Path(value).is_file():
        text = Path(value).read_text()
    try:
        if text.lstrip().startswith("{"):
            heads = [KeptHead(chain, int(one["number"]), one["head"]) for chain, one in json.loads(text).items()]
        else:
            heads = [
                KeptHead(chain, int(number), digest)
                for chain, number, digest in (line.strip().split(":") for line in text.splitlines() if line.strip())
            ]
        if not heads or any(len(bytes.fromhex(head.hex)) != 32 for head in heads):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(
            f"--head {value}: neither a file of seal_head nor a value like accounts_journalline:17:<64 hex digits>."
        ) from error
    return heads


def _as_json(result: Result) -> str:
    return json.dumps(
        {
            "books": "balanced" if result.balanced else "unbalanced",
            "entries": result.entries,
            "seconds": round(result.seconds, 3),
            "checks": result.counts,
            "violations": [violation._asdict() for violation in result.violations],
        }
    )
