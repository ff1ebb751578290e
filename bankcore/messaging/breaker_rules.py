"""The rules of a circuit breaker in memory: for one process alone while Redis is away, and to compare the script with.

`breaker.lua` holds the same rules for all workers together.
"""

import math
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

SLOTS = 10


@dataclass(frozen=True, slots=True)
class Policy:
    """When a breaker opens, for how long, and what closes it again."""

    window_seconds: float = 30.0
    calls_min: int = 5
    failure_ratio: float = 0.5
    open_seconds: float = 5.0
    open_seconds_max: float = 120.0
    trials: int = 2
    # A trial call that says nothing for so long has died with its process.
    probe_seconds: float = 60.0


class Reply(NamedTuple):
    """What a step leaves behind. `wait_ms`: how long a refused call keeps away; of `settle`: 1 if the state changed."""

    admitted: bool
    wait_ms: int
    generation: int
    state: str
    forced: str


@dataclass
class Rules:
    """One breaker's state. Every step is atomic among the threads of this process."""

    state: str = "closed"
    forced: str = ""
    generation: int = 0
    openings: int = 0
    open_until: int = 0
    probe_until: int = 0
    probe_token: str = ""
    passed: int = 0
    calls: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    failures: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def admit(self, now: int, policy: Policy, token: str) -> Reply:
        with self.lock:
            if self.forced == "open":
                return self._reply(False, 1000)
            if self.forced == "closed":
                return self._reply()
            if self.state == "open":
                if now < self.open_until:
                    return self._reply(False, self.open_until - now)
                self._become("half_open")
            if self.state == "half_open":
                if now < self.probe_until:
                    return self._reply(False, min(self.probe_until - now, 1000))
                self.probe_until, self.probe_token = now + round(policy.probe_seconds * 1000), token
            return self._reply()

    def settle(self, now: int, policy: Policy, generation: int, token: str, outcome: str, jitter: float) -> Reply:
        with self.lock:
            if generation != self.generation or self.forced:
                return self._reply()
            if self.state == "half_open" and token == self.probe_token:
                self._settle_trial(now, policy, outcome, jitter)
            elif self.state == "closed" and outcome != "none":
                calls, failures = self._count(now, policy, bad=outcome == "bad")
                if calls >= policy.calls_min and failures >= calls * policy.failure_ratio:
                    self._trip(now, policy, jitter)
            return self._reply(wait_ms=int(generation != self.generation))

    def force(self, mode: str) -> Reply:
        with self.lock:
            self._become("closed")
            self.forced = mode
            return self._reply()

    def _settle_trial(self, now: int, policy: Policy, outcome: str, jitter: float) -> None:
        self.probe_until, self.probe_token = 0, ""
        if outcome == "bad":
            self._trip(now, policy, jitter)
        elif outcome == "ok":
            self.passed += 1
            if self.passed >= policy.trials:
                self._become("closed")

    def _count(self, now: int, policy: Policy, *, bad: bool) -> tuple[int, int]:
        index = math.floor(now / (round(policy.window_seconds * 1000) / SLOTS))
        for tally in (self.calls, self.failures):
            for old in [i for i in tally if i <= index - SLOTS]:
                del tally[old]
        self.calls[index] += 1
        self.failures[index] += bad
        return sum(self.calls.values()), sum(self.failures.values())

    def _trip(self, now: int, policy: Policy, jitter: float) -> None:
        openings = self.openings + 1
        pause = min(policy.open_seconds * 1000 * 2 ** min(openings - 1, 20), policy.open_seconds_max * 1000)
        self._become("open")
        self.openings, self.open_until = openings, math.floor(now + pause * jitter)

    def _become(self, state: str) -> None:
        self.state, self.generation = state, self.generation + 1
        self.passed, self.probe_until, self.probe_token = 0, 0, ""
        self.calls.clear()
        self.failures.clear()
        if state == "closed":
            self.openings = 0

    def _reply(self, admitted: bool = True, wait_ms: int = 0) -> Reply:
        return Reply(admitted, wait_ms, self.generation, self.state, self.forced)
