"""Faults on the clients' side: clocks that jump."""

from __future__ import annotations

import random

from compose.gameday.faults.fault import Fault, TookNoHold
from compose.gameday.rig import Rig


class ClockStep(Fault):
    """The clients' clock jumps by up to a day, forward or back, and later returns: nothing of the bank may mind."""

    name = "client-clock-step"
    numbers = ("F25",)
    fault_class = "clock stepped"
    touches = frozenset({"clients"})
    rides_out = True
    hold_seconds = (3.0, 8.0)
    goal_seconds = 5.0

    def inject(self, rig: Rig, rng: random.Random) -> None:
        if rig.load is None:
            raise TookNoHold("there are no clients whose clock could step")
        seconds = rng.choice((-86_400, -3_600, 3_600, 86_400))
        rig.load.shift_clock(seconds)
        self.proved(f"the clients' clock stepped by {seconds:+,} s")

    def heal(self, rig: Rig) -> None:
        if rig.load is not None:
            rig.load.shift_clock(0)


FAULTS: list[type[Fault]] = [ClockStep]
