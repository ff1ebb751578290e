"""Faults of the broker's nodes: killed, frozen, restarted, wiped, cut off from each other or from everyone else."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from compose.gameday.cluster import NODES, distribution_link
from compose.gameday.faults.fault import Fault, TookNoHold, wait_until
from compose.gameday.rig import Rig
from compose.gameday.weather import Mode, Weather
from compose.instance import REPOSITORY, StackError, remove_tree

# Nodes find each other again by themselves within this, or an operator restarts the ones that have not: those that
# pause because they were in a minority and stay so, and those that nobody sees (after a freeze, no node is in a
# minority by its own light, so none pauses). Starting anew takes a node a minute and more on a machine that is busy:
# one that was started only now is left to it.
BY_ITSELF_SECONDS = 30.0
BOOT_SECONDS = 120.0
AFTER_RESTART_SECONDS = 60.0
WHOLE_SECONDS_MAX = 120.0
BROKER = frozenset({"broker"})
CUT = Weather(Mode.CUT)


def leader_of_focus(rig: Rig) -> str:
    """The node that leads the posting queue of the probes' partition."""
    leader = wait_until(
        "the probes' queue has a leader",
        lambda: rig.cluster.leaders().get(f"posting-{rig.focus_partition}"),
        seconds=30,
    )
    return str(leader)


def await_whole(rig: Rig) -> list[str]:
    """Wait until all nodes run and see each other; do what an operator does with those that do not come back.

    Returns what had to be done, in words. Raises TookNoHold, with what each node sees, if nothing helped.
    """
    done: list[str] = []
    for seconds in (BY_ITSELF_SECONDS, AFTER_RESTART_SECONDS, AFTER_RESTART_SECONDS):
        with contextlib.suppress(TookNoHold):
            wait_until("all broker nodes run", rig.cluster.is_whole, seconds=seconds)
            return done
        views = {node: sorted(rig.cluster.running(through=node)) for node in NODES}
        apart = [node for node in rig.cluster.apart() if not 0 < rig.age_seconds(node) < BOOT_SECONDS]
        for node in apart:
            _restart(rig, node)
        if apart:
            done.append(f"an operator restarted {' and '.join(apart)} after {seconds:.0f} s: the nodes saw {views}")
    try:
        wait_until("all broker nodes run", rig.cluster.is_whole, seconds=WHOLE_SECONDS_MAX)
    except TookNoHold as error:
        views = {node: sorted(rig.cluster.running(through=node)) for node in NODES}
        raise TookNoHold("; ".join((str(error), *done, f"now the nodes see {views}"))) from error
    return done


def _restart(rig: Rig, node: str) -> None:
    try:
        rig.signal(node, signal.SIGKILL)
    except (StackError, ProcessLookupError):
        # It does not run, or supervision is about to try again.
        rig.start(node)


class _OnNodes(Fault):
    touches = BROKER

    def heal(self, rig: Rig) -> None:
        for done in await_whole(rig):
            self.noted(done)


class KillLeader(_OnNodes):
    """SIGKILL to the node that leads the queue in question; supervision brings it back."""

    name = "kill-broker-leader"
    numbers = ("F9",)
    fault_class = "broker node killed"
    rides_out = True
    goal_seconds = 2.0

    def inject(self, rig: Rig, rng: random.Random) -> None:
        node = leader_of_focus(rig)
        pid = rig.signal(node, signal.SIGKILL)
        self.needs(f"{node} is dead", lambda: rig.is_gone(pid))
        self.proved(f"{node} (pid {pid}, leader of posting-{rig.focus_partition}) killed")


class KillNode(_OnNodes):
    """SIGKILL to any node of the broker."""

    name = "kill-broker-node"
    numbers = ("F12", "F9")
    fault_class = "broker node killed"
    rides_out = True
    goal_seconds = 2.0

    def inject(self, rig: Rig, rng: random.Random) -> None:
        node = rng.choice(NODES)
        pid = rig.signal(node, signal.SIGKILL)
        self.needs(f"{node} is dead", lambda: rig.is_gone(pid))
        self.proved(f"{node} (pid {pid}) killed")


class KillAllNodes(_OnNodes):
    """SIGKILL to all nodes at once: the broker is away until they have found each other again."""

    name = "kill-all-brokers"
    numbers = ("F12",)
    fault_class = "broker away"
    goal_seconds = 15.0

    def inject(self, rig: Rig, rng: random.Random) -> None:
        pids = [rig.signal(node, signal.SIGKILL) for node in NODES]
        self.needs("all nodes are dead", lambda: all(rig.is_gone(pid) for pid in pids))
        self.needs("no node answers", lambda: not rig.cluster.running())
        self.proved(f"{', '.join(NODES)} killed, no management API answers")


class StopMajority(_OnNodes):
    """Two of three nodes away: no quorum, so nothing can be queued, and nothing may be believed to be."""

    name = "stop-broker-majority"
    numbers = ("F12",)
    fault_class = "broker away"
    hold_seconds = (6.0, 12.0)

    def inject(self, rig: Rig, rng: random.Random) -> None:
        stopped = sorted(rng.sample(NODES, 2))
        rig.stop(*stopped)
        self.needs(f"{stopped} are away", lambda: not set(stopped) & rig.pids().keys())
        self.proved(f"{' and '.join(stopped)} stopped: one node of three left")

    def heal(self, rig: Rig) -> None:
        rig.start(*NODES)
        super().heal(rig)


