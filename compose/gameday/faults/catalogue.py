"""All faults there are, by name."""

from __future__ import annotations

from compose.gameday.faults import (
    clients,
    connections,
    crashes,
    endpoints,
    messages,
    network,
    nodes,
    processes,
    queues,
    restore,
    scaling,
    stores,
)
from compose.gameday.faults.fault import Fault

_ALL = (
    processes, crashes, scaling, nodes, queues, connections, stores, restore, network, messages, endpoints, clients,
)  # fmt: skip
CATALOGUE: dict[str, type[Fault]] = {fault.name: fault for module in _ALL for fault in module.FAULTS}


def chosen(names: list[str]) -> list[type[Fault]]:
    """The faults of these names, or of names that begin so. Raises KeyError with a name that fits none."""
    faults: dict[str, type[Fault]] = {}
    for name in names:
        fitting = {key: fault for key, fault in CATALOGUE.items() if key == name or key.startswith(name)}
        if not fitting:
            raise KeyError(name)
        faults |= {name: CATALOGUE[name]} if name in CATALOGUE else fitting
    return list(faults.values())
