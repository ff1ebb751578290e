"""`make bench`: pgbench, a naive synchronous Django view and bankcore, side by side in one run on one machine.

Prints a table that explains each figure, keeps the result in .bankcore/bench/, and ends with one JSON object. It exits
with 0 when everything was measured, also with goals in red: a slow machine is no failure, hiding it would be one.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from types import FrameType
from typing import Any

from rich.console import Console

from compose import bench_engine, bench_growth, bench_naive, bench_plot, local
from compose.bench_bankcore import Bankcore, StillUnderwayError
from compose.bench_burst import Burst
from compose.bench_databases import scratch_database
from compose.bench_driver import Driver, ProbeFailed, drivers, ledger_database
from compose.bench_naive import NaiveServerFailed
from compose.bench_pgbench import Yardstick, YardstickUnavailable, find_pgbench
from compose.bench_profile import OTHERS
from compose.bench_report import machine_facts, print_table, save, settle, verdicts
from compose.client import Target
from compose.instance import StackError
from compose.stack_commands import ROOT, CommandFailed, seed_demo

ACCOUNTS = 10_000
OPENING_MINOR = 10**11
ACCEPT_SHARE = 0.5
# In the quick run too: at scale 10 eight clients wait for each other's branches and the yardstick shrinks by a fifth.
PGBENCH_SCALE = 50
INTERRUPTED = 130
DISTURBED_PERCENT = 10.0
FAILURES = (StackError, CommandFailed, NaiveServerFailed, ProbeFailed, StillUnderwayError, YardstickUnavailable)
ENGINE_PROCESSES = 2


@dataclass(frozen=True)
class Size:
    """How long and how often to measure."""

    rounds: int
    pgbench_seconds: int
    naive_seconds: float
    single_seconds: float
    accept_seconds: float
    batched: int
    idle: int
    warm_up_seconds: float
    engine_seconds: float
    burst_seconds: float
    growth_lines: int
    growth_turns: int
    quick: bool = False


FULL = Size(
    rounds=3, pgbench_seconds=20, naive_seconds=10.0, single_seconds=20.0, accept_seconds=20.0,
    batched=100_000, idle=150, warm_up_seconds=5.0,
    engine_seconds=6.0, burst_seconds=60.0, growth_lines=10_000_000, growth_turns=9,
)  # fmt: skip
QUICK = Size(
    rounds=1, pgbench_seconds=8, naive_seconds=4.0, single_seconds=8.0, accept_seconds=8.0,
    batched=40_000, idle=60, warm_up_seconds=3.0,
    engine_seconds=2.5, burst_seconds=15.0, growth_lines=1_000_000, growth_turns=5, quick=True,
)  # fmt: skip


@dataclass
class Bench:
    """One run: the three systems, and where the figures are told as they come."""

    size: Size
    console: Console
    pgbench: Yardstick | None
    naive: list[Target]
    bankcore: Bankcore
    engine: Sequence[Driver]
    random: Random

    def round(self, number: int) -> dict[str, float | None]:
        """Measure everything once, the systems that are compared right after one another."""
        size, found = self.size, dict[str, float | None]()
        self.console.print(f"round {number} of {size.rounds}", style="bold", highlight=False)
        # Before, between and after, because ratios to it are the first goals and a shared machine drifts.
        before = self._pgbench()
        self._tell(found, self.bankcore.measure_batches(transfers=size.batched))
        rates = [rate for rate in (before, self._pgbench()) if rate is not None]
        self._tell(found, bench_engine.measure(self.engine, seconds=size.engine_seconds))
        rates += [rate for rate in (self._pgbench(),) if rate is not None]
        self._tell(found, {"pgbench_tps": fmean(rates) if rates else None})
        self._tell(found, self.bankcore.measure_large_batches())
        self._tell(found, self.bankcore.measure_singles(seconds=size.single_seconds))
        self._tell(found, self._naive(hot=False))
        self._tell(found, self._naive(hot=True))
        self._tell(found, self.bankcore.measure_hot_singles(seconds=size.single_seconds))
        half = (found["single_tps"] or 0.0) * ACCEPT_SHARE
        self._tell(found, self.bankcore.measure_accept(seconds=size.accept_seconds, per_second=half))
        self._tell(found, self.bankcore.measure_idle(transfers=size.idle))
        return found

    def burst(self, sustained: float) -> tuple[dict[str, float | None], Burst]:
        """Ten times too much, once: after the rounds, because it needs the rate that they have found."""
        self.console.print("burst", style="bold", highlight=False)
        found = dict[str, float | None]()
        figures, burst = self.bankcore.measure_burst(sustained=sustained, seconds=self.size.burst_seconds)
        self._tell(found, figures)
        answers = ", ".join(f"{count} x {status}" for status, count in sorted(burst.statuses.items()))
        self.console.print(f"  answers: {answers}; {burst.broken} broken connections", highlight=False)
        for kind, told in burst.told.items():
            real = "never" if told.real_seconds is None else f"after {told.real_seconds:.1f} s"
            self.console.print(f"  a {kind} told to come in {told.seconds:.0f} s was taken {real}", highlight=False)
        return found, burst

    def growth(self, stack: Mapping[str, Any]) -> dict[str, float | None]:
        """The same work on a short and on a long history, in databases of their own."""
        self.console.print("growth", style="bold", highlight=False)
        found: dict[str, float | None] = {"growth_lines": float(self.size.growth_lines)}
        with bench_growth.two_databases(stack, long_lines=self.size.growth_lines) as (short, long):
            self._tell(found, bench_growth.measure(short, long, turns=self.size.growth_turns))
        return found

    def _pgbench(self) -> float | None:
        return self.pgbench.measure(seconds=self.size.pgbench_seconds) if self.pgbench else None

    def _naive(self, *, hot: bool) -> dict[str, float | None]:
        rate = bench_naive.measure(self.naive, hot=hot, seconds=self.size.naive_seconds, random=self.random)
        return {"naive_hot_tps" if hot else "naive_uniform_tps": rate}

    def _tell(self, found: dict[str, float | None], figures: Mapping[str, float | None]) -> None:
        found.update(figures)
        for key, value in figures.items():
            self.console.print(f"  {key} {'-' if value is None else f'{value:,.1f}'}", highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console()
    # A polite stop unwinds like an error would, so that the stack is stopped as well.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        result = run(QUICK if options.quick else FULL, console, seed=options.seed)
    except KeyboardInterrupt:
        console.print("Interrupted. Everything that the benchmark had started has been stopped.")
        return INTERRUPTED
    except FAILURES as error:
        console.print(f"The benchmark failed. {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    print(json.dumps(result), flush=True)
    return 0


def run(size: Size, console: Console, *, seed: int) -> dict[str, Any]:
    """Bring everything up, measure, stop everything, and return the result that was printed and kept."""
    machine = machine_facts()
    with ExitStack() as everything:
        stack = everything.enter_context(local.stack(name="bench"))
        bench = _prepare(everything, stack, size, console, Random(seed))
        bench.bankcore.warm_up(size.warm_up_seconds)
        rounds = [bench.round(number) for number in range(1, size.rounds + 1)]
        sustained = settle(rounds)["end_to_end_tps"] or 0.0
        once, burst = bench.burst(sustained)
        once |= bench.growth(stack)
        profiles = bench.bankcore.profiles
    values = settle([*rounds, once])
    console.print()
    print_table(console, values, rounds=size.rounds, quick=size.quick)
    _print_profiles(console, profiles)
    result = {
        **values,
        "verdicts": verdicts(values),
        "rounds": size.rounds,
        "quick": size.quick,
        "processors_percent": profiles,
        "machine": machine | {"database": stack["database"], "broker": stack["broker"]},
    }
    kept = save({**result, "measured": [*rounds, once]}, ROOT / ".bankcore" / "bench")
    offered = values["burst_offered_tps"] or 0.0
    picture = bench_plot.draw(
        burst, kept.with_suffix(".png"), offered=offered, sustained=sustained, seconds=size.burst_seconds
    )
    kept_in = f"Kept in {kept.relative_to(ROOT)}; the burst's picture is {picture.relative_to(ROOT)}"
    console.print(kept_in, highlight=False, soft_wrap=True)
    return result


def _prepare(everything: ExitStack, stack: Mapping[str, Any], size: Size, console: Console, random: Random) -> Bench:
    console.print("Preparing the databases.", highlight=False)
    naive_url = everything.enter_context(scratch_database(stack["database_url"], "bankcore_bench_naive"))
    naive = everything.enter_context(bench_naive.naive_servers(naive_url, logs=Path(stack["logs"])))
    seeded = seed_demo(stack, accounts=ACCOUNTS, opening_minor=OPENING_MINOR)
    ledger = everything.enter_context(
        ledger_database(stack, "bankcore_bench_engine", accounts=ACCOUNTS, opening_minor=OPENING_MINOR)
    )
    return Bench(
        size=size,
        console=console,
        pgbench=_prepare_pgbench(everything, stack, console),
        naive=naive,
        bankcore=everything.enter_context(closing(Bankcore(stack, seeded, random))),
        engine=everything.enter_context(drivers(ledger, ENGINE_PROCESSES)),
        random=random,
    )


def _prepare_pgbench(everything: ExitStack, stack: Mapping[str, Any], console: Console) -> Yardstick | None:
    """Fill pgbench's database; without pgbench everything else is still measured, and what needs it stays red."""
    try:
        program = find_pgbench(stack["server_pids"].get("postgresql", ()))
    except YardstickUnavailable as reason:
        console.print(f"pgbench is left out: {reason}", style="red", highlight=False, soft_wrap=True)
        return None
    url = everything.enter_context(scratch_database(stack["database_url"], "bankcore_bench_pgbench"))
    yardstick = Yardstick(program, url)
    yardstick.prepare(scale=PGBENCH_SCALE)
    return yardstick


def _print_profiles(console: Console, profiles: Mapping[str, Mapping[str, float]]) -> None:
    """What limits bankcore: who used the processors while it was measured (100 % is all of them)."""
    for load, profile in profiles.items():
        if profile:
            shares = ", ".join(f"{role} {share:g} %" for role, share in profile.items() if share >= 1.0)
            console.print(f"Processors during the {load}: {shares}.", highlight=False, soft_wrap=True)
    disturbed = max((profile.get(OTHERS, 0.0) for profile in profiles.values()), default=0.0)
    if disturbed > DISTURBED_PERCENT:
        warning = f"This machine was busy with other work (up to {disturbed:g} %): do not trust these figures."
        console.print(warning, style="bold red", highlight=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make bench ARGS=...", description="Measure pgbench, a naive Django view and bankcore side by side."
    )
    parser.add_argument("--quick", action="store_true", help="one short round, under 4 minutes (full: under 25)")
    parser.add_argument("--seed", type=int, default=1, help="draws the same transfers again (default: %(default)s)")
    return parser


def _interrupt(signum: int, frame: FrameType | None) -> None:
    # Not raised from here: asyncio has its own, orderly way to end on SIGINT while it runs.
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
