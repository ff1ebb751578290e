"""The private stack of a game day: a three-node broker, PostgreSQL, Redis, every role twice, all through the proxy."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import xmlrpc.client
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from compose import ladder
from compose.gameday.cluster import Cluster, add_cluster
from compose.gameday.plan import ProxyPlan
from compose.gameday.proxy import ProxyControl
from compose.instance import Instance, StackError, read_json, started_at
from compose.private_postgresql import add_postgresql
from compose.private_valkey import add_valkey
from compose.servers import Servers
from compose.stacks import say, stack
from compose.supervision import ROLES, SERVERS, Supervisor, role_of

if TYPE_CHECKING:
    from compose.gameday.clients import Load
    from compose.gameday.receiver import Receiver

# Flower has no part in moving money.
GAME_ROLES: Mapping[str, int] = {
    "web": 2,
    "relay": 2,
    "risk": 2,
    "posting": 2,
    "notifications": 2,
    "maintenance": 2,
}
POSTGRESQL, REDIS = "postgresql", "redis"
_HELLO = {
    POSTGRESQL: bytes.fromhex("0000000804d2162f"),  # May we speak TLS?
    REDIS: b"PING\r\n",
    "rabbit": b"AMQP\0\0\x09\x01",
}


@dataclass
class Rig:
    """A running stack, as those see it who break it and who judge it: addresses here go past the proxy."""

    stack: Mapping[str, Any]
    supervisor: Supervisor
    cluster: Cluster
    proxy: ProxyControl
    database_url: str
    redis_url: str
    superuser_url: str
    # The clients, once they are there, and the partition that their probes go through.
    load: Load | None = None
    # A customer's own program, which is told by webhook.
    receiver: Receiver | None = None
    # Where points are armed at which a process dies (failpoints.py).
    failpoints: Path | None = None
    focus_partition: int = 0
    _asking: threading.Lock = field(default_factory=threading.Lock)

    @property
    def api_urls(self) -> list[str]:
        urls: list[str] = self.stack["apis"]
        return urls

    @property
    def environment(self) -> Mapping[str, str]:
        """What the roles see: their addresses lead through the proxy."""
        environment: Mapping[str, str] = self.stack["environment"]
        return environment

    @property
    def mail(self) -> Path:
        return Path(self.stack["mail"])

    @property
    def logs(self) -> Path:
        return Path(self.stack["logs"])

    @property
    def broker_account(self) -> tuple[str, str]:
        """The application's own user at the broker, and its password."""
        first = urlsplit(self.environment["BROKER_URL"].partition(";")[0])
        return first.username or "", first.password or ""

    def home(self, server: str) -> Path:
        """The folder that a server keeps its data in."""
        return Path(self.stack["file"]).parent / "servers" / server

    def knock(self, *links: str) -> None:
        """Use links once, as any client's first bytes would, so that weather on them strikes somebody."""
        listens = {link["name"]: link["listen"] for link in read_json(self._proxy_file)["links"]}
        for link in links:
            hello = next((words for begin, words in _HELLO.items() if link.startswith(begin)), b"\0")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", listens[link]), 1) as knocking:
                knocking.settimeout(0.3)
                knocking.sendall(hello)
                knocking.recv(64)

    @property
    def _proxy_file(self) -> Path:
        return Path(self.stack["file"]).parent / "proxy.json"

    # -- processes -------------------------------------------------------------------------------------------------

    def pids(self) -> dict[str, int]:
        """The pid of every program that runs at this moment, by its name (`risk-1`, `rabbit2`, `postgresql`)."""
        return {state["name"]: int(state["pid"]) for state in self._states() if state["pid"]}

    def _states(self) -> list[dict[str, Any]]:
        # One connection, and faults strike from several threads.
        with self._asking:
            return self.supervisor.states()

    def age_seconds(self, program: str) -> float:
        """How long a program has been running; 0 if it does not run."""
        return max((s["now"] - s["start"] for s in self._states() if s["name"] == program and s["pid"]), default=0.0)

    def programs(self, role: str) -> list[str]:
        """The programs of a role, running or not."""
        return sorted(s["name"] for s in self._states() if role_of(s["name"]) == role)

    def signal(self, program: str, sign: signal.Signals) -> int:
        """Signal a program's main process; returns its pid. Raises StackError if it does not run."""
        pid = self.pids().get(program)
        if not pid:
            raise StackError(f"{program} is not running.")
        os.kill(pid, sign)
        return pid

    def is_gone(self, pid: int) -> bool:
        """Whether a process has ended and supervision knows it: until then it takes the program for running, and does
        not start it."""
        return started_at(pid) is None and all(state["pid"] != pid for state in self._states())

    def stop(self, *programs: str) -> None:
        """Keep programs down until `start`; without this, supervision brings back whatever ends."""
        for program in programs:
            with self._asking, contextlib.suppress(xmlrpc.client.Fault):
                self.supervisor.rpc.stopProcess(self._full(program), False)

    def start(self, *programs: str) -> None:
        for program in programs:
            with self._asking:
                self.supervisor.start(self._full(program))

    def _full(self, program: str) -> str:
        is_server = program in (*self.cluster.nodes, POSTGRESQL, "valkey", "proxy")
        return f"{SERVERS if is_server else ROLES}:{program}"


