"""What every fault has in common: a name, its place in the matrix, how it is injected and healed, and its proof."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from typing import Any, ClassVar

from compose.gameday.rig import Rig

PROOF_SECONDS_MAX = 20.0
LOOK_SECONDS = 0.05
# What work passes on its way from a client to its notification.
WAY = frozenset({"broker", "broker-links", "queues", "database"})


class TookNoHold(Exception):
    """A fault was injected, but nothing shows that anything came of it: such a run proves nothing."""


class Fault:
    """One fault, used once: `inject`, hold, `heal`, then `evidence`.

    `touches` are the things it breaks: two faults that touch the same thing never go together. `relies_on` are those
    that have to work for its proof: no fault that breaks one of them goes with it. `rides_out`: the
    system has to recover while the fault lasts, so its recovery counts from the injection instead of the healing.
    `hold_seconds` is how long it lasts, from and to; `goal_seconds` how soon the first transfer is to be posted.
    """

    name: ClassVar[str]
    numbers: ClassVar[tuple[str, ...]] = ()
    fault_class: ClassVar[str]
    touches: ClassVar[frozenset[str]]
    relies_on: ClassVar[frozenset[str]] = frozenset()
    rides_out: ClassVar[bool] = False
    hold_seconds: ClassVar[tuple[float, float]] = (0.0, 0.0)
    goal_seconds: ClassVar[float] = 15.0
    # Faults too long for a short game day.
    is_long: ClassVar[bool] = False

    def __init__(self) -> None:
        self.proofs: list[str] = []
        # What else is worth telling, such as what an operator had to do; proves nothing.
        self.notes: list[str] = []
        self.poisoned: list[dict[str, str]] = []
        # When it struck (monotonic): looking for somebody to strike is no part of a recovery.
        self.struck_at: float | None = None

    def inject(self, rig: Rig, rng: random.Random) -> None:
        """Break something. Raises TookNoHold, or whatever the tools raise."""
        raise TookNoHold(self.name)

    def heal(self, rig: Rig) -> None:
        """Mend it, and wait (within a bound) until what was broken answers again. Safe to repeat."""

    def evidence(self) -> str:
        """What shows that it took hold. Raises TookNoHold when nothing does."""
        if not self.proofs:
            raise TookNoHold(f"{self.name} left no trace")
        return "; ".join((*self.proofs, *self.notes))

    def proved(self, proof: str) -> None:
        self.proofs.append(proof)

    def noted(self, note: str) -> None:
        self.notes.append(note)

    def needs(self, what: str, is_true: Callable[[], Any], seconds: float = PROOF_SECONDS_MAX) -> Any:
        """Having struck, wait until something shows it, and return that. Raises TookNoHold when the time is up."""
        if self.struck_at is None:
            self.struck_at = time.monotonic()
        return wait_until(what, is_true, seconds=seconds)

    def as_json(self) -> dict[str, Any]:
        """What the verdict and the report are told of it."""
        return {
            "name": self.name,
            "numbers": list(self.numbers),
            "class": self.fault_class,
            "evidence": "; ".join((*self.proofs, *self.notes)),
            # What each message was, and what the verdict looks for on the desk.
            "poisoned": self.poisoned,
            "poison": [one["body_sha256"] for one in self.poisoned],
        }


def wait_until(what: str, is_true: Callable[[], Any], *, seconds: float) -> Any:
    """The first truthy answer. What cannot be asked yet counts as not true. Raises TookNoHold."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(Exception):
            if answer := is_true():
                return answer
        if time.monotonic() > deadline:
            raise TookNoHold(f"{what}: not within {seconds:.0f} s")
        time.sleep(LOOK_SECONDS)
