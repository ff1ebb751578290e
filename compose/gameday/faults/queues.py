"""Faults of queues and of the broker's resources: emptied, deleted, unbound, full, alarmed, connections closed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import urllib.parse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from compose.gameday.cluster import NODES, VHOST
from compose.gameday.faults.fault import Fault, TookNoHold, wait_until
from compose.gameday.faults.nodes import declare_topology
from compose.gameday.rig import Rig

QUEUES = frozenset({"broker", "queues"})
WORK = ("risk-", "posting-", "notifications")
# The limit that lets a full queue grow again, how soon it is in force, and how often it is set.
ROOM = 1_000_000
ROOM_SECONDS = 10.0
ASKED_MAX = 3


def _work_queues(rig: Rig) -> list[str]:
    return sorted(queue["name"] for queue in rig.cluster.queues() if queue["name"].startswith(WORK) and _is_ours(queue))


def _is_ours(queue: dict[str, object]) -> bool:
    return queue.get("type") == "quorum"


class PurgeQueues(Fault):
    """An operator empties every work queue while the workers stand still, so that there is something to lose."""

    name = "purge-queues"
    numbers = ("F14", "F38")
    fault_class = "messages lost in the broker"
    touches = frozenset({"broker", "queues", "risk", "posting", "notifications"})
    relies_on = frozenset({"database"})
    goal_seconds = 60.0

    def __init__(self) -> None:
        super().__init__()
        self.frozen: list[int] = []

    def inject(self, rig: Rig, rng: random.Random) -> None:
        pids = rig.pids()
        self.frozen = [pids[program] for role in ("risk", "posting") for program in rig.programs(role)]
        for pid in self.frozen:
            os.kill(pid, signal.SIGSTOP)
        lost = self.needs("messages are waiting", lambda: _ready(rig), seconds=15)
        for queue in _work_queues(rig):
            rig.cluster.purge(queue)
        self.proved(f"{lost} waiting messages purged from {len(_work_queues(rig))} queues")

    def heal(self, rig: Rig) -> None:
        for pid in self.frozen:
            if not rig.is_gone(pid):
                os.kill(pid, signal.SIGCONT)
        self.frozen = []


def _ready(rig: Rig) -> int:
    return sum(queue.get("messages_ready", 0) for queue in rig.cluster.queues() if queue["name"].startswith(WORK))


class DeleteQueues(Fault):
    """Every work queue is deleted, with whatever was in it, while its consumers are connected."""

    name = "delete-queues"
    numbers = ("F14", "F38")
    fault_class = "messages lost in the broker"
    touches = QUEUES
    goal_seconds = 60.0
    hold_seconds = (0.5, 2.0)

    def inject(self, rig: Rig, rng: random.Random) -> None:
        queues = _work_queues(rig)
        for queue in queues:
            rig.cluster.delete_queue(queue)
        self.proved(f"{len(queues)} queues deleted: {', '.join(queues)}")

    def heal(self, rig: Rig) -> None:
        declare_topology(rig)
        wait_until("the queues are back", lambda: len(_work_queues(rig)) >= len(WORK), seconds=30)


class Unbind(Fault):
    """The bindings of the probes' partition are removed: its messages find no queue."""

    name = "unbind-queues"
    numbers = ("F14",)
    fault_class = "binding removed"
    touches = QUEUES
    hold_seconds = (1.0, 4.0)
    goal_seconds = 10.0

    def inject(self, rig: Rig, rng: random.Random) -> None:
        told_before = {log: log.stat().st_size for log in _relay_logs(rig)}
        shown = []
        for queue in (f"risk-{rig.focus_partition}", f"posting-{rig.focus_partition}"):
            path = f"bindings/{VHOST}/e/bank/q/{queue}"
            for binding in rig.cluster.api("GET", path).json():
                rig.cluster.api("DELETE", f"{path}/{urllib.parse.quote(binding['properties_key'], safe='')}")
            shown.append(self.needs(f"{queue} is unbound", partial(_is_unbound, rig, path, queue, told_before)))
        self.proved("; ".join(shown))

    def heal(self, rig: Rig) -> None:
        declare_topology(rig)


def _relay_logs(rig: Rig) -> list[Path]:
    return sorted(rig.logs.glob("relay*.log"))


def _is_unbound(rig: Rig, path: str, queue: str, told_before: Mapping[Path, int]) -> str:
    """What shows that nothing reaches the queue: no binding, or, once a relay has put that right, its complaint."""
    if rig.cluster.api("GET", path).json() == []:
        return f"no binding from exchange bank to {queue}"
    for log, size in told_before.items():
        if f"no queue takes messages for {queue} " in log.read_text(errors="replace")[size:]:
            return f"the broker returned messages for {queue} to a relay, which bound it again"
    return ""


