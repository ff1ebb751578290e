"""Tells a person in a few lines what the demo sent and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from compose.demo_sender import Record
from compose.demo_verdict import Verdict
from compose.stack_commands import Books

PROBLEMS_SHOWN = 5


def print_summary(console: Console, outcome: Mapping[str, Any], record: Record, verdict: Verdict, books: Books) -> None:
    """Print the table, and below it whatever was not as it should be."""
    table = Table(title="bankcore demo", title_justify="left", show_header=False)
    table.add_column("what", no_wrap=True)
    table.add_column("told")
    for what, told in _rows(outcome, record, verdict):
        table.add_row(what, told)
    console.print(table)
    for problem in _problems(record, verdict, books):
        console.print(problem, style="red", markup=False, highlight=False, soft_wrap=True)


def _rows(outcome: Mapping[str, Any], record: Record, verdict: Verdict) -> Iterable[tuple[str, str]]:
    accepted, seconds = outcome["accepted"], outcome["seconds"]
    batched = sum(record.batches.values())
    yield (
        "sent",
        f"{accepted:,} accepted: {accepted - batched:,} one by one, {batched:,} in {len(record.batches)} batches",
    )
    yield "answers", _listed(record.answers)
    yield "became", _listed(verdict.statuses)
    yield "reasons", _listed(verdict.reasons) or "none"
    rate = f", {accepted / seconds:,.0f} a second from the first request to the last end" if seconds else ""
    yield "time", f"accepted within {record.seconds:.1f} s, ended within {seconds:.1f} s{rate}"
    yield "kept", f"lost {outcome['lost']}, duplicated {outcome['duplicated']}, books {outcome['books']}"
    yield "servers", f"{outcome['database']}, broker {outcome['broker']}; what this run started has been stopped"


def _listed(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{count:,} {name}" for name, count in ordered)


def _problems(record: Record, verdict: Verdict, books: Books) -> Iterable[str]:
    found = (
        ("lost", verdict.lost),
        ("duplicated", verdict.duplicated),
        ("wrong balance", verdict.wrong_balances),
        ("unexpected answer", record.surprises),
        ("books", [] if books.balanced else [str(books.report)]),
    )
    for name, all_of_them in found:
        for one in all_of_them[:PROBLEMS_SHOWN]:
            yield f"{name}: {one}"
        if len(all_of_them) > PROBLEMS_SHOWN:
            yield f"{name}: and {len(all_of_them) - PROBLEMS_SHOWN:,} more"
