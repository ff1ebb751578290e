"""The plan of a game day: which faults strike together, for how long, all drawn from the seed."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compose.gameday.faults.fault import Fault

# How many faults strike together: mostly one or two, so that a recovery can be told from another's.
TOGETHER = (1, 1, 2, 2, 3)
DELAY_SECONDS_MAX = 2.0
# Short ones of as many classes as fit in a few minutes, for `make test`.
QUICK = (
    "kill-posting", "kill-risk", "kill-relay", "kill-web", "kill-web-child", "kill-maintenance", "kill-notifications",
    "term-posting", "term-relay", "term-web", "freeze-posting", "kill-broker-leader", "kill-all-brokers",
    "partition-broker-minority", "partition-workers-broker", "wipe-broker", "purge-queues", "delete-queues",
    "full-queues", "disk-alarm", "close-broker-connections", "stop-database", "kill-database-backend",
    "terminate-sessions", "flush-redis", "kill-redis", "database-latency", "database-half-open", "broker-resets",
    "poison", "duplicate-messages", "reorder-messages", "client-clock-step",
)  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """One fault of a round: it strikes after `delay_seconds`, lasts `hold_seconds`, and draws from its own `seed`."""

    fault: type[Fault]
    delay_seconds: float
    hold_seconds: float
    seed: int


@dataclass(frozen=True)
class Round:
    """Faults that strike together. The next round begins when all of them are healed and money moves again."""

    number: int
    planned: tuple[Planned, ...]


def rounds(seed: int, faults: Sequence[type[Fault]], *, together: Sequence[int] = TOGETHER) -> Iterator[Round]:
    """Plan round after round without end: every fault once before any is repeated, and every class as early as can be.

    The same seed and faults give the same plan.
    """
    rng = random.Random(f"schedule:{seed}")
    number = 0
    while True:
        waiting = _shuffled_by_class(faults, rng)
        while waiting:
            number += 1
            names = _pick(waiting, rng.choice(together))
            planned = tuple(_planned(fault, position, rng) for position, fault in enumerate(names))
            yield Round(number, planned)


def _shuffled_by_class(faults: Sequence[type[Fault]], rng: random.Random) -> list[type[Fault]]:
    """One fault of each class, then a second one of each, and so on, each time in another order."""
    by_class: dict[str, list[type[Fault]]] = defaultdict(list)
    for fault in faults:
        by_class[fault.fault_class].append(fault)
    for members in by_class.values():
        rng.shuffle(members)
    ordered: list[type[Fault]] = []
    while by_class:
        classes = sorted(by_class)
        rng.shuffle(classes)
        for name in classes:
            ordered.append(by_class[name].pop())
            if not by_class[name]:
                del by_class[name]
    return ordered


def _pick(waiting: list[type[Fault]], number: int) -> list[type[Fault]]:
    """Take the next fault, and the next ones after it that touch nothing which is broken already."""
    picked: list[type[Fault]] = [waiting.pop(0)]
    for fault in list(waiting):
        if len(picked) == number:
            break
        if all(are_compatible(fault, other) for other in picked):
            picked.append(fault)
            waiting.remove(fault)
    return picked


def are_compatible(one: type[Fault], other: type[Fault]) -> bool:
    """Whether two faults can strike together and each still be told from the other."""
    return not (one.touches & (other.touches | other.relies_on) or one.relies_on & other.touches)


def _planned(fault: type[Fault], position: int, rng: random.Random) -> Planned:
    delay = rng.uniform(0, DELAY_SECONDS_MAX) if position else 0.0
    return Planned(fault, delay, rng.uniform(*fault.hold_seconds), rng.getrandbits(32))
