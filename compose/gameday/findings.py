"""Where the checks put what they find: counted by kind, and the first ones by name."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

NAMED_MAX = 20


@dataclass
class Findings:
    counts: Counter[str] = field(default_factory=Counter)
    named: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, what: str) -> None:
        self.counts[kind] += 1
        if len(self.named[kind]) < NAMED_MAX:
            self.named[kind].append(what)
