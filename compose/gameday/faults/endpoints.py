"""Faults of a customer's own program, which is told by webhook: it refuses, keeps waiting, or cuts off every call."""

from __future__ import annotations

import random
from typing import ClassVar

from compose.gameday.faults.fault import WAY, Fault, TookNoHold
from compose.gameday.receiver import Mood
from compose.gameday.rig import Rig


class _IllEndpoint(Fault):
    """What it does not take waits, behind its breaker; money moves on meanwhile."""

    numbers = ("F33",)
    fault_class = "webhook endpoint ill"
    touches = frozenset({"webhooks"})
    relies_on = WAY
    rides_out = True
    hold_seconds = (3.0, 8.0)
    goal_seconds = 5.0
    mood: ClassVar[Mood]

    def inject(self, rig: Rig, rng: random.Random) -> None:
        receiver = rig.receiver
        if receiver is None:
            raise TookNoHold("nobody takes webhooks")
        before = receiver.met[self.mood]
        receiver.mood = self.mood
        met = self.needs("calls meet the ill endpoint", lambda: receiver.met[self.mood] - before)
        self.proved(f"{met} calls at once, and those that followed, met an endpoint that {self.mood}")

    def heal(self, rig: Rig) -> None:
        if rig.receiver is not None:
            rig.receiver.mood = Mood.WELL


class RefusingEndpoint(_IllEndpoint):
    """Every webhook is answered 503."""

    name = "webhooks-refused"
    mood = Mood.REFUSES


class HangingEndpoint(_IllEndpoint):
    """Every webhook is kept waiting for longer than a call may take."""

    name = "webhooks-hang"
    mood = Mood.HANGS


class BreakingEndpoint(_IllEndpoint):
    """Every webhook is taken, and the connection closed before an answer."""

    name = "webhooks-cut-off"
    mood = Mood.BREAKS_OFF


FAULTS: list[type[Fault]] = [RefusingEndpoint, HangingEndpoint, BreakingEndpoint]
