"""`make demo`: brings the whole stack up, sends real transfers through the REST API, and proves what became of them.

Nothing here is simulated: the servers, workers and web processes are those of `make up`, in a private copy that is
stopped at the end. The last line is one JSON object; the exit code is 0 only if nothing was lost, nothing was done
twice and the books balance.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from rich.console import Console

from compose import local
from compose.demo_progress import Watcher
from compose.demo_sender import Record, Sender, Unanswered
from compose.demo_summary import print_summary
from compose.demo_verdict import Verdict, examine
from compose.demo_workload import Kind, Workload
from compose.instance import StackError
from compose.stack_commands import Books, CommandFailed, prove_books, review_amount_minor, seed_demo

QUIET_SECONDS_MAX = 90.0
WAIT_SECONDS_MAX = 1_800.0
INTERRUPTED = 130
FAILURES = (StackError, CommandFailed, Unanswered)


@dataclass(frozen=True)
class Outcome:
    """Everything that the summary and the JSON line tell."""

    record: Record
    verdict: Verdict
    books: Books
    seconds: float
    broker: str
    database: str

    @property
    def balanced(self) -> bool:
        return self.books.balanced and not self.verdict.wrong_balances

    @property
    def good(self) -> bool:
        bad = self.verdict.lost or self.verdict.duplicated or self.record.surprises
        return self.balanced and not bad

    def as_json(self) -> dict[str, Any]:
        return {
            "accepted": len(self.record.accepted),
            "posted": self.verdict.statuses["posted"],
            "rejected": self.verdict.statuses["rejected"],
            "in_review": self.verdict.statuses["in_review"],
            "lost": len(self.verdict.lost),
            "duplicated": len(self.verdict.duplicated),
            "books": "balanced" if self.balanced else "unbalanced",
            "seconds": round(self.seconds, 1),
            "broker": self.broker,
            "database": self.database,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console()
    # A polite stop unwinds like an error would, so that the stack is stopped as well.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with local.stack(name="demo") as stack:
            outcome = run(stack, options, console)
    except KeyboardInterrupt:
        console.print("Interrupted. Everything that the demo had started has been stopped.")
        return INTERRUPTED
    except FAILURES as error:
        console.print(f"The demo failed. {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    print_summary(console, outcome.as_json(), outcome.record, outcome.verdict, outcome.books)
    print(json.dumps(outcome.as_json()), flush=True)
    return 0 if outcome.good else 1


def run(stack: Mapping[str, Any], options: argparse.Namespace, console: Console) -> Outcome:
    """Seed, send, wait for the ends, prove the books."""
    review_from = review_amount_minor(stack)
    opening_minor = Workload.opening_minor(review_from)
    seeded = seed_demo(stack, accounts=options.accounts, opening_minor=opening_minor)
    workload = Workload(seeded.accounts, currency=seeded.currency, review_amount_minor=review_from, seed=options.seed)
    singles = workload.singles(options.transfers)
    invalid = sum(planned.kind is Kind.INVALID for planned in singles)
    sender = Sender(api=stack["api"], token=seeded.token)
    console.print(
        f"Sending {len(singles) - invalid:,} single transfers from {options.clients} clients and {options.batched:,} "
        f"in batches, between {len(seeded.accounts):,} accounts.",
        highlight=False,
        soft_wrap=True,
    )
    total = len(singles) - invalid + options.batched
    began = time.monotonic()
    with Watcher(stack["database_url"], total=total, console=console) as watcher:
        asyncio.run(sender.send(singles, workload.batches(options.batched), clients=options.clients))
        watcher.await_settled(quiet_seconds_max=QUIET_SECONDS_MAX, seconds_max=WAIT_SECONDS_MAX)
    seconds = time.monotonic() - began
    console.print("Looking for every accepted transfer, and proving the books.", highlight=False)
    verdict = examine(
        sender.record, stack["database_url"], run=workload.run, accounts=seeded.accounts, opening_minor=opening_minor
    )
    return Outcome(
        record=sender.record,
        verdict=verdict,
        books=prove_books(stack),
        seconds=seconds,
        broker=stack["broker"],
        database=stack["database"],
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make demo ARGS=...", description="Send real transfers through a private bankcore and prove the result."
    )
    add = parser.add_argument
    add("--transfers", type=_count(0), default=2_000, help="single transfers to send (default: %(default)s)")
    add("--batched", type=_count(0), default=10_000, help="transfers to send in batches (default: %(default)s)")
    add("--accounts", type=_count(2), default=200, help="accounts to open (default: %(default)s)")
    add("--clients", type=_count(1), default=16, help="clients at work at the same time (default: %(default)s)")
    add("--seed", type=int, default=1, help="the same seed draws the same transfers (default: %(default)s)")
    return parser


def _count(least: int) -> Any:
    def parse(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"must be {least} or more")
        return number

    parse.__name__ = "number"
    return parse


def _interrupt(signum: int, frame: FrameType | None) -> None:
    # Not raised from here: asyncio has its own, orderly way to end on SIGINT while it runs.
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