class FreezeLeader(_OnNodes):
    """SIGSTOP to the leading node: its sockets stay open and nothing comes out of them."""

    name = "freeze-broker-leader"
    numbers = ("F11",)
    fault_class = "broker node frozen"
    hold_seconds = (8.0, 14.0)
    goal_seconds = 5.0

    def __init__(self) -> None:
        super().__init__()
        self.pid = 0

    def inject(self, rig: Rig, rng: random.Random) -> None:
        node = leader_of_focus(rig)
        self.pid = rig.signal(node, signal.SIGSTOP)
        state = Path(f"/proc/{self.pid}/stat")
        self.needs(f"{node} stands still", lambda: state.read_text().rpartition(")")[2].split()[0] == "T")
        self.proved(f"{node} (pid {self.pid}, leader of posting-{rig.focus_partition}) in state T")

    def heal(self, rig: Rig) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)
        super().heal(rig)


class RollingRestart(_OnNodes):
    """SIGTERM to one node after another, each awaited: how a broker is upgraded."""

    name = "rolling-broker-restart"
    numbers = ("F13",)
    fault_class = "broker restarted"
    rides_out = True
    goal_seconds = 15.0

    def inject(self, rig: Rig, rng: random.Random) -> None:
        for node in NODES:
            pid = rig.signal(node, signal.SIGTERM)
            self.needs(f"{node} has ended", partial(rig.is_gone, pid), seconds=40)
            for done in await_whole(rig):
                self.noted(done)
            wait_until("all replicas are back", rig.cluster.replicas_are_whole, seconds=WHOLE_SECONDS_MAX)
        self.proved(f"{', '.join(NODES)} stopped and started one after another")


class MinorityPartition(_OnNodes):
    """The leading node is cut off from its peers (not from its clients): the majority has to go on without it."""

    name = "partition-broker-minority"
    numbers = ("F10",)
    fault_class = "broker partitioned"
    rides_out = True
    hold_seconds = (16.0, 22.0)
    goal_seconds = 15.0

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def inject(self, rig: Rig, rng: random.Random) -> None:
        alone = leader_of_focus(rig)
        others = [node for node in NODES if node != alone]
        self.links = [distribution_link(*pair) for other in others for pair in ((alone, other), (other, alone))]
        for link in self.links:
            rig.proxy.change(link, CUT)
        seen = self.needs(
            f"{alone} is down for the others",
            lambda: (now := rig.cluster.running(through=others[0])) == set(others) and now,
            seconds=30,
        )
        held = sum(rig.proxy.stats()[link].get("held", 0) for link in self.links)
        self.proved(
            f"{alone}, leader of posting-{rig.focus_partition}, alone: peers see {sorted(seen)}; {held:,} bytes held"
        )

    def heal(self, rig: Rig) -> None:
        if self.links:
            rig.proxy.heal(*self.links)
        super().heal(rig)


class CutFromBroker(Fault):
    """No program of ours reaches the broker, nor it them: relay and workers wait, intake goes on."""

    name = "partition-workers-broker"
    numbers = ("F10", "F17")
    fault_class = "programs cut off from the broker"
    touches = frozenset({"broker", "broker-links"})
    hold_seconds = (6.0, 12.0)

    def inject(self, rig: Rig, rng: random.Random) -> None:
        before = rig.proxy.stats()
        for node in NODES:
            rig.proxy.change(node, CUT)

        def held() -> int:
            now = rig.proxy.stats()
            return sum(now[node].get("held", 0) - before[node].get("held", 0) for node in NODES)

        self.proved(f"{self.needs('bytes are held back', held):,} bytes and more held back at all three nodes")

    def heal(self, rig: Rig) -> None:
        rig.proxy.heal(*NODES)


class WipeBroker(Fault):
    """All nodes lose everything they had; the topology is declared again, and the database says what is owed."""

    name = "wipe-broker"
    numbers = ("F14",)
    fault_class = "broker wiped"
    touches = frozenset({"broker", "queues", "broker-links"})
    goal_seconds = 60.0

    def inject(self, rig: Rig, rng: random.Random) -> None:
        queues = [queue["name"] for queue in rig.cluster.queues()]
        messages = sum(queue.get("messages", 0) for queue in rig.cluster.queues())
        pids = [rig.pids()[node] for node in NODES]
        rig.stop(*NODES)
        self.needs("all nodes have ended", lambda: all(rig.is_gone(pid) for pid in pids))
        for node in NODES:
            remove_tree(rig.home(node) / "mnesia")
        self.proved(f"data of {', '.join(NODES)} removed: {len(queues)} queues with about {messages} messages")

    def heal(self, rig: Rig) -> None:
        rig.start(*NODES)
        for done in await_whole(rig):
            self.noted(done)
        declare_topology(rig)


def declare_topology(rig: Rig) -> None:
    """What an operator does after a broker has lost its queues."""
    deadline = time.monotonic() + 60
    while True:
        done = subprocess.run(
            [sys.executable, "manage.py", "declare_topology"],
            cwd=REPOSITORY,
            env={**os.environ, **rig.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"The topology cannot be declared: {done.stderr.strip()[-500:]}")
        time.sleep(1)


FAULTS: list[type[Fault]] = [
    KillLeader,
    KillNode,
    KillAllNodes,
    StopMajority,
    FreezeLeader,
    RollingRestart,
    MinorityPartition,
    CutFromBroker,
    WipeBroker,
]
