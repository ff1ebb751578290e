"""Faults of the programs' connections to the broker: all closed at once, or refused as well."""

from __future__ import annotations

import random
import urllib.parse
from typing import ClassVar

import amqp
import httpx

from compose.gameday.cluster import VHOST
from compose.gameday.faults.fault import Fault
from compose.gameday.rig import Rig


class CloseConnections(Fault):
    """The broker closes every connection (320, CONNECTION_FORCED), confirms outstanding or not."""

    name = "close-broker-connections"
    numbers: ClassVar[tuple[str, ...]] = ("F16", "F39")
    fault_class = "connections closed by the broker"
    touches = frozenset({"broker", "broker-links"})
    rides_out = True
    goal_seconds = 10.0

    def inject(self, rig: Rig, rng: random.Random) -> None:
        names = self.needs(
            "connections are known",
            lambda: [c["name"] for c in rig.cluster.api("GET", "connections").json() if c.get("user") == "bankcore"],
        )
        closed = [name for name in names if _close(rig, name)]
        self.needs("connections were closed", lambda: closed, seconds=0)
        self.proved(f"{len(closed)} connections of the application closed by the broker")


class RevokeUser(CloseConnections):
    """The application's user loses its rights at the broker, and its connections: nobody gets in meanwhile."""

    name = "revoke-broker-user"
    numbers = ("F39",)
    fault_class = "broker user revoked"
    rides_out = False
    hold_seconds = (4.0, 8.0)
    goal_seconds = 10.0

    def inject(self, rig: Rig, rng: random.Random) -> None:
        user, _ = rig.broker_account
        rig.cluster.set_permissions(user, None)
        super().inject(rig, rng)
        refused = self.needs("the user is refused", lambda: _is_refused(rig))
        self.proved(refused)

    def heal(self, rig: Rig) -> None:
        rig.cluster.set_permissions(rig.broker_account[0], ".*")


def _is_refused(rig: Rig) -> str:
    user, password = rig.broker_account
    node = next(iter(rig.cluster.nodes.values()))
    address = f"127.0.0.1:{node.port}"
    try:
        with amqp.Connection(address, userid=user, password=password, virtual_host=VHOST, connect_timeout=5):
            return ""
    except amqp.exceptions.AMQPError as error:
        return f"the broker says: {error}"


def _close(rig: Rig, name: str) -> bool:
    try:
        rig.cluster.api("DELETE", f"connections/{urllib.parse.quote(name, safe='')}")
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.NOT_FOUND:
            raise
        # It has ended by itself since the list was made.
        return False
    return True


FAULTS: list[type[Fault]] = [CloseConnections, RevokeUser]
