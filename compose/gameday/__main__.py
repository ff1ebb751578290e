"""`make gameday`: faults under load, and the proof that nothing was lost, doubled, reordered or made up.

The last line printed is JSON. The exit code is 0 only if the verdict is clean and every fault proved that it took hold.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

from rich.console import Console
from rich.table import Table

from compose.gameday import outage
from compose.gameday.clients import LoadError
from compose.gameday.faults.catalogue import CATALOGUE, chosen
from compose.gameday.faults.fault import Fault, TookNoHold
from compose.gameday.game import Options, Outcome, play
from compose.gameday.schedule import QUICK, TOGETHER
from compose.gameday.timeline import Timeline, table_of
from compose.instance import StackError

QUICK_FAULTS = 26
DEFAULT_MINUTES = 10.0
DETAILS_MAX = 10
INTERRUPTED = 130
SAME_SIGNAL_SECONDS = 1.0
ALIASES = {"broker-kill": ("kill-broker-leader", "kill-broker-node"), "quick": QUICK}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    asked = parser.parse_args(arguments)
    console = Console()
    if asked.list:
        console.print(_catalogue())
        return 0
    if asked.broker_down:
        return _broker_down(asked, console)
    try:
        options = _options(asked)
    except KeyError as error:
        parser.error(f"there is no fault named or beginning with {error}; --list shows all")
    over = threading.Event()
    _stop_on_signals(over, console)
    try:
        outcome = play(options, Timeline(console), is_over=over.is_set)
    except StackError as error:
        console.print(f"The game day could not be played. {error}", style="red", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped. Nothing was judged; everything that was started has been stopped.")
        return INTERRUPTED
    _conclude(outcome, console)
    return 0 if outcome.clean else 1


def _broker_down(asked: argparse.Namespace, console: Console) -> int:
    minutes = outage.Plan.minutes if asked.minutes is None else asked.minutes
    plan = outage.Plan(asked.seed, asked.backlog, minutes, pace=asked.pace)
    try:
        outcome = outage.play(plan, Timeline(console))
    except (StackError, LoadError, TookNoHold) as error:
        console.print(f"It could not be played. {error}", style="red", markup=False, soft_wrap=True)
        return 1
    for text in (*outcome.verdict.problems(DETAILS_MAX), *outcome.seen.dishonest[:DETAILS_MAX]):
        console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    print(json.dumps(outcome.as_json()), flush=True)
    return 0 if outcome.clean else 1


def _options(asked: argparse.Namespace) -> Options:
    """Raises KeyError with the name of a fault that there is not."""
    number: int | None = None
    faults = [fault for fault in CATALOGUE.values() if not fault.is_long]
    together: Sequence[int] = TOGETHER
    minutes = asked.minutes
    if asked.quick:
        faults, together, number = [CATALOGUE[name] for name in QUICK], (2, 2, 3), QUICK_FAULTS
    elif minutes is not None and minutes >= 2 * DEFAULT_MINUTES:
        faults = list(CATALOGUE.values())
    if asked.faults and asked.faults.isdigit():
        number = int(asked.faults)
    elif asked.faults:
        names = [each for name in asked.faults.split(",") for each in ALIASES.get(name.strip(), (name.strip(),))]
        faults, number = chosen(names), None
        together = (1,)
        number = asked.times or (len(faults) if minutes is None else None)
    if number is None and minutes is None:
        minutes = DEFAULT_MINUTES
    return Options(asked.seed, faults, number, minutes, asked.rate, together)


def _stop_on_signals(over: threading.Event, console: Console) -> None:
    asked_at = float("-inf")

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        before, asked_at = asked_at, time.monotonic()
        # One Ctrl-C may come twice: to this process, and to the group that it is in.
        if asked_at - before < SAME_SIGNAL_SECONDS:
            return
        if over.is_set():
            # The second time somebody means it: unwind, which stops the stack.
            raise KeyboardInterrupt
        over.set()
        console.print("Stopping: healing, draining and judging what there is. Once more to stop at once.")

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


def _conclude(outcome: Outcome, console: Console) -> None:
    console.print(table_of(outcome.timeline.struck))
    for text in outcome.verdict.problems(DETAILS_MAX):
        console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    for text in (*outcome.problems, *(f"{one.name}: {one.problem}" for one in outcome.timeline.void())):
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if outcome.left:
        console.print(f"Not drained: {outcome.left}", style="red", markup=False)
    if not outcome.clean:
        console.print(
            f"Not clean. Histories, report and logs: {outcome.folder}\n"
            f'Again: make gameday ARGS="--seed {outcome.options.seed}{_again()}"',
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    print(json.dumps(outcome.as_json()), flush=True)


def _again() -> str:
    given = list(sys.argv[1:])
    if "--seed" in given:
        place = given.index("--seed")
        del given[place : place + 2]
    return "".join(f" {word}" for word in given)


def _catalogue() -> Table:
    table = Table(title=f"{len(CATALOGUE)} faults of {len({f.fault_class for f in CATALOGUE.values()})} classes")
    for heading in ("name", "matrix", "class", "what it is"):
        table.add_column(heading, overflow="fold")
    for fault in sorted(CATALOGUE.values(), key=lambda fault: (fault.fault_class, fault.name)):
        table.add_row(fault.name, ", ".join(fault.numbers), fault.fault_class, _words(fault))
    return table


def _words(fault: type[Fault]) -> str:
    return " ".join((fault.__doc__ or fault.__mro__[1].__doc__ or "").split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make gameday ARGS=...", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--minutes", type=float, help=f"inject faults for so long (default: {DEFAULT_MINUTES:g}, without --faults)")
    add("--seed", type=int, default=1, help="the same seed plans the same faults (default: %(default)s)")
    add("--faults", metavar="N|NAMES", help="stop after N faults, or only these (kill-posting,wipe or broker-kill)")
    add("--quick", action="store_true", help=f"{QUICK_FAULTS} short faults, as part of `make test` plays them")
    add("--rate", type=float, default=40.0, help="orders that begin in a second (default: %(default)s)")
    add("--times", type=int, metavar="N", help="with names: strike N times in all, or until the minutes are over")
    add("--broker-down", action="store_true", help="no faults but one: the whole broker away until orders are refused")
    add(
        "--backlog", type=int, default=50_000, metavar="N", help="with --broker-down: so many may wait (default: 50000)"
    )
    add("--pace", type=float, default=0.0, metavar="N", help="with --broker-down: transfers in a second (0: no limit)")
    add("--list", action="store_true", help="list all faults and end")
    return parser


if __name__ == "__main__":
    sys.exit(main())
