"""Workers become fewer and more while the load goes on: one for all partitions, then several, then as before."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from compose.gameday.faults.fault import Fault
from compose.gameday.rig import Rig
from compose.instance import REPOSITORY

# The roles whose lanes have an order that could be lost by this.
SCALED = ("risk", "posting")
# What the new worker of each takes: one of three shares of the partitions.
SHARE = ("--index", "0", "--of", "3")
READY_SECONDS_MAX = 180.0
STOP_SECONDS_MAX = 30.0


class ScaleWorkers(Fault):
    """Half of the risk and posting workers go, another of each comes for a third of the partitions, and goes."""

    name = "scale-workers"
    numbers = ("F36",)
    fault_class = "consumers scaled"
    touches = frozenset({"risk", "posting"})
    rides_out = True
    hold_seconds = (3.0, 8.0)
    goal_seconds = 10.0

    def __init__(self) -> None:
        super().__init__()
        self.stopped: list[str] = []
        self.extra: list[subprocess.Popen[bytes]] = []

    def inject(self, rig: Rig, rng: random.Random) -> None:
        self.stopped = [rng.choice(rig.programs(role)) for role in SCALED]
        rig.stop(*self.stopped)
        self.needs(f"{self.stopped} are away", lambda: not set(self.stopped) & rig.pids().keys(), seconds=30)
        logs = [self._start(rig, role) for role in SCALED]
        self.needs("the new workers consume", lambda: all(map(_is_ready, logs)), seconds=READY_SECONDS_MAX)
        # To start a process takes its time; what counts is that the partitions are shared out anew.
        self.struck_at = time.monotonic()
        self.proved(f"{', '.join(self.stopped)} stopped; one more worker each of {' and '.join(SCALED)} took part")

    def _start(self, rig: Rig, role: str) -> Path:
        path = rig.logs / f"{role}-extra.log"
        with path.open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "manage.py", "worker", role, *SHARE],
                cwd=REPOSITORY,
                env={**os.environ, **rig.environment, "APPLICATION_NAME": f"{role}-extra"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.extra.append(worker)
        return path

    def heal(self, rig: Rig) -> None:
        for worker in self.extra:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
        for worker in self.extra:
            try:
                worker.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        self.extra = []
        rig.start(*self.stopped)


def _is_ready(log: Path) -> bool:
    return " ready" in log.read_text(errors="replace")


FAULTS: list[type[Fault]] = [ScaleWorkers]
