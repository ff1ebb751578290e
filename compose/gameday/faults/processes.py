"""Faults of our own processes: killed, frozen, asked to stop, deployed anew."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

from compose.gameday.faults.fault import Fault, TookNoHold, wait_until
from compose.gameday.rig import Rig
from compose.instance import REPOSITORY

RESTART_SECONDS_MAX = 60.0
# One turn of stopping and going on, and the part of it that a slow process runs.
SLOW_SECONDS, SLOW_SHARE = 0.4, 0.05


def focused(rig: Rig, role: str, rng: random.Random) -> str:
    """A program of a role; of a partitioned one mostly that which has the probes' partition."""
    programs = rig.programs(role)
    if role in ("risk", "posting") and rng.random() < 0.7:
        return programs[rig.focus_partition % len(programs)]
    if role == "relay":
        return max(programs, key=lambda name: (_active_since(rig.logs / f"{name}.log"), rng.random()))
    return rng.choice(programs)


def _active_since(log: Path) -> str:
    """When a relay last said that it is the active one."""
    since = ""
    for line in log.read_text(errors="replace").splitlines() if log.exists() else ():
        if '"relay is active"' in line:
            since = str(json.loads(line)["at"])
    return since


def await_restart(rig: Rig, program: str, old_pid: int, seconds: float = RESTART_SECONDS_MAX) -> int:
    """Wait until supervision has brought a program back; returns its new pid."""
    pid = wait_until(
        f"{program} is back",
        lambda: (now := rig.pids().get(program, 0)) != old_pid and now,
        seconds=seconds,
    )
    return int(pid)


class _OfOneRole(Fault):
    role: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.program = ""
        self.pid = 0

    def heal(self, rig: Rig) -> None:
        if self.program:
            new = await_restart(rig, self.program, self.pid)
            self.proved(f"{self.program} started again as {new}")


class Kill(_OfOneRole):
    """SIGKILL to the main process: no cleaning up, no goodbye to the broker or the database."""

    fault_class = "process killed"
    rides_out = True
    goal_seconds = 2.0

    def inject(self, rig: Rig, rng: random.Random) -> None:
        self.program = focused(rig, self.role, rng)
        self.pid = rig.signal(self.program, signal.SIGKILL)
        self.needs(f"{self.program} is dead", lambda: rig.is_gone(self.pid))
        self.proved(f"{self.program} (pid {self.pid}) killed")


class KillWebChild(Fault):
    """SIGKILL to one of the processes that a web server answers with, in the middle of its requests."""

    name = "kill-web-child"
    numbers = ("F7",)
    fault_class = "process killed"
    touches = frozenset({"web"})
    rides_out = True
    goal_seconds = 5.0

    def inject(self, rig: Rig, rng: random.Random) -> None:
        program = rng.choice(rig.programs("web"))
        children = _children(rig.pids()[program])
        child = rng.choice(children)
        os.kill(child, signal.SIGKILL)
        self.needs(f"child {child} is dead", lambda: rig.is_gone(child))
        self.proved(f"{program}: child {child} of {len(children)} killed")


def _children(pid: int) -> list[int]:
    answer = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in answer.stdout.split()]


class Terminate(_OfOneRole):
    """SIGTERM, as every deploy and every node drain sends it: what is in hand is finished or handed back."""

    fault_class = "process asked to stop"
    rides_out = True
    goal_seconds = 10.0

    def inject(self, rig: Rig, rng: random.Random) -> None:
        self.program = focused(rig, self.role, rng)
        self.pid = rig.signal(self.program, signal.SIGTERM)
        self.needs(f"{self.program} has ended", lambda: rig.is_gone(self.pid), seconds=30)
        self.proved(f"{self.program} (pid {self.pid}) ended after SIGTERM")


class Freeze(_OfOneRole):
    """SIGSTOP, a hold, SIGCONT: a process that does not know how late it is."""

    fault_class = "process frozen"
    hold_seconds = (4.0, 10.0)
    goal_seconds = 5.0

    def inject(self, rig: Rig, rng: random.Random) -> None:
        self.program = focused(rig, self.role, rng)
        self.pid = rig.signal(self.program, signal.SIGSTOP)
        for child in _children(self.pid):
            os.kill(child, signal.SIGSTOP)
        self.needs(f"{self.program} stands still", lambda: process_state(self.pid) == "T")
        self.proved(f"{self.program} (pid {self.pid}) in state T")

    def heal(self, rig: Rig) -> None:
        for pid in (self.pid, *_children(self.pid)) if self.pid else ():
            if process_state(pid) == "T":
                os.kill(pid, signal.SIGCONT)


def process_state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def is_stopped(pid: int) -> bool:
    """Whether a process stands still after SIGSTOP."""
    return process_state(pid) == "T"


