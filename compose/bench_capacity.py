"""Holds `manage.py capacity` against a real burst: `python -m compose.bench_capacity`, in a stack of its own.

A short burst teaches the rates. Then comes a longer one, and its arrivals, as they really were, are given to the
forecast together with the rates of the first. Both are printed side by side; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import accumulate
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, LiteralString

import psycopg
from rich.console import Console
from rich.table import Table

from compose import local
from compose.bench_bankcore import READ_ONLY, Bankcore, StillUnderwayError
from compose.instance import StackError
from compose.stack_commands import CommandFailed, manage, seed_demo

ACCOUNTS = 2_000
OPENING_MINOR = 10**11
WARM_UP, CALIBRATION, BURST = 4_000, 24_000, 60_000
STEPS_PER_SECOND = 10
GOAL = 0.25
BACKLOG, WAIT, END, SIZE = "most not posted yet", "longest wait (s)", "all done after (s)", "database grows by (MiB)"

_HAPPENED = f"""
SELECT type, floor(extract(epoch FROM created_at - %(since)s) * {STEPS_PER_SECOND})::int, count(*)
  FROM messaging_event
 WHERE created_at >= %(since)s AND type IN ('transfer.accepted', 'transfer.posted')
 GROUP BY 1, 2
"""  # noqa: S608 a number of our own
_SIZE = """
SELECT sum(pg_total_relation_size(relid))::float FROM pg_stat_user_tables
 WHERE relname IN ('transfers_transfer', 'messaging_event', 'accounts_journalentry', 'accounts_journalline',
                   'notifications_notification')
"""
_ENDS = """
SELECT extract(epoch FROM max(posted_at - created_at))::float,
       extract(epoch FROM greatest(max(posted_at), (SELECT max(delivered_at) FROM notifications_notification))
                          - %(since)s)::float
  FROM transfers_transfer WHERE created_at >= %(since)s
"""


def measure(stack: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
    """Calibrate, send the burst, and return the rates with what was predicted and what was real of each figure."""
    seeded = seed_demo(stack, accounts=ACCOUNTS, opening_minor=OPENING_MINOR)
    with (
        closing(Bankcore(stack, seeded, Random(seed))) as bankcore,
        psycopg.connect(stack["database_url"], autocommit=True, options=READ_ONLY) as database,
    ):
        bankcore.measure_batches(transfers=WARM_UP)
        bankcore.measure_batches(transfers=CALIBRATION)
        rates = _capacity(stack, "--arrivals", "0:1")["rates"]
        before, size = _one(database, "SELECT clock_timestamp()"), _one(database, _SIZE)
        bankcore.measure_batches(transfers=BURST)
        since = _one(database, "SELECT min(created_at) FROM transfers_transfer WHERE created_at >= %s", (before,))
        happened = database.execute(_HAPPENED, {"since": since}).fetchall()
        longest, end = database.execute(_ENDS, {"since": since}).fetchone() or (0.0, 0.0)
        grown = _one(database, _SIZE) - size
    real = {BACKLOG: _peak(happened), WAIT: longest, END: end, SIZE: grown / 2**20}
    seen = _forecast(stack, rates, {step: n for kind, step, n in happened if kind == "transfer.accepted"})
    predicted = {
        BACKLOG: seen["peak_backlog"],
        WAIT: seen["longest_wait_seconds"],
        END: seen["drained_after_seconds"],
        SIZE: seen["database_bytes"] / 2**20,
    }
    return {"rates": rates, "predicted": predicted, "real": real, "off": _off(predicted, real)}


def _one(database: psycopg.Connection[Any], query: LiteralString, arguments: Sequence[Any] = ()) -> Any:
    (value,) = database.execute(query, arguments).fetchone() or (None,)
    return value


def _peak(happened: Sequence[tuple[str, int, int]]) -> float:
    """How much was accepted and not posted at most, from when events of each kind were written."""
    changes: Counter[int] = Counter()
    for kind, step, number in happened:
        changes[step] += number if kind == "transfer.accepted" else -number
    return float(max(accumulate(changes[step] for step in sorted(changes)), default=0))


def _forecast(stack: Mapping[str, Any], rates: Mapping[str, float], accepted: Mapping[int, int]) -> dict[str, Any]:
    steps = range(max(accepted) + 1)
    lines = [f"{step / STEPS_PER_SECOND},{accepted.get(step, 0) * STEPS_PER_SECOND}" for step in steps]
    with TemporaryDirectory() as folder:
        profile = Path(folder) / "arrivals.csv"
        profile.write_text("\n".join(["seconds,per_second", *lines, ""]))
        # What the burst itself would teach is not to be used.
        learnt = ",".join(f"{stage}={rate}" for stage, rate in rates.items())
        until = str(len(steps) / STEPS_PER_SECOND)
        return _capacity(stack, "--arrivals", str(profile), "--until", until, "--rates", learnt, "--no-admission")


def _capacity(stack: Mapping[str, Any], *options: str) -> dict[str, Any]:
    done = manage(stack, "capacity", *options, "--json")
    if done.returncode != 0:
        raise CommandFailed(f"capacity ended with {done.returncode}:\n{done.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _off(predicted: Mapping[str, float | None], real: Mapping[str, float]) -> dict[str, float | None]:
    """By which part of the real figure each predicted one is too high (or below 0: too low)."""
    return {
        name: None if value is None or not real[name] else round(value / real[name] - 1.0, 3)
        for name, value in predicted.items()
    }


def _show(console: Console, result: Mapping[str, Any]) -> None:
    rates = ", ".join(f"{stage} {rate:,.0f}/s" for stage, rate in result["rates"].items())
    table = Table(title=f"Forecast and burst of {BURST:,} transfers; learnt: {rates}", title_justify="left")
    for heading in ("figure", "predicted", "real", "off", "verdict"):
        table.add_column(heading)
    for name, real in result["real"].items():
        predicted, off = result["predicted"][name], result["off"][name]
        is_near = off is not None and abs(off) <= GOAL
        shown = "never" if predicted is None else f"{predicted:,.1f}"
        verdict = "[green]PASS[/]" if is_near else "[bold red]RED[/]"
        table.add_row(name, shown, f"{real:,.1f}", "-" if off is None else f"{off:+.0%}", verdict)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m compose.bench_capacity", description="Hold `manage.py capacity` against a real burst."
    )
    parser.add_argument("--seed", type=int, default=1, help="draws the same transfers again (default: %(default)s)")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        with local.stack(name="capacity") as stack:
            result = measure(stack, seed=options.seed)
    except (StackError, CommandFailed, StillUnderwayError) as error:
        console.print(f"It could not be measured. {error}", style="red", markup=False, highlight=False)
        return 1
    _show(console, result)
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
