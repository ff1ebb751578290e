"""What happened when: lines as they come, and the table of faults with their recovery at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

STYLES = {"inject": "red", "heal": "green", "recovered": "cyan", "void": "bold yellow", "slow": "yellow"}


@dataclass
class Struck:
    """One fault that was injected, and what came of it."""

    facts: dict[str, Any]
    goal_seconds: float
    injected_at: float = 0.0
    healed_at: float = 0.0
    recovery_seconds: float | None = None
    # Others that struck in the same round: the recovery is then that of all of them.
    together: int = 1
    problem: str = ""

    @property
    def name(self) -> str:
        return str(self.facts["name"])

    @property
    def is_late(self) -> bool:
        """Whether it missed its goal by itself: where several struck, nobody can say which of them took the time."""
        return self.recovery_seconds is None or (self.together == 1 and self.recovery_seconds > self.goal_seconds)

    def as_json(self) -> dict[str, Any]:
        return {
            **self.facts,
            "injected_at": round(self.injected_at, 3),
            "healed_at": round(self.healed_at, 3),
            "recovery_seconds": None if self.recovery_seconds is None else round(self.recovery_seconds, 2),
            "goal_seconds": self.goal_seconds,
            "together": self.together,
            "problem": self.problem,
        }


@dataclass
class Timeline:
    """Says what happens, from any thread, and keeps it. Moments are seconds since the start."""

    console: Console
    began: float = field(default_factory=time.monotonic)
    struck: list[Struck] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def now(self) -> float:
        return time.monotonic() - self.began

    def say(self, kind: str, text: str) -> None:
        minutes, seconds = divmod(self.now(), 60)
        line = f"{int(minutes):02d}:{seconds:04.1f}  {kind:<10} {text}"
        with self._lock:
            self.lines.append(line)
            self.console.print(line, style=STYLES.get(kind), markup=False, highlight=False, soft_wrap=True)

    def classes(self) -> set[str]:
        return {str(struck.facts["class"]) for struck in self.struck}

    def void(self) -> list[Struck]:
        """Faults that left no evidence or were never recovered from."""
        return [struck for struck in self.struck if struck.problem]

    def worst_recovery_seconds(self) -> float:
        return max((struck.recovery_seconds or 0.0 for struck in self.struck), default=0.0)


def table_of(struck: Sequence[Struck]) -> Table:
    """All faults of a kind in one line: how often, the recovery, the goal, and an example of the evidence."""
    table = Table(title="Faults, and how soon a transfer was posted again", title_justify="left")
    table.add_column("fault")
    table.add_column("matrix")
    for heading in ("times", "median s", "worst s", "goal s"):
        table.add_column(heading, justify="right")
    table.add_column("evidence (the last one's)", overflow="fold")
    for name in sorted({one.name for one in struck}):
        ones = [one for one in struck if one.name == name]
        seconds = sorted(one.recovery_seconds for one in ones if one.recovery_seconds is not None)
        worst = f"{seconds[-1]:.1f}" if seconds else "never"
        is_late = any(one.is_late for one in ones)
        table.add_row(
            name,
            ", ".join(ones[0].facts["numbers"]),
            str(len(ones)),
            f"{seconds[len(seconds) // 2]:.1f}" if seconds else "never",
            f"[yellow]{worst}[/yellow]" if is_late else worst,
            f"{ones[0].goal_seconds:.0f}",
            ones[-1].problem or ones[-1].facts["evidence"],
        )
    return table
