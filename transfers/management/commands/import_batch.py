"""Take in a file of transfers for a client, lot by lot; repeating the command goes on where it stopped."""

import csv
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from accounts.access import BANK_FILES, Client, clients_with_tokens
from bankcore.errors import BankError
from bankcore.messaging import backpressure
from transfers.errors import IdempotencyKeyReused
from transfers.imports import Import, LotError, Outcome
from transfers.lots import FORMATS, Lot, RowSource

SOME_REFUSED, USAGE, SIGNALLED = 1, 2, 128
SCOPE = "transfers:write"
ERRORS_SHOWN = 20
PAUSE_SECONDS = 0.2
_LABEL = re.compile(r"[A-Za-z0-9._-]{1,40}")
DESCRIPTION = """Take in a file of transfers (CSV, NDJSON or JSON as POST batches takes them) for the bank itself, which
may debit every account, or with --client for an API client, with that client's access. A large file goes in lots of
one batch each; what is taken in stays, and repeating the command takes nothing twice and goes on where it stopped."""
EPILOG = """examples:
  manage.py import_batch salaries.csv

  manage.py issue_token --client payroll --scopes "transfers:write" --customer ID
  manage.py import_batch salaries.csv --client payroll --dry-run
  manage.py import_batch salaries.csv --client payroll --errors refused.csv

  salaries.csv:  debit_account,credit_account,amount_minor,currency,reference
                 <id>,<id>,125000,EUR,Salary of November

exit codes: 0 all rows taken, 1 some rows refused, 2 wrong usage, the file cannot be read, or the database went away;
130 stopped by Ctrl-C (143 by SIGTERM)."""


@dataclass
class Tally:
    """What the run has come to: rows of the file, taken now, refused, taken in by an earlier run."""

    file: str
    rows: int = 0
    accepted: int = 0
    refused: int = 0
    replayed: int = 0
    batches: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.refused += outcome.refused
        if outcome.replayed:
            self.replayed += outcome.accepted
        else:
            self.accepted += outcome.accepted
        if outcome.batch_id is not None:
            self.batches.append(str(outcome.batch_id))


class Command(BaseCommand):
    help = DESCRIPTION
    _bar: Progress
    _told = _untold = 0

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        parser = super().create_parser(prog_name, subcommand, epilog=EPILOG, **kwargs)
        parser.formatter_class = RawDescriptionHelpFormatter
        return parser

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", metavar="FILE", help="a file, or - for standard input")
        whose = "an API client that has a token, for files from outside: what it may not debit is refused"
        parser.add_argument("--client", metavar="NAME", help=f"{whose} (default: the bank itself)")
        parser.add_argument("--customer", metavar="ID", help="whose client, where several customers have one so named")
        parser.add_argument("--format", choices=sorted(set(FORMATS.values())), help="if FILE's suffix does not say it")
        parser.add_argument("--atomic", action="store_true", help="all rows or none; for files that fit one batch")
        parser.add_argument("--label", default="", metavar="TEXT", help="for a file that is meant again, byte by byte")
        parser.add_argument("--errors", metavar="OUT", help="write all that is wrong with rows here, as CSV")
        parser.add_argument("--dry-run", action="store_true", help="check every row and take nothing")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        tally, name = Tally(options["file"]), options["file"]
        again = "\nRepeat the command to go on: what has come in stays, and nothing is taken twice."
        with ExitStack() as stack:
            try:
                job = self._prepare(options, stack)
                tally.rows = job.source.rows_total
                stopped_by = self._work(job, tally, options, stack)
            except KeyboardInterrupt:
                stopped_by = signal.SIGINT
            except IdempotencyKeyReused as error:
                raise _usage(f"{name}: it was begun as another --format or --atomic. Give them as before.") from error
            except BankError as error:
                raise _usage(f"{name}: {_said(error)}") from error
            except DatabaseError as error:
                raise _usage(f"The database does not answer: {str(error).strip()}{again}") from error
        if stopped_by:
            done = tally.accepted + tally.refused + tally.replayed
            self.stderr.write(f"Stopped with {done:,} of {tally.rows:,} rows done.{again}", str)
        self._sum_up(tally, options)
        if stopped_by:
            raise SystemExit(SIGNALLED + stopped_by)
        if tally.refused:
            raise SystemExit(SOME_REFUSED)

    def _prepare(self, options: dict[str, Any], stack: ExitStack) -> Import:
        if options["label"] and not _LABEL.fullmatch(options["label"]):
            raise _usage("--label takes 1 to 40 letters, digits, dots, dashes or underscores.")
        chosen = options["format"] or FORMATS.get(Path(options["file"]).suffix.lower())
        if chosen is None:
            raise _usage(f"What is in {options['file']}? Its name ends in none of {', '.join(FORMATS)}: give --format.")
        client = _client(options["client"], options["customer"])
        source = RowSource(_opened(options["file"], stack), chosen)
        source.survey()
        atomic = options["atomic"] or source.atomic
        if atomic and source.lots_total > 1:
            raise _usage(
                f"{options['file']} holds {source.rows_total:,} rows, which is {source.lots_total} batches: each is "
                "a transaction of its own. All or nothing is for files that fit one: leave --atomic out, or split it."
            )
        return Import(source, client, atomic=atomic, label=options["label"])

    def _work(self, job: Import, tally: Tally, options: dict[str, Any], stack: ExitStack) -> int:
        """Go through the lots; returns the number of the signal that ended this, or 0."""
        source, dry = job.source, options["dry_run"]
        report = _report(options["errors"], source.file, stack)
        bar = self._bar = stack.enter_context(_progress(shown=self.stderr.isatty()))
        task = bar.add_task("checking" if dry else "taking in", total=source.rows_total)
        if not dry:
            backpressure.await_reading()
        stop = stack.enter_context(_stop_on_signals())
        for lot in source.lots():
            if not dry:
                self._await_admission(job, lot, stop)
            if stop:
                break
            outcome = job.check(lot) if dry else job.take(lot)
            if outcome.replayed:
                self._say(f"Lot {lot.number} of {source.lots_total} was taken in before.")
            self._tell(outcome.errors, "line" if source.by_line else "row", report)
            tally.add(outcome)
            bar.advance(task, len(lot.rows))
        if self._untold:
            has_them = f"{options['errors']} has all" if options["errors"] else "--errors OUT writes all down"
            self._say(f"... and {self._untold:,} more errors; {has_them}.")
        return stop[0] if stop else 0

    def _await_admission(self, job: Import, lot: Lot, stop: list[int]) -> None:
        while not stop:
            try:
                job.admit(lot)
            except BankError as error:
                if error.retry_after is None:
                    raise
                self._say(f"{error.title}: lot {lot.number} is tried again in {error.retry_after} s.")
                until = time.monotonic() + error.retry_after
                while not stop and (left := until - time.monotonic()) > 0:
                    time.sleep(min(left, PAUSE_SECONDS))
            else:
                return

    # -- telling -------------------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        text = "".join(char if char.isprintable() else "?" for char in text)
        if self._bar.disable:
            self.stderr.write(text, str)
        else:
            self._bar.console.print(text, markup=False, highlight=False)

    def _tell(self, errors: Sequence[LotError], unit: str, report: Callable[[Sequence[LotError]], None]) -> None:
        report(errors)
        room = max(0, ERRORS_SHOWN - self._told)
        for error in errors[:room]:
            where = f"{unit} {error.place}" if error.place else "lot"
            self._say(": ".join(filter(None, (where, error.field, f"{error.message} ({error.code})"))))
        self._told += len(errors[:room])
        self._untold += len(errors[room:])

    def _sum_up(self, tally: Tally, options: dict[str, Any]) -> None:
        if options["json"]:
            self.stdout.write(json.dumps(asdict(tally), ensure_ascii=False))
            return
        verb = "would be taken" if options["dry_run"] else "taken in"
        self.stdout.write(
            f"{tally.file}: {tally.rows:,} rows: {tally.accepted:,} {verb}, {tally.refused:,} refused, "
            f"{tally.replayed:,} taken in before."
        )
        if tally.replayed and not tally.accepted and not options["dry_run"]:
            self.stdout.write("If the same file is meant once more, give it a --label of its own.")
        for batch in tally.batches if not options["dry_run"] else ():
            self.stdout.write(f"batch {batch}")


