"""Carries out the plan: injects the faults of a round, holds them, heals them, and sees how soon money moves again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time

from compose.gameday.clients import Load
from compose.gameday.cluster import NODES
from compose.gameday.faults.catalogue import CATALOGUE
from compose.gameday.faults.connections import RevokeUser
from compose.gameday.faults.fault import Fault
from compose.gameday.faults.nodes import await_whole
from compose.gameday.faults.processes import is_stopped
from compose.gameday.faults.queues import DiskAlarm, FullQueues, MemoryAlarm
from compose.gameday.faults.stores import ReadOnlyRedis
from compose.gameday.receiver import Mood
from compose.gameday.recovery import Recovery
from compose.gameday.rig import Rig
from compose.gameday.schedule import Planned, Round
from compose.gameday.timeline import Struck, Timeline


class Nemesis:
    """Strikes a rig under load, round by round."""

    def __init__(self, rig: Rig, load: Load, timeline: Timeline) -> None:
        self.rig = rig
        self.load = load
        self.timeline = timeline
        self.recoveries: list[Recovery] = []
        self._interrupted = threading.Event()

    def interrupt(self) -> None:
        """Heal what is being held, at once."""
        self._interrupted.set()

    def strike(self, plan: Round) -> None:
        """One round: returns when all its faults are healed and a transfer has been posted since."""
        strikes = [_Strike(self, planned, len(plan.planned)) for planned in plan.planned]
        threads = [threading.Thread(target=strike.run) for strike in strikes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        healed = max(strike.healed_at for strike in strikes)
        after = Recovery(self.load, healed)
        self.recoveries.append(after)
        for strike in strikes:
            strike.conclude(after)

    def settle(self) -> None:
        """Wait for every probe that is still on its way."""
        for recovery in self.recoveries:
            recovery.settle()


class _Strike:
    """One fault of a round, in a thread of its own."""

    def __init__(self, nemesis: Nemesis, planned: Planned, together: int) -> None:
        self.nemesis = nemesis
        self.planned = planned
        self.fault: Fault = planned.fault()
        self.struck = Struck(facts={}, goal_seconds=planned.fault.goal_seconds, together=together)
        self.healed_at = 0.0
        self.during: Recovery | None = None

    def run(self) -> None:
        fault, timeline, rig = self.fault, self.nemesis.timeline, self.nemesis.rig
        self.nemesis._interrupted.wait(self.planned.delay_seconds)
        self.struck.injected_at = timeline.now()
        words = f"{fault.name} ({', '.join(fault.numbers)})"
        timeline.say("inject", words)
        try:
            fault.inject(rig, random.Random(self.planned.seed))
            if fault.rides_out:
                self.during = Recovery(self.nemesis.load, fault.struck_at or time.monotonic())
                self.nemesis.recoveries.append(self.during)
            self.nemesis._interrupted.wait(self.planned.hold_seconds)
        except Exception as error:
            self.struck.problem = f"{type(error).__name__}: {error}"
        try:
            fault.heal(rig)
            self.struck.problem = self.struck.problem or ""
            timeline.say("heal", f"{fault.name}: {fault.evidence()}")
        except Exception as error:
            self.struck.problem = self.struck.problem or f"{type(error).__name__}: {error}"
        if self.struck.problem:
            timeline.say("void", f"{fault.name}: {self.struck.problem}")
        self.healed_at = time.monotonic()
        self.struck.healed_at = timeline.now()

    def conclude(self, after: Recovery) -> None:
        timeline = self.nemesis.timeline
        seconds = (self.during or after).seconds()
        # Money has to move after the healing as well, whatever was possible before.
        if after.seconds() is None:
            seconds = None
        self.struck.recovery_seconds = seconds
        self.struck.facts = self.fault.as_json()
        if seconds is None:
            self.struck.problem = self.struck.problem or "no transfer was posted again"
        timeline.struck.append(self.struck)
        words = "never" if seconds is None else f"after {seconds:.1f} s (goal {self.fault.goal_seconds:.0f} s)"
        kind = "slow" if self.struck.is_late else "recovered"
        timeline.say(kind, f"{self.fault.name}: {words}")


def heal_everything(rig: Rig) -> None:
    """Leave nothing broken, whatever was going on: links, frozen processes, stopped programs, alarms, policies."""
    rig.proxy.heal()
    for pid in rig.pids().values():
        if is_stopped(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    rig.start(*NODES)
    await_whole(rig)
    if rig.receiver is not None:
        rig.receiver.mood = Mood.WELL
    for fault in (DiskAlarm, MemoryAlarm, FullQueues, RevokeUser, ReadOnlyRedis):
        with contextlib.suppress(Exception):
            CATALOGUE[fault.name]().heal(rig)
