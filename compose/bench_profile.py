"""Who used the processors while something was measured: the first thing to know when a goal was not reached.

Reads Linux's /proc. Elsewhere there is no profile, and the benchmark says nothing about it.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PROC = Path("/proc")
OTHERS = "other programs"


class Profile:
    """Processor time per role of a stack, from `start` to `shares`. Children count for the role that started them."""

    def __init__(self, stack: Mapping[str, Any]) -> None:
        pids: dict[str, Iterable[int]] = {**stack["pids"], **_by_name(stack["server_pids"])}
        self._role_of = {int(pid): role for role, of_role in pids.items() for pid in of_role}
        self._role_of[os.getpid()] = "load driver"
        self._began, self._busy = 0.0, 0.0
        self._before: dict[int, tuple[str, float]] = {}

    def start(self) -> None:
        self._began, self._busy, self._before = time.monotonic(), _busy_seconds(), self._read()

    def shares(self) -> dict[str, float]:
        """Per cent of all processors that each role used, largest first; OTHERS is what the stack had no part in."""
        capacity = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        used: dict[str, float] = defaultdict(float)
        for pid, (role, seconds) in self._read().items():
            used[role] += seconds - self._before.get(pid, (role, 0.0))[1]
        used[OTHERS] = max(_busy_seconds() - self._busy - sum(used.values()), 0.0)
        shares = {role: round(100.0 * seconds / capacity, 1) for role, seconds in used.items() if capacity}
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def _read(self) -> dict[int, tuple[str, float]]:
        parents, seconds = _processes()
        return {pid: (role, seconds[pid]) for pid in parents if (role := self._role(pid, parents)) is not None}

    def _role(self, pid: int, parents: Mapping[int, int]) -> str | None:
        while pid > 1:
            if pid in self._role_of:
                return self._role_of[pid]
            pid = parents.get(pid, 0)
        return None


def _by_name(server_pids: Any) -> dict[str, list[int]]:
    """Server pids come as {name: pid} or {name: [pid, ..]}; a bare list is one group."""
    if isinstance(server_pids, Mapping):
        return {name: pids if isinstance(pids, list) else [pids] for name, pids in server_pids.items()}
    return {"servers": list(server_pids)}


def _busy_seconds() -> float:
    """How long all processors together have worked, or were kept from working by other virtual machines."""
    try:
        first = (PROC / "stat").read_text().splitlines()[0]
    except OSError:
        return 0.0
    user, nice, system, _idle, _waiting, hard, soft, stolen = map(int, first.split()[1:9])
    return (user + nice + system + hard + soft + stolen) / os.sysconf("SC_CLK_TCK")


def _processes() -> tuple[dict[int, int], dict[int, float]]:
    """The parent, and the processor seconds used so far, of every process that may be looked at."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    ticks = os.sysconf("SC_CLK_TCK")
    for entry in PROC.glob("[0-9]*"):
        try:
            # The name, in parentheses, may itself hold spaces and parentheses: fields count from behind the last one.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.name)] = int(fields[1])
        seconds[int(entry.name)] = (int(fields[11]) + int(fields[12])) / ticks
    return parents, seconds
