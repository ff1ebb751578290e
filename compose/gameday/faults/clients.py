"""What clients do to the bank: clocks that jump, and ten times as many orders as usual."""

from __future__ import annotations

import random
import time

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


class Burst(Fault):
    """Ten times as many orders as usual: taken, or told when to come again."""

    name = "burst"
    numbers = ("F32",)
    fault_class = "burst of orders"
    touches = frozenset({"clients"})
    hold_seconds = (4.0, 8.0)
    goal_seconds = 10.0
    factor = 10

    def __init__(self) -> None:
        super().__init__()
        self.began = time.monotonic()
        self.asked = 0

    def inject(self, rig: Rig, rng: random.Random) -> None:
        if rig.load is None:
            raise TookNoHold("there are no clients to order more")
        self.began, self.asked = time.monotonic(), rig.load.counts()["asked"]
        rig.load.set_rate(rig.load.rate * self.factor)

    def heal(self, rig: Rig) -> None:
        if rig.load is None:
            return
        if not self.proofs:
            seconds, asked = time.monotonic() - self.began, rig.load.counts()["asked"] - self.asked
            if asked > seconds * rig.load.rate * 1.2:
                self.proved(f"{asked / seconds:.0f} orders a second for {seconds:.0f} s instead of {rig.load.rate:g}")
        rig.load.set_rate(rig.load.rate)


FAULTS: list[type[Fault]] = [ClockStep, Burst]
