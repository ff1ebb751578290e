"""One game day from the start of the stack to the verdict."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from compose.gameday.clients import Load, LoadError
from compose.gameday.drain import await_drain
from compose.gameday.faults.fault import Fault
from compose.gameday.nemesis import Nemesis, heal_everything
from compose.gameday.receiver import receiving, wishes
from compose.gameday.rig import Rig, rig
from compose.gameday.schedule import TOGETHER, Round, rounds
from compose.gameday.timeline import Timeline
from compose.gameday.verdict import Verdict, judge
from compose.instance import STATE, make_folder, write_private

WARM_SECONDS = 3.0
DRAIN_SECONDS_MAX = 240.0
PAUSE_SECONDS = 1.0
# Sweeps look for work that was lost in the broker; the usual three quarters of a minute would be most of a short day.
ENVIRONMENT = {
    "DJANGO_SETTINGS_MODULE": "compose.gameday.armed",
    "STUCK_SECONDS": "10",
    # The endpoint that is told by webhook is on this machine.
    "WEBHOOK_ALLOW_LOOPBACK": "1",
    "WEBHOOK_TIMEOUT_SECONDS": "4",
}


@dataclass(frozen=True)
class Options:
    """What was asked for: an end by number of faults, by minutes, or both (whichever comes first)."""

    seed: int
    faults: Sequence[type[Fault]]
    number: int | None = None
    minutes: float | None = None
    rate: float = 40.0
    together: Sequence[int] = TOGETHER


@dataclass
class Outcome:
    """Everything that the table and the JSON line tell."""

    options: Options
    timeline: Timeline
    folder: Path
    verdict: Verdict
    drain_seconds: float
    left: dict[str, int]
    counts: dict[str, int]
    seconds: float
    interrupted: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return self.verdict.clean and not self.left and not self.problems and not self.timeline.void()

    def as_json(self) -> dict[str, Any]:
        verdict, timeline = self.verdict, self.timeline
        return {
            "seed": self.options.seed,
            "faults": len(timeline.struck),
            "classes": len(timeline.classes()),
            "accepted": verdict.accepted,
            **verdict.damage,
            "unknown": verdict.unknown,
            "webhooks": verdict.webhooks,
            "books": verdict.books,
            "void": len(timeline.void()),
            "worst_recovery_seconds": round(timeline.worst_recovery_seconds(), 2),
            "slow": sum(one.is_late for one in timeline.struck),
            "drain_seconds": round(self.drain_seconds, 1),
            "left": sum(self.left.values()),
            "seconds": round(self.seconds),
            "clean": self.clean,
        }


def play(options: Options, timeline: Timeline, *, is_over: Callable[[], bool]) -> Outcome:
    """Bring the stack up, strike it under load, heal it, drain it, judge it, and stop it.

    `is_over` ends the faults early; everything after them is done all the same. Raises StackError when the stack does
    not come up.
    """
    folder = STATE / "gameday" / f"seed-{options.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    make_folder(folder.parent)
    make_folder(folder)
    began = time.monotonic()
    timeline.say("start", f"seed {options.seed}; histories and reports in {folder.relative_to(STATE.parent)}")
    failpoints = folder / "failpoints"
    make_folder(failpoints)
    environment = {**ENVIRONMENT, "FAILPOINTS": str(failpoints)}
    with rig(seed=options.seed, environment=environment) as running, receiving(folder, options.seed) as receiver:
        timeline.say("up", f"{len(running.pids())} processes, {len(running.proxy.stats())} proxied links")
        load = Load(running.api_urls, running.environment, options.seed, folder, options.rate)
        # Before the first order: so every event of these accounts is to arrive.
        receiver.register(load, wishes(load.seed_accounts()))
        load.start()
        running.load, running.receiver, running.failpoints = load, receiver, failpoints
        running.focus_partition = _partition_of_probes(running, folder)
        timeline.say("load", f"{options.rate:g} orders a second; probes go through partition {running.focus_partition}")
        nemesis = Nemesis(running, load, timeline)
        problems: list[str] = []
        try:
            _warm_up(load)
            for plan in _limited(options, timeline, is_over):
                nemesis.strike(plan)
                time.sleep(PAUSE_SECONDS)
        finally:
            timeline.say("heal", "everything")
            try:
                heal_everything(running)
            except Exception as error:
                # Whatever stays broken, what there is has to be judged.
                problems.append(f"not everything could be healed: {error}")
            healed = time.monotonic()
            try:
                load.stop()
            except LoadError as error:
                problems.append(str(error))
        nemesis.settle()
        _, left = await_drain(running, DRAIN_SECONDS_MAX, lambda text: timeline.say("drain", text))
        drain_seconds = time.monotonic() - healed
        timeline.say("judge", f"drained after {drain_seconds:.1f} s; looking for every accepted transfer")
        faults = [one.facts for one in timeline.struck]
        verdict = judge(folder, running.api_urls, running.database_url, running.mail, faults)
        outcome = Outcome(
            options=options,
            timeline=timeline,
            folder=folder,
            verdict=verdict,
            drain_seconds=drain_seconds,
            left=left,
            counts=load.counts(),
            seconds=time.monotonic() - began,
            interrupted=is_over() and not _is_complete(options, timeline),
            problems=problems,
        )
        _keep(outcome, running)
    return outcome


def _warm_up(load: Load) -> None:
    """A fault before the first transfer is through would measure the start of the stack."""
    load.probe(seconds_max=60)
    time.sleep(WARM_SECONDS)


def _limited(options: Options, timeline: Timeline, is_over: Callable[[], bool]) -> Iterator[Round]:
    for plan in rounds(options.seed, options.faults, together=options.together):
        if is_over() or _is_complete(options, timeline):
            return
        yield plan


def _is_complete(options: Options, timeline: Timeline) -> bool:
    enough = options.number is not None and len(timeline.struck) >= options.number
    late = options.minutes is not None and timeline.now() > options.minutes * 60
    return enough or late


def _partition_of_probes(running: Rig, folder: Path) -> int:
    for line in (folder / "history-accounts.jsonl").read_text().splitlines():
        facts = json.loads(line)
        if facts.get("group") == "probe":
            partitions = int(running.environment.get("PARTITIONS", "4"))
            return crc32(facts["accounts"][0].encode()) % partitions
    return 0


def _keep(outcome: Outcome, running: Rig) -> None:
    """Leave the report beside the histories; the processes' logs only if something is wrong, as they are long."""
    report = {
        **outcome.as_json(),
        "left": outcome.left,
        "counts": outcome.counts,
        "problems": outcome.problems,
        "details": outcome.verdict.details,
        "faults": [one.as_json() for one in outcome.timeline.struck],
        "timeline": outcome.timeline.lines,
    }
    write_private(outcome.folder / "report.json", json.dumps(report, indent=2, default=str) + "\n")
    # The plan holds a token of a stack that is about to be gone.
    (outcome.folder / "plan.json").unlink(missing_ok=True)
    if not outcome.clean:
        shutil.copytree(running.logs, outcome.folder / "logs", dirs_exist_ok=True)
