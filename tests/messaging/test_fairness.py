"""While one client floods the bank with what people wait for, the others get in with whatever work they bring."""

import time
from typing import Any

import pytest

from bankcore.messaging.backpressure import Gate, Measured, Overloaded, Priority

STEP_SECONDS = 0.25
RATE = 1000
AT_ONCE = 50


class Flooded:
    """A bank that does RATE transfers a second, and a client that orders more whenever it is let in."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000.0
        self.waiting = self.done = self.taken = 0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "time", lambda: self.now)
        monkeypatch.setattr(Gate, "_start", lambda self: None)
        self.gate = Gate(probe=lambda: Measured({"posting": self.waiting}, {"posting": self.done}, taken=self.taken))
        self.gate.refresh()

    def go_on(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += STEP_SECONDS
            worked_off = min(self.waiting, round(RATE * STEP_SECONDS))
            self.waiting, self.done = self.waiting - worked_off, self.done + worked_off
            self.gate.refresh()
            while self.ask("loud", AT_ONCE, Priority.INTERACTIVE) is None:
                pass

    def ask(self, client: str, transfers: int, priority: Priority) -> int | None:
        """Order as a request does: first past the front, which does not know the client; return Retry-After, if any."""
        if (seconds := self.gate.turned_away(priority)) is not None:
            return seconds
        try:
            self.gate.admit(client, transfers, priority)
        except Overloaded as refusal:
            return refusal.retry_after
        self.waiting, self.taken = self.waiting + transfers, self.taken + transfers
        return None


@pytest.mark.parametrize("priority", [Priority.BATCH, Priority.BULK])
def test_a_flood_of_single_transfers_keeps_nobodys_batches_out(
    monkeypatch: pytest.MonkeyPatch, settings: Any, priority: Priority
) -> None:
    settings.PROMISE_SECONDS, settings.DRAIN_RATE_START, settings.INTAKE_COST = 30, RATE, 0.0
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    bank = Flooded(monkeypatch)
    bank.go_on(60)
    assert bank.waiting > 29 * RATE

    answers = []
    for _ in range(4):
        answers.append(bank.ask("quiet", 100, priority))
        # As a client should: no sooner than it was told.
        bank.go_on(answers[-1] or 1)

    assert None in answers