class FullQueues(Fault):
    """The posting queues take one message only, and nobody takes it out: the broker refuses the next (nack)."""

    name = "full-queues"
    numbers = ("F16",)
    fault_class = "queue full"
    touches = frozenset({"broker", "queues", "posting"})
    relies_on = frozenset({"database"})
    hold_seconds = (2.0, 5.0)
    goal_seconds = 10.0
    policy = "gameday-full"
    length_max = 1

    def __init__(self) -> None:
        super().__init__()
        self.frozen: list[int] = []

    def inject(self, rig: Rig, rng: random.Random) -> None:
        pids = rig.pids()
        self.frozen = [pids[program] for program in rig.programs("posting")]
        for pid in self.frozen:
            os.kill(pid, signal.SIGSTOP)
        rig.cluster.set_policy(self.policy, "^posting-", {"max-length": self.length_max})
        full = self.needs("a posting queue is full", lambda: self._full(rig), seconds=20)
        self.proved(f"max-length 1 with reject-publish in force, and reached, on {', '.join(full)}")

    def _full(self, rig: Rig) -> list[str]:
        return [
            queue["name"]
            for queue in rig.cluster.queues()
            if _length_max(queue) == self.length_max and queue.get("messages_ready", 0) >= self.length_max
        ]

    def heal(self, rig: Rig) -> None:
        for pid in self.frozen:
            if not rig.is_gone(pid):
                os.kill(pid, signal.SIGCONT)
        self.frozen = []
        give_room(rig, self.policy, "posting-")


def give_room(rig: Rig, policy: str, prefix: str) -> None:
    """Let full queues grow again, and take their policy away. Raises TookNoHold when they do not.

    First room, then no policy: RabbitMQ tells publishers that a queue takes messages again only as its length falls
    below a limit, so without one they would be refused until they open another channel.
    """
    for more in range(ASKED_MAX):
        # A queue that is electing a leader misses a policy; the same one once more would be no change.
        rig.cluster.set_policy(policy, f"^{prefix}", {"max-length": ROOM + more, "overflow": "reject-publish"})
        with contextlib.suppress(TookNoHold):
            wait_until("the queues have room", lambda: have_room(rig.cluster.queues(), prefix), seconds=ROOM_SECONDS)
            rig.cluster.delete_policy(policy)
            return
    raise TookNoHold(f"the queues have no room, asked {ASKED_MAX} times")


def _length_max(queue: Mapping[str, Any]) -> int | None:
    """The longest that a policy lets a queue become."""
    definition = queue.get("effective_policy_definition") or {}
    return definition.get("max-length") if isinstance(definition, Mapping) else None


def have_room(queues: Sequence[Mapping[str, Any]], prefix: str) -> bool:
    """Whether every queue of this prefix may grow again. What waits in them is no matter: traffic goes on."""
    limits = [_length_max(queue) for queue in queues if queue["name"].startswith(prefix)]
    return bool(limits) and all(limit is not None and limit >= ROOM for limit in limits)


class _Alarm(Fault):
    fault_class = "broker alarm"
    touches = frozenset({"broker"})
    hold_seconds = (4.0, 10.0)
    goal_seconds = 10.0
    raise_: str
    clear: str
    alarm: str

    def inject(self, rig: Rig, rng: random.Random) -> None:
        node = rng.choice(NODES)
        rig.cluster.call(node, self.raise_)
        self.needs(f"{node} reports {self.alarm}", lambda: node in self._alarmed(rig))
        blocked = [c for c in rig.cluster.api("GET", "connections").json() if "block" in str(c.get("state"))]
        self.proved(f"{self.alarm} on {node}; {len(blocked)} connections blocked at once")

    def _alarmed(self, rig: Rig) -> list[str]:
        nodes = rig.cluster.api("GET", "nodes").json()
        return [node["name"].partition("@")[0] for node in nodes if node.get(self.alarm)]

    def heal(self, rig: Rig) -> None:
        for node in NODES:
            rig.cluster.call(node, self.clear)
        wait_until(f"no {self.alarm} any more", lambda: self._alarmed(rig) == [], seconds=30)


class DiskAlarm(_Alarm):
    """A node says that its disk is full: the whole cluster blocks whoever publishes."""

    name = "disk-alarm"
    numbers = ("F15", "F22")
    raise_ = "rabbit_disk_monitor:set_disk_free_limit(100000000000000)."
    clear = "rabbit_disk_monitor:set_disk_free_limit(64000000)."
    alarm = "disk_free_alarm"


class MemoryAlarm(_Alarm):
    """A node says that its memory is used up."""

    name = "memory-alarm"
    numbers = ("F15",)
    raise_ = "vm_memory_monitor:set_vm_memory_high_watermark(0.0001)."
    clear = "vm_memory_monitor:set_vm_memory_high_watermark(0.4)."
    alarm = "mem_alarm"


FAULTS: list[type[Fault]] = [
    PurgeQueues,
    DeleteQueues,
    Unbind,
    FullQueues,
    DiskAlarm,
    MemoryAlarm,
]