@contextlib.contextmanager
def rig(*, seed: int, environment: Mapping[str, str] | None = None) -> Iterator[Rig]:
    """Bring the whole stack up, and stop it when the block ends. Raises StackError, for instance without RabbitMQ."""
    parts: dict[str, Any] = {}
    # The verdict reads every e-mail that was sent: they go to the run's own folder.
    os.environ.pop("EMAIL_URL", None)

    def prepare(
        instance: Instance, given: Mapping[str, str], ports: Iterator[int], known: Mapping[str, str]
    ) -> Servers:
        # Whatever servers the caller has: those of a game day are its own.
        private = {name: value for name, value in given.items() if not name.endswith("_URL")}
        choice = ladder.choose(private, say)
        if choice.rabbitmq is None or choice.postgresql is None or choice.valkey is None:
            raise StackError("A game day needs an installed RabbitMQ (3.10 or newer): Debian has rabbitmq-server.")
        proxies = ProxyPlan(control=next(ports), seed=seed)
        servers = Servers()
        add_postgresql(servers, instance, choice.postgresql, ports, known)
        add_valkey(servers, instance, choice.valkey, ports, known, is_broker=False)
        parts["cluster"] = add_cluster(servers, instance, choice.rabbitmq, ports, known, proxies)
        parts["database_url"], parts["redis_url"] = servers.database_url, servers.redis_url
        at = urlsplit(servers.database_url)
        parts["superuser_url"] = f"postgresql://postgres:{known['database_superuser']}@127.0.0.1:{at.port}/postgres"
        servers.database_url = _through(proxies, POSTGRESQL, next(ports), servers.database_url)
        servers.redis_url = _through(proxies, REDIS, next(ports), servers.redis_url)
        servers.programs.append(proxies.program(instance))
        servers.first = ("proxy", proxies.control)
        parts["instance"], parts["proxy"] = instance, ProxyControl(proxies.control)
        return servers

    with (
        stack(name="gameday", roles=GAME_ROLES, environment=environment, prepare=prepare) as description,
    ):
        yield Rig(
            stack=description,
            supervisor=Supervisor(parts["instance"]),
            cluster=parts["cluster"],
            proxy=parts["proxy"],
            database_url=parts["database_url"],
            redis_url=parts["redis_url"],
            superuser_url=parts["superuser_url"],
        )


def _through(proxies: ProxyPlan, name: str, listen: int, url: str) -> str:
    """The same address, but of a new link to it."""
    parts = urlsplit(url)
    proxies.add_link(name, listen, int(parts.port or 0))
    account, _, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{account}@127.0.0.1:{listen}"))