class Zombie(Freeze):
    """Frozen for longer than the broker waits: its messages are done by another before it comes back to finish them."""

    name = "zombie-posting"
    numbers = ("F4",)
    fault_class = "zombie worker"
    touches = frozenset({"posting"})
    role = "posting"
    hold_seconds = (75.0, 90.0)
    goal_seconds = 60.0
    is_long = True


class Slow(Freeze):
    """Stopped for nineteen parts of twenty: a worker that takes twenty times as long, and is alive all the time."""

    name = "slow-posting"
    numbers = ("F31",)
    fault_class = "slow consumer"
    touches = frozenset({"posting"})
    role = "posting"
    hold_seconds = (6.0, 12.0)
    goal_seconds = 10.0

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Event()
        self.stops = 0
        self.thread = threading.Thread(target=self._run, daemon=True)

    def inject(self, rig: Rig, rng: random.Random) -> None:
        super().inject(rig, rng)
        self.thread.start()

    def _run(self) -> None:
        try:
            while not self.over.wait(SLOW_SECONDS * (1 - SLOW_SHARE)):
                os.kill(self.pid, signal.SIGCONT)
                self.over.wait(SLOW_SECONDS * SLOW_SHARE)
                os.kill(self.pid, signal.SIGSTOP)
                self.stops += 1
        except ProcessLookupError:
            return

    def heal(self, rig: Rig) -> None:
        if self.thread.is_alive():
            self.over.set()
            self.thread.join()
            self.proved(f"stopped {self.stops} times more, {1 - SLOW_SHARE:.0%} of the time")
        super().heal(rig)


class RemoteShutdown(Fault):
    """Somebody with the broker's password sends Celery's own shutdown to all workers at once. None obeys."""

    name = "remote-shutdown"
    numbers = ("F38",)
    fault_class = "operator's abuse"
    touches = frozenset({"broker", "queues", "risk", "posting", "notifications", "maintenance"})
    rides_out = True
    goal_seconds = 15.0
    roles: ClassVar[tuple[str, ...]] = ("risk", "posting", "notifications", "maintenance")
    refusal = "ignored a control message that is not allowed: shutdown"

    def inject(self, rig: Rig, rng: random.Random) -> None:
        pids = rig.pids()
        workers = {program: pids[program] for role in self.roles for program in rig.programs(role) if program in pids}
        before = {program: self._refusals(rig, program) for program in workers}
        subprocess.run(
            [sys.executable, "-m", "celery", "-A", "bankcore", "control", "--timeout", "3", "shutdown"],
            cwd=REPOSITORY,
            env={**os.environ, **rig.environment},
            capture_output=True,
            check=False,
            timeout=60,
        )
        self.needs(
            "every worker has got the message and refused",
            lambda: all(self._refusals(rig, program) > count for program, count in before.items()),
            seconds=30,
        )
        ended = [program for program, pid in workers.items() if rig.is_gone(pid)]
        if ended:
            raise TookNoHold(f"a shutdown that is to be ignored ended {', '.join(ended)}")
        self.proved(f"all {len(workers)} workers got a shutdown by remote control, and none obeyed")

    def _refusals(self, rig: Rig, program: str) -> int:
        log = rig.logs / f"{program}.log"
        return log.read_text(errors="replace").count(self.refusal) if log.exists() else 0


class RollingDeploy(Fault):
    """SIGTERM to every process in turn, each awaited before the next: what a deploy does, under load."""

    name = "rolling-deploy"
    numbers = ("F35", "F13")
    fault_class = "rolling deploy"
    touches = frozenset({"web", "relay", "risk", "posting", "notifications", "maintenance"})
    rides_out = True
    goal_seconds = 15.0
    roles: ClassVar[tuple[str, ...]] = ("web", "relay", "risk", "posting", "notifications", "maintenance")

    def inject(self, rig: Rig, rng: random.Random) -> None:
        programs = [program for role in self.roles for program in rig.programs(role)]
        for program in programs:
            pid = rig.signal(program, signal.SIGTERM)
            await_restart(rig, program, pid)
        self.proved(f"{len(programs)} processes stopped and started one after another")


def _variants() -> list[type[Fault]]:
    made: list[type[Fault]] = [KillWebChild, Zombie, Slow, RemoteShutdown, RollingDeploy]
    killed = {"web": ("F7",), "relay": ("F8",)}
    for role in ("web", "relay", "risk", "posting", "notifications", "maintenance"):
        # A worker is one process: there is no child of it to kill.
        numbers = killed.get(role, ("F2", "F1"))
        shared = {"role": role, "touches": frozenset({role})}
        frozen = ("F4", numbers[0])
        made += [
            type(f"Kill{role.title()}", (Kill,), {"name": f"kill-{role}", "numbers": numbers, **shared}),
            type(f"Terminate{role.title()}", (Terminate,), {"name": f"term-{role}", "numbers": ("F3",), **shared}),
            type(f"Freeze{role.title()}", (Freeze,), {"name": f"freeze-{role}", "numbers": frozen, **shared}),
        ]
    return made


FAULTS = _variants()
