"""Foul weather on one link: latency, stalls, little bandwidth, half-open connections, resets, late closes, cuts."""

from __future__ import annotations

import random
from typing import ClassVar

from compose.gameday.cluster import NODES
from compose.gameday.faults.fault import Fault
from compose.gameday.rig import POSTGRESQL, REDIS, Rig
from compose.gameday.weather import Mode, Weather

# What each weather is, and which of the link's counters shows that it struck.
WEATHER: dict[str, tuple[Weather, str, str]] = {
    "latency": (Weather(Mode.LATENCY, seconds=0.2, jitter_seconds=0.05), "delayed", "chunks delayed by 200 to 250 ms"),
    "stalls": (Weather(Mode.STALL, seconds=1.5, share=0.05), "stalled", "chunks stalled for 1.5 s"),
    "bandwidth": (Weather(Mode.BANDWIDTH, bytes_per_second=8_000), "throttled", "chunks throttled to 64 kbit/s"),
    "half-open": (Weather(Mode.HALF_OPEN, share=0.6), "swallowed", "bytes swallowed on connections that stay open"),
    "resets": (Weather(Mode.RESET, seconds=2.0), "resets", "connections reset"),
    "slow-close": (Weather(Mode.SLOW_CLOSE, seconds=3.0), "closed_late", "closes passed on 3 s late"),
    "cut": (Weather(Mode.CUT), "held", "bytes held back"),
}
LINKS: dict[str, tuple[tuple[str, ...], frozenset[str]]] = {
    "database": ((POSTGRESQL,), frozenset({"database"})),
    "broker": (NODES, frozenset({"broker", "broker-links"})),
    "redis": ((REDIS,), frozenset({"redis"})),
}
FOUL_SECONDS = (4.0, 9.0)


class FoulWeather(Fault):
    """Weather on all links to one kind of server; the link's own counters say whether it struck anything."""

    kind: ClassVar[str]
    server: ClassVar[str]
    hold_seconds = FOUL_SECONDS
    goal_seconds = 15.0

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, int] = {}

    @property
    def links(self) -> tuple[str, ...]:
        return LINKS[self.server][0]

    def inject(self, rig: Rig, rng: random.Random) -> None:
        weather, counter, _ = WEATHER[self.kind]
        self.before = _count(rig, self.links, counter)
        for link in self.links:
            rig.proxy.change(link, weather)
        rig.knock(*self.links)

    def heal(self, rig: Rig) -> None:
        _, counter, words = WEATHER[self.kind]
        if self.before and not self.proofs:
            struck = self.needs(
                f"{self.name} struck",
                lambda: self._struck(rig, counter),
                seconds=10,
            )
            self.proved(f"{struck:,} {words}")
        rig.proxy.heal(*self.links)

    def _struck(self, rig: Rig, counter: str) -> int:
        rig.knock(*self.links)
        return sum(_count(rig, self.links, counter).values()) - sum(self.before.values())


def _count(rig: Rig, links: tuple[str, ...], counter: str) -> dict[str, int]:
    stats = rig.proxy.stats()
    return {link: int(stats[link].get(counter, 0)) for link in links}


def _variants() -> list[type[Fault]]:
    made: list[type[Fault]] = []
    for server, (_, touches) in LINKS.items():
        for kind in WEATHER:
            if (server, kind) == ("broker", "cut"):
                continue  # A fault of its own: nodes.CutFromBroker.
            numbers = ("F17", "F20") if server == "database" else ("F17",)
            facts = {
                "name": f"{server}-{kind}",
                "numbers": numbers,
                "fault_class": f"network: {kind}",
                "touches": touches,
                "kind": kind,
                "server": server,
                "__doc__": f"{kind} between the programs and {server}.",
            }
            made.append(type(f"{server.title()}{kind.title().replace('-', '')}", (FoulWeather,), facts))
    return made


FAULTS = _variants()
