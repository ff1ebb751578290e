"""The dead-letter desk at the command line: list, show, replay, discard, approve, withdraw."""

import getpass
import json
import re
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from django.contrib.auth import authenticate
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from bankcore.errors import BankError
from bankcore.messaging import audit, desk
from bankcore.messaging.forecasts import foresee
from bankcore.messaging.letter_search import find_letters, open_letters
from bankcore.messaging.models import DeadLetter
from bankcore.messaging.rooms import FAIL_AGAIN, NOTHING
from bankcore.moments import format_moment

USAGE, REFUSED, AWAITING, FAILS_AGAIN = 2, 1, 3, 4
LIST_MAX = 10_000
RIGHT = "messaging.change_deadletter"
_AGE = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
EPILOG = (
    "Exit codes: 0 done, 1 something was refused, 2 wrong usage, 3 something waits for a second person,"
    " 4 a dry run foresees that something would fail again."
    " With --user NAME you act as that staff user and give their password; amounts that take two people need it."
)


class Command(BaseCommand):
    help = "Look at dead letters and resolve them. Nothing is ever deleted. " + EPILOG

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        listing = verbs.add_parser("list", help="list letters, newest first", epilog=EPILOG)
        listing.add_argument("--state", choices=[*DeadLetter.State.values, "all"], default="open")
        _add_filters(listing)
        listing.add_argument("--limit", type=_number(1, LIST_MAX), default=50)
        show = verbs.add_parser("show", help="show one letter in full", epilog=EPILOG)
        show.add_argument("letter", type=int, help="its number, as `list` shows it")
        replay = verbs.add_parser("replay", help="let the work behind letters go on", epilog=EPILOG)
        replay.add_argument("letters", type=int, nargs="*", help="numbers; or none, and a filter or --all")
        _add_filters(replay)
        replay.add_argument("--all", action="store_true", help="every open letter, up to --limit")
        replay.add_argument("--limit", type=_number(1, LIST_MAX), default=desk.LETTERS_MAX)
        replay.add_argument("--rate", type=float, metavar="N", help="at most N letters a second")
        replay.add_argument("--dry-run", action="store_true", help="say what would happen today; change nothing")
        discard = verbs.add_parser("discard", help="give the work behind letters up", epilog=EPILOG)
        discard.add_argument("letters", type=int, nargs="+", help="numbers, as `list` shows them")
        discard.add_argument("--reason", required=True, help="kept with the letter, 3 to 140 characters")
        approve = verbs.add_parser("approve", help="agree to a request, as the second person", epilog=EPILOG)
        approve.add_argument("letter", type=int, help="its number, as `list` shows it")
        approve.add_argument("--action", required=True, choices=desk.DeskRequest.Action.values, dest="wanted")
        withdraw = verbs.add_parser("withdraw", help="take a request back, or turn it down", epilog=EPILOG)
        withdraw.add_argument("letter", type=int, help="its number, as `list` shows it")
        for one in (replay, discard, approve, withdraw):
            one.add_argument("--user", metavar="NAME", help="act as this staff user, with their password")
            one.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
        for one in (listing, show, replay, discard, approve, withdraw):
            one.add_argument("--json", action="store_true", help="print JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        verb: Callable[[dict[str, Any]], None] = getattr(self, f"_{options['verb']}")
        verb(options)

    def _list(self, options: dict[str, Any]) -> None:
        state = "" if options["state"] == "all" else options["state"]
        letters = list(find_letters({**_filters(options), "state": state}).order_by("-pk")[: options["limit"]])
        if options["json"]:
            self._print([_plain(letter) for letter in letters])
            return
        if not letters:
            chosen = any(_filters(options).values()) or options["state"] not in ("open", "all")
            self.stdout.write("No letter fits." if chosen else "No dead letters here: every attempt found its end.")
            return
        rows = [
            [str(x.pk), x.state, f"{x.created_at:%F %T}", " ".join(x.cause.split())[:60], x.task, x.queue, x.subject]
            for x in letters
        ]
        self._table(["Letter", "State", "Since (UTC)", "Cause", "Task", "Queue", "Subject"], rows)

    def _show(self, options: dict[str, Any]) -> None:
        letter = DeadLetter.objects.filter(pk=options["letter"]).first()
        if letter is None:
            raise CommandError(
                f"There is no dead letter {options['letter']}: see `dead_letters list`.", returncode=REFUSED
            )
        body = None if letter.body is None else bytes(letter.body)
        request = desk.pending_request(letter)
        asked = f"{request.action} by {request.requested_by.get_username()}" if request else ""
        facts = {
            **_plain(letter), "detail": letter.detail, "headers": letter.headers, "pending_request": asked,
            "body": None if body is None else body[:4096].decode("utf-8", "backslashreplace"),
            "body_bytes": len(body or b""),
        }  # fmt: skip
        if options["json"]:
            self._print(facts)
            return
        for name, value in facts.items():
            shown = "-" if value in (None, "") else value if isinstance(value, str) else json.dumps(value)
            # A traceback goes on under its first line.
            self.stdout.write(f"{name.replace('_', ' '):>16}  {shown.rstrip().replace(chr(10), chr(10) + ' ' * 18)}")

    def _replay(self, options: dict[str, Any]) -> None:
        numbers = _selected(options)
        if options["dry_run"]:
            self._foresee(numbers, options)
            return
        rate = options["rate"]
        if rate is not None and not 0 < rate <= 1000:
            raise CommandError("--rate takes more than 0, and up to 1000.", returncode=USAGE)
        actor, outcomes = self._actor(options), []
        with _progress(len(numbers), silent=options["json"]) as progress:
            task = progress.add_task("replaying", total=len(numbers))
            for number in numbers:
                outcomes += desk.replay_each([number], actor=actor)
                progress.advance(task)
                if rate and number != numbers[-1]:
                    time.sleep(1 / rate)
        self._tell(outcomes, options)

    def _foresee(self, numbers: Sequence[int], options: dict[str, Any]) -> None:
        forecasts = []
        with _progress(len(numbers), silent=options["json"]) as progress:
            task = progress.add_task("looking ahead", total=len(numbers))
            for start in range(0, len(numbers), desk.LETTERS_MAX):
                chunk = numbers[start : start + desk.LETTERS_MAX]
                forecasts += foresee(chunk)
                progress.advance(task, len(chunk))
        if options["json"]:
            self._print([forecast.as_dict() for forecast in forecasts])
        else:
            rows = [
                [str(f.letter), f.would.replace("_", " "), f.reason, "two people" if f.second_person else "", f.detail]
                for f in forecasts
            ]
            self._table(["Letter", "Would", "Reason", "Takes", "Detail"], rows)
        come_to = {forecast.would for forecast in forecasts}
        if len(forecasts) < len(numbers) or NOTHING in come_to:
            raise SystemExit(REFUSED)
        if FAIL_AGAIN in come_to:
            raise SystemExit(FAILS_AGAIN)

    def _discard(self, options: dict[str, Any]) -> None:
        reason = options["reason"].strip()
        if not 3 <= len(reason) <= 140 or not reason.isprintable():
            raise CommandError("--reason takes one line of 3 to 140 characters.", returncode=USAGE)
        actor = self._actor(options)
        self._tell(
            [
                desk.attempt(lambda number=number: desk.discard(number, reason=reason, actor=actor), number)
                for number in options["letters"]
            ],
            options,
        )

    def _approve(self, options: dict[str, Any]) -> None:
        actor, number = self._actor(options), options["letter"]
        self._tell([desk.attempt(lambda: desk.approve(number, action=options["wanted"], actor=actor), number)], options)

    def _withdraw(self, options: dict[str, Any]) -> None:
        try:
            desk.withdraw(options["letter"], actor=self._actor(options))
        except BankError as refusal:
            raise CommandError(f"{refusal.code}: {refusal.detail}", returncode=REFUSED) from refusal
        self._tell([desk.Outcome(options["letter"], "withdrawn")], options)

    def _actor(self, options: dict[str, Any]) -> desk.Actor:
        if not options["user"]:
            return desk.Actor(audit.operator())
        if options["password_stdin"]:
            password = sys.stdin.readline().rstrip("\n")
        else:
            password = getpass.getpass(f"Password of {options['user']}: ")
        user = authenticate(username=options["user"], password=password)
        if user is None or not user.is_staff or not user.has_perm(RIGHT):
            raise CommandError(
                f"{options['user']} cannot act here: wrong password, not staff, or without the right {RIGHT}.",
                returncode=REFUSED,
            )
        return desk.actor_of(user)

    def _tell(self, outcomes: Sequence[desk.Outcome], options: dict[str, Any]) -> None:
        if options["json"]:
            self._print([outcome.as_dict() for outcome in outcomes])
        elif not outcomes:
            self.stdout.write("No open letter fits: nothing to do.")
        else:
            rows = [[str(o.letter), o.outcome.replace("_", " "), o.code, o.detail] for o in outcomes]
            self._table(["Letter", "Outcome", "Code", "Detail"], rows)
        came_to = {outcome.outcome for outcome in outcomes}
        if "refused" in came_to:
            raise SystemExit(REFUSED)
        if "awaiting_approval" in came_to:
            raise SystemExit(AWAITING)

    def _table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(*headers, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        width = None if self.stdout.isatty() else 240
        Console(file=self.stdout, width=width, markup=False, highlight=False).print(table)  # type: ignore[arg-type]

    def _print(self, content: Any) -> None:
        self.stdout.write(json.dumps(content, ensure_ascii=False))


def _add_filters(parser: ArgumentParser) -> None:
    parser.add_argument("--cause", default="", help="how the cause begins, such as ZeroDivisionError")
    parser.add_argument("--task", default="")
    parser.add_argument("--queue", default="")
    parser.add_argument("--subject", default="", help="the whole id of what it is about, such as a transfer's")
    parser.add_argument("--older-than", metavar="AGE", type=_age, help="such as 90s, 15m, 2h, 7d")
    parser.add_argument("--newer-than", metavar="AGE", type=_age)


def _filters(options: dict[str, Any]) -> dict[str, Any]:
    now = timezone.now()
    return {
        **{name: options[name] for name in ("cause", "task", "queue", "subject")},
        "created_to": now - options["older_than"] if options["older_than"] else None,
        "created_from": now - options["newer_than"] if options["newer_than"] else None,
    }


def _selected(options: dict[str, Any]) -> list[int]:
    filters = _filters(options)
    chosen = any(value for value in filters.values())
    if bool(options["letters"]) + bool(chosen or options["all"]) != 1:
        raise CommandError("Give numbers of letters, or a filter, or --all.", returncode=USAGE)
    return options["letters"] or open_letters(filters, options["limit"])


def _age(text: str) -> timedelta:
    matched = _AGE.fullmatch(text)
    if matched is None:
        raise ArgumentTypeError(f"{text!r} is no age: give one such as 90s, 15m, 2h or 7d")
    return timedelta(**{_UNITS[matched[2]]: int(matched[1])})


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            raise ArgumentTypeError(f"{text!r} is not a number from {least:,} to {most:,}")
        return int(text)

    return number


def _progress(total: int, *, silent: bool) -> Progress:
    console = Console(stderr=True, quiet=silent or total < 2)
    return Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(), console=console)


def _plain(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.pk,
        "state": str(letter.state),
        "task": letter.task,
        "queue": letter.queue,
        "subject": letter.subject,
        "cause": letter.cause,
        "attempts": letter.attempts,
        "body_digest": letter.body_digest,
        "created_at": format_moment(letter.created_at),
        "resolved_at": letter.resolved_at and format_moment(letter.resolved_at),
        "resolution": letter.resolution,
    }