def _usage(text: str) -> CommandError:
    return CommandError(text, returncode=USAGE)


def _said(error: BankError) -> str:
    if not error.errors:
        return error.detail
    return "; ".join(e.message if e.field == "body" else f"{e.field}: {e.message}" for e in error.errors[:3])


def _client(name: str | None, customer: str | None) -> Client:
    issue = f'manage.py issue_token --client {name} --scopes "{SCOPE}" --customer ID'
    if name is None:
        if customer is not None:
            raise _usage("--customer says whose client --client means: give both, or neither.")
        return BANK_FILES
    found = [c for c in clients_with_tokens(name) if customer in (None, str(c.customer_id))]
    if not found:
        whose = f" of customer {customer}" if customer else ""
        raise _usage(f"No client {name!r}{whose} has a valid token. Make one: {issue}")
    if not (able := [client for client in found if SCOPE in client.scopes]):
        raise _usage(f"No token of {name!r} has the scope {SCOPE}. Make one that has: {issue}")
    if len(customers := {str(client.customer_id) for client in able if client.customer_id}) > 1:
        raise _usage(f"Several customers have a client {name!r}. Give --customer: {', '.join(sorted(customers))}")
    if len({client.customer_id for client in able}) > 1:
        raise _usage(f"One token of {name!r} belongs to a customer and one to none. Give --customer: {customers.pop()}")
    return able[0]


def _opened(name: str, stack: ExitStack) -> BinaryIO:
    """Open what can be read from the beginning again: what only flows is copied to a file on disk first."""
    try:
        file = sys.stdin.buffer if name == "-" else stack.enter_context(Path(name).open("rb"))  # noqa: SIM115
        if name != "-" and file.seekable():
            return file
        copy = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        shutil.copyfileobj(file, copy)
        copy.flush()
    except OSError as error:
        raise _usage(f"{name} cannot be read: {error.strerror}.") from error
    else:
        return copy


def _report(name: str | None, source: BinaryIO, stack: ExitStack) -> Callable[[Sequence[LotError]], None]:
    if name is None:
        return lambda errors: None
    try:
        if Path(name).exists() and os.path.samestat(Path(name).stat(), os.fstat(source.fileno())):
            raise _usage("--errors names the file itself; give another name.")
        file = stack.enter_context(Path(name).open("w", newline="", encoding="utf-8"))  # noqa: SIM115
    except OSError as error:
        raise _usage(f"{name} cannot be written: {error.strerror}.") from error
    writer = csv.writer(file)
    writer.writerow(LotError._fields)

    def write(errors: Sequence[LotError]) -> None:
        writer.writerows(errors)
        file.flush()

    return write


def _progress(*, shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown)


@contextmanager
def _stop_on_signals() -> Iterator[list[int]]:
    """Note the first Ctrl-C or SIGTERM in a list, to stop where nothing is half done; the second ends at once."""
    stop: list[int] = []

    def note(number: int, frame: Any) -> None:
        stop.append(number)
        signal.signal(number, before[number])

    before = {int(number): signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
