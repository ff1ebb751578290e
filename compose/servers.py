"""What a stack runs on: the addresses of its servers, the programs behind them, and how to start those."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from compose.supervision import SERVERS, Program, Supervisor

START_SECONDS_MAX = 60.0


@dataclass
class Servers:
    """What a stack runs on: addresses, the programs to supervise for them, and how to tell that they are ready."""

    database_url: str = ""
    broker_url: str = ""
    redis_url: str = ""
    database: str = "external"
    broker: str = "rabbitmq"
    broker_api_url: str | None = None
    broker_monitor_api_url: str | None = None
    # The broker's address for those roles that have a user of their own.
    broker_urls: dict[str, str] = field(default_factory=dict)
    programs: list[Program] = field(default_factory=list)
    # What has to answer before the others start: a node that finds no port mapper would start one of its own.
    first: tuple[str, int] | None = None
    readies: list[Callable[[Supervisor], None]] = field(default_factory=list)


def start(servers: Servers, supervisor: Supervisor) -> None:
    """Start all private servers together and return when each really answers."""
    if servers.first is not None:
        name, port = servers.first
        supervisor.start(f"{SERVERS}:{name}")
        supervisor.wait_for(name, lambda: port_answers(port), program=name, seconds=START_SECONDS_MAX)
    if servers.programs:
        supervisor.start(f"{SERVERS}:*")
    for ready in servers.readies:
        ready(supervisor)


def port_answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
