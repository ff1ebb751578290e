"""`manage.py capacity`: what a load would do here, and what it would take to bear it."""

import csv
import json
import os
from argparse import ArgumentParser, ArgumentTypeError
from math import ceil, isfinite, nan
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.table import Table

from bankcore.messaging.backpressure import Priority
from transfers.capacity import (
    FACTOR_MAX,
    SIMULATED_SECONDS_MAX,
    STAGES,
    Arrivals,
    bytes_per_transfer,
    factor_needed,
    forecast,
    measured_rates,
)

HELP = """Simulate a load from rates measured on this installation. Rates come from the newest busy seconds in the
database (send a burst first, or give them with --rates), so they hold for the machines and the kind of load that were
measured. Nothing is sent and nothing is written."""

KINDS = {"single": Priority.INTERACTIVE, "batch": Priority.BATCH, "file": Priority.BULK}
# Beyond any load and any time that is simulated: sums of what is below it stay numbers.
NUMBER_MAX = 1e12


class Command(BaseCommand):
    help = HELP

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--arrivals",
            required=True,
            metavar="PROFILE",
            help="transfers per second from a moment on, like 0:500,60:20000,120:500 (second:rate), "
            "or a CSV file with the columns seconds,per_second",
        )
        parser.add_argument(
            "--until", type=_positive, metavar="SECONDS", help="when arrivals end (default: 60 s after the last change)"
        )
        parser.add_argument(
            "--rates",
            default="",
            metavar="STAGE=RATE,..",
            help=f"instead of measured ones; stages: {', '.join(STAGES)}",
        )
        parser.add_argument(
            "--promise",
            type=_positive,
            default=settings.PROMISE_SECONDS,
            metavar="SECONDS",
            help="the longest wait that is promised (default: PROMISE_SECONDS, %(default)s)",
        )
        parser.add_argument(
            "--kind",
            choices=KINDS,
            default="batch",
            help="what arrives: single transfers are taken up to the whole promise, batches up to "
            f"{Priority.BATCH.value:.0%}% of it, files up to {Priority.BULK.value:.0%}% (default: %(default)s)",
        )
        parser.add_argument(
            "--workers",
            type=int,
            default=2,
            help="posting (and risk) workers that the rates were measured with (default: %(default)s)",
        )
        parser.add_argument("--no-admission", action="store_true", help="take everything, however long it would wait")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        arrivals = _arrivals(options["arrivals"])
        until = options["until"] if options["until"] is not None else arrivals[-1].seconds + 60
        if until > SIMULATED_SECONDS_MAX:
            raise CommandError(f"A day at most is simulated ({SIMULATED_SECONDS_MAX:,} s); these end at {until:g}.")
        rates = measured_rates() | _rates(options["rates"])
        if not {"risk", "posting"} <= set(rates):
            raise CommandError(
                "There are no measured rates yet: no stage has had work standing in front of it. Send a burst first "
                "(POST /api/v1/batches), or give the rates: --rates risk=6000,posting=6000"
            )
        kind = KINDS[options["kind"]]
        promise = None if options["no_admission"] else options["promise"]
        per_transfer = bytes_per_transfer()
        seen = forecast(
            arrivals, until_seconds=until, rates=rates, promise_seconds=promise, priority=kind,
            transfer_bytes=per_transfer or 0.0,
        )  # fmt: skip
        factor = factor_needed(
            arrivals, until_seconds=until, rates=rates, promise_seconds=options["promise"], priority=kind
        )
        # A tenth of a worker is within the error of any of this.
        workers = None if factor is None else max(ceil(round(options["workers"] * factor, 1)), 1)
        result = {
            "rates": {stage: round(rate, 1) for stage, rate in rates.items()},
            "offered": round(seen.offered), "accepted": round(seen.accepted), "refused": round(seen.refused),
            "peak_backlog": round(seen.peak_backlog),
            "peak_waiting": {stage: round(number) for stage, number in seen.peak_waiting.items()},
            "longest_wait_seconds": round(seen.longest_wait_seconds, 1),
            "drained_after_seconds": seen.drained_after_seconds,
            "broker_bytes": round(seen.broker_bytes),
            "database_bytes": round(seen.database_bytes) if per_transfer else None,
            "workers_needed": workers,
            "partitions_needed": workers and max(workers, settings.PARTITIONS),
        }  # fmt: skip
        if options["json"]:
            self.stdout.write(json.dumps(result))
        else:
            _show(result, options["promise"], options["workers"])


def _arrivals(text: str) -> list[Arrivals]:
    try:
        # Path.is_file raises if the name is too long for a file.
        if os.path.isfile(text):
            with Path(text).open(newline="") as file:
                steps = [Arrivals(float(r["seconds"]), float(r["per_second"])) for r in csv.DictReader(file)]
        else:
            steps = [Arrivals(*map(float, step.split(":", 1))) for step in text.split(",")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(
            f"--arrivals is like 0:500,60:20000 (second:transfers per second) or a CSV file with the columns "
            f"seconds,per_second; this is not: {text}"
        ) from error
    if not steps or any(not 0 <= number <= NUMBER_MAX for step in steps for number in step):
        raise CommandError(
            f"--arrivals needs at least one step, and no negative numbers or such beyond {NUMBER_MAX:g}; not {text!r}"
        )
    return sorted(steps)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = nan
    if not 0 < number <= NUMBER_MAX:
        raise ArgumentTypeError(f"a number of seconds above 0 and up to {NUMBER_MAX:g}, not {text}")
    return number


def _rates(text: str) -> dict[str, float]:
    rates = {}
    for part in filter(None, text.split(",")):
        stage, _, rate = part.partition("=")
        try:
            rates[stage] = float(rate)
        except ValueError:
            rates[stage] = 0.0
        if stage not in STAGES or not (isfinite(rates[stage]) and rates[stage] > 0):
            raise CommandError(
                f"--rates is like risk=6000,posting=6000 with the stages {', '.join(STAGES)}; not {part!r}"
            )
    return rates


def _show(result: dict[str, Any], promise: float, workers: int) -> None:
    console = Console()
    table = Table(title="What this load would do", title_justify="left", show_header=False)
    drained = result["drained_after_seconds"]
    database = result["database_bytes"]
    needed = result["workers_needed"]
    rows = {
        "measured rates": ", ".join(f"{stage} {rate:,.0f}/s" for stage, rate in result["rates"].items()),
        "offered": f"{result['offered']:,} transfers",
        "accepted": f"{result['accepted']:,} transfers",
        "refused (503, come again)": f"{result['refused']:,} transfers",
        "most not posted yet": f"{result['peak_backlog']:,} transfers",
        "most waiting": ", ".join(f"{stage} {number:,}" for stage, number in result["peak_waiting"].items()),
        "longest wait": f"{result['longest_wait_seconds']:,} s (promised: {promise:g} s)",
        "all done after": "not within a day" if drained is None else f"{drained:,} s",
        "broker, at most": f"{result['broker_bytes'] / 2**20:,.1f} MiB of ids on each replica",
        "database grows by": "unknown: fewer than 1,000 transfers so far"
        if database is None
        else f"{database / 2**20:,.0f} MiB",
        "to refuse nothing": f"nothing suffices, not even {FACTOR_MAX:,} times as many workers"
        if needed is None
        else f"{needed} posting and risk workers (now {workers}), "
        f"PARTITIONS at least {result['partitions_needed']}, on processors that bear them",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
