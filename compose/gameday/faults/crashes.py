"""A process dies between two steps: committed and not acknowledged, published and not marked, and the like."""

from __future__ import annotations

import random
from pathlib import Path
from typing import ClassVar

from compose.gameday.failpoints import POINTS, STRUCK
from compose.gameday.faults.fault import WAY, Fault, TookNoHold, wait_until
from compose.gameday.rig import Rig

STRIKES_WITHIN_SECONDS = 45.0
RESTART_SECONDS_MAX = 60.0


class _Crash(Fault):
    numbers = ("F5",)
    fault_class = "crash at a point"
    relies_on = WAY
    rides_out = True
    goal_seconds = 10.0
    point: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.running = 0

    def inject(self, rig: Rig, rng: random.Random) -> None:
        folder = rig.failpoints
        if folder is None:
            raise TookNoHold("the processes have no points to die at")
        self.running = len(rig.pids())
        before = set(folder.glob(f"{self.point}{STRUCK}*"))
        (folder / self.point).touch()
        struck: Path = self.needs(
            f"a process came by {self.point}",
            lambda: next(iter(set(folder.glob(f"{self.point}{STRUCK}*")) - before), None),
            seconds=STRIKES_WITHIN_SECONDS,
        )
        pid = int(struck.name.rpartition("-")[2])
        self.needs(f"{pid} is dead", lambda: rig.is_gone(pid))
        self.proved(f"pid {pid} died where {POINTS[self.point]}")

    def heal(self, rig: Rig) -> None:
        if rig.failpoints is not None:
            (rig.failpoints / self.point).unlink(missing_ok=True)
        wait_until("everything runs again", lambda: len(rig.pids()) >= self.running, seconds=RESTART_SECONDS_MAX)


def _variants() -> list[type[Fault]]:
    made: list[type[Fault]] = []
    for point, words in POINTS.items():
        role = point.partition("-")[0]
        facts = {
            "name": f"crash-{point}",
            "point": point,
            "touches": frozenset({role, *({"webhooks"} if "webhook" in point else ())}),
            "__doc__": f"SIGKILL where {words}.",
        }
        made.append(type(f"Crash{point.title().replace('-', '')}", (_Crash,), facts))
    return made


FAULTS = _variants()
