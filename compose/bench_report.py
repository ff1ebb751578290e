"""What the benchmark promises and how it tells the result: goals, table, machine facts, the file that is kept."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SIGNIFICANT_DIGITS = 4
BATCH_ROWS = 2_000
# For a ratio to something that never happened: JSON has no infinity.
NEVER = 1e6
# Parts that the quick run makes shorter than their goals are meant for.
SHORT_PARTS = ("burst_", "growth_")
ELSEWHERE = (
    "Not measured here: at least 1,000 webhook calls open at once in a worker of less than 300 MiB. "
    "tests/notifications/test_webhook_load.py holds 1,200 open, fails from 300 MiB on, and prints both figures."
)


@dataclass(frozen=True)
class Figure:
    """One row of the table: a measured value, or the ratio of two of them."""

    key: str
    unit: str
    meaning: str
    over: tuple[str, str] | None = None


@dataclass(frozen=True)
class Goal:
    """What a figure has to reach. A goal that was not reached is shown in red, never left out."""

    key: str
    at_least: float | None = None
    at_most: float | None = None

    def reached(self, value: float) -> bool:
        return value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0.0)

    def __str__(self) -> str:
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


FIGURES = (
    Figure("pgbench_tps", "/s", "The yardstick: pgbench TPC-B, prepared, 8 clients, on the same PostgreSQL server."),
    Figure(
        "naive_uniform_tps",
        "/s",
        "A synchronous Django view, 10,000 accounts, its best server and clients.",
    ),
    Figure("naive_hot_tps", "/s", "The same view when every transfer credits one account."),
    Figure("single_accept_tps", "/s", "bankcore: POST transfers from 32 clients at once, answered 202."),
    Figure("single_tps", "/s", "The same transfers, from the first request until the last was posted."),
    Figure("single_hot_tps", "/s", "As single_tps, when every transfer credits one account."),
    Figure("end_to_end_tps", "/s", "From the first POST batches to the last transfer posted; notifications end later."),
    Figure(
        "notified_tps", "/s", "The same transfers, until the last event and notification of theirs was out as well."
    ),
    Figure(
        "batch_accept_ms",
        "ms",
        f"Half of the requests with {BATCH_ROWS:,} transfers were answered 202 within this time.",
    ),
    Figure(
        "batch_10000_accept_ms", "ms", "Time to the 202 of a batch of 10,000 transfers, into an idle system: median."
    ),
    Figure(
        "engine_tps",
        "/s",
        "The ledger alone: two processes post batches of 1,000, uniform over 10,000 accounts, from start to end.",
    ),
    Figure("engine_hot_tps", "/s", "The same when every transfer credits one account."),
    Figure("engine_100_tps", "/s", "The ledger alone in batches of 100, uniform."),
    Figure("engine_100_p99_ms", "ms", "99 of 100 of these batches were posted and committed within this time."),
    Figure("accept_p50_ms", "ms", "Time to the 202 at half of single_tps, counted from the planned moment: median."),
    Figure("accept_p99_ms", "ms", "The same, 99 of 100 requests."),
    Figure("accept_loaded_p50_ms", "ms", "Time to the 202 with 32 clients pushing as hard as they can: median."),
    Figure("accept_loaded_p99_ms", "ms", "The same, 99 of 100 requests."),
    Figure(
        "accept_to_posted_p50_ms",
        "ms",
        "Idle, one transfer at a time: from created_at until another connection sees it posted.",
    ),
    Figure("accept_to_posted_p99_ms", "ms", "The same, 99 of 100 transfers."),
    Figure(
        "burst_offered_tps",
        "/s",
        "The burst: what was sent, in batches, each sent once; ten times end_to_end_tps is planned.",
    ),
    Figure(
        "burst_offered_times",
        "x",
        "What the burst sent against end_to_end_tps.",
        ("burst_offered_tps", "end_to_end_tps"),
    ),
    Figure(
        "burst_errors",
        "",
        "Answers of the burst that were not 202, nor 429 or 503 with Retry-After; broken connections.",
    ),
    Figure("burst_lost", "", "Transfers that the burst's 202s promised and that were not posted."),
    Figure(
        "burst_accept_p99_ms",
        "ms",
        "Time to the 202 in the burst, 99 of 100 accepted requests, counted from the sending (not the planned moment).",
    ),
    Figure(
        "burst_drain_share",
        "x",
        "What was posted per second while the burst lasted and drained, against end_to_end_tps.",
    ),
    Figure(
        "burst_retry_after_off",
        "x",
        "How far Retry-After was from when one of its kind was taken, the worse of batch and file. Judged are the "
        "burst's last refusal of a batch and the first of a file after the burst, each asked again until a 202.",
    ),
    Figure(
        "growth_posting", "x", "A batch of 500 posted: with the long history over with the short one (growth_lines)."
    ),
    Figure("growth_balance", "x", "The same for GET balance."),
    Figure("growth_listing", "x", "The same for the first page of GET transfers of an account."),
    Figure("growth_entries", "x", "The same for the first page of GET entries of an account."),
    Figure("growth_proof", "x", "The same for one increment of the books proof."),
    Figure("growth_ratio", "x", "The largest of these."),
    Figure("growth_lines", "", "Journal lines of the long history; the short one has 100,000."),
    Figure("engine_vs_pgbench", "x", "The ledger alone against the yardstick.", ("engine_tps", "pgbench_tps")),
    Figure("engine_100_vs_pgbench", "x", "The same in batches of 100.", ("engine_100_tps", "pgbench_tps")),
    Figure(
        "hot_vs_uniform", "x", "The ledger alone on a hot account against uniform.", ("engine_hot_tps", "engine_tps")
    ),
    Figure(
        "end_to_end_vs_pgbench",
        "x",
        "Batches through the whole system against the yardstick.",
        ("end_to_end_tps", "pgbench_tps"),
    ),
    Figure(
        "single_vs_naive_uniform",
        "x",
        "Single transfers against the synchronous view.",
        ("single_tps", "naive_uniform_tps"),
    ),
    Figure("single_vs_naive_hot", "x", "The same on one hot account.", ("single_hot_tps", "naive_hot_tps")),
)

# What a bank can expect of one machine with two processors, as ratios in one run.
GOALS = (
    Goal("engine_vs_pgbench", at_least=10.0),
    Goal("engine_100_vs_pgbench", at_least=7.0),
    Goal("engine_100_p99_ms", at_most=12.0),
    Goal("hot_vs_uniform", at_least=1.0),
    Goal("end_to_end_vs_pgbench", at_least=2.0),
    Goal("single_vs_naive_uniform", at_least=2.0),
    Goal("single_vs_naive_hot", at_least=2.0),
    Goal("single_tps", at_least=1000.0),
    Goal("accept_p99_ms", at_most=50.0),
    Goal("accept_to_posted_p50_ms", at_most=50.0),
    Goal("accept_to_posted_p99_ms", at_most=250.0),
    Goal("batch_10000_accept_ms", at_most=1000.0),
    Goal("burst_offered_times", at_least=9.5),
    Goal("burst_errors", at_most=0.0),
    Goal("burst_lost", at_most=0.0),
    Goal("burst_accept_p99_ms", at_most=250.0),
    Goal("burst_drain_share", at_least=0.9),
    Goal("burst_retry_after_off", at_most=0.3),
    Goal("growth_ratio", at_most=1.15),
)


def settle(rounds: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """The median of each figure over all rounds that have it, and the ratios computed from those medians."""
    values: dict[str, float | None] = {}
    for figure in FIGURES:
        if figure.over is None:
            measured = [value for one in rounds if (value := one.get(figure.key)) is not None]
            values[figure.key] = _rounded(statistics.median(measured)) if measured else None
    for figure in FIGURES:
        if figure.over is not None:
            above, below = (values.get(key) for key in figure.over)
            values[figure.key] = _rounded(above / below) if above and below else None
    return values


def verdicts(values: Mapping[str, float | None]) -> dict[str, str]:
    """PASS or RED for each goal. What could not be measured has not been reached."""
    return {goal.key: _verdict(goal, values.get(goal.key)) for goal in GOALS}


def _verdict(goal: Goal, value: float | None) -> str:
    return "PASS" if value is not None and goal.reached(value) else "RED"


def print_table(console: Console, values: Mapping[str, float | None], *, rounds: int, quick: bool = False) -> None:
    """Say each figure, its goal and its meaning; `quick` marks the verdicts of parts that were cut short."""
    how = "one measurement each" if rounds == 1 else f"median of {rounds}"
    table = Table(title=f"bankcore benchmark ({how}, one machine, one run)", title_justify="left")
    table.add_column("figure", no_wrap=True)
    for heading in ("value", "x pgbench", "goal"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    goals, results = {goal.key: str(goal) for goal in GOALS}, verdicts(values)
    for figure in FIGURES:
        value, verdict = values.get(figure.key), results.get(figure.key, "")
        colour = {"PASS": "green", "RED": "bold red"}.get(verdict)
        mark = " (quick)" if quick and figure.key.startswith(SHORT_PARTS) else ""
        shown = f"[{colour}]{verdict}[/]{mark}" if colour else ""
        ratio = _ratio(figure, value, values.get("pgbench_tps"))
        table.add_row(figure.key, _shown(figure, value), ratio, goals.get(figure.key, ""), shown)
    console.print(table)
    for figure in FIGURES:
        console.print(f"{figure.key}: {figure.meaning}", highlight=False, soft_wrap=True)
    if quick:
        meant = "(quick): the goal is meant for the full run, with a burst of 60 s and 10 million journal lines."
        console.print(meant, highlight=False, soft_wrap=True)
    console.print(ELSEWHERE, highlight=False, soft_wrap=True)


def machine_facts() -> dict[str, Any]:
    """What a reader needs to know about the machine before comparing two results."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "cpus": os.cpu_count(),
        "cpu": _cpu_name(),
        "memory_mib": _memory_mib(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(load, 2) if load is not None else None,
    }


def save(result: Mapping[str, Any], folder: Path) -> Path:
    """Keep the result, named by its moment in UTC, and return where."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


def _shown(figure: Figure, value: float | None) -> str:
    if value is None:
        return "not measured"
    if figure.unit == "x" and value >= NEVER:
        return "never"
    return f"{value:,.0f} {figure.unit}" if value >= 100 else f"{value:.2f} {figure.unit}"


def _ratio(figure: Figure, value: float | None, pgbench_tps: float | None) -> str:
    return f"{value / pgbench_tps:.2f}" if figure.unit == "/s" and value is not None and pgbench_tps else ""


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if abs(value) < 10**SIGNIFICANT_DIGITS else float(round(value))


def _cpu_name() -> str:
    return _first_line("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def _memory_mib() -> int | None:
    line = _first_line("/proc/meminfo", "MemTotal")
    return int(line.split()[0]) // 1024 if line else None


def _first_line(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)
