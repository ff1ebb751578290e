"""Three RabbitMQ nodes on this machine that form one cluster, each link between them through the proxy."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from compose.gameday.plan import ProxyPlan
from compose.homes import make_home
from compose.instance import REPOSITORY, Instance, StackError
from compose.packages import Found
from compose.private_rabbitmq import definitions_of, environment_of_node
from compose.servers import Servers
from compose.supervision import SERVERS, Program, Supervisor

NODES = ("rabbit1", "rabbit2", "rabbit3")
FORM_SECONDS_MAX = 150.0
CALL_SECONDS_MAX = 20.0
# A node that has not been heard of for so long is taken for gone. The default is a minute; a cluster in one rack
# may well set less, and a game day has no minute to spare for each partition.
NET_TICK_SECONDS = 5
# One scheduler and no busy waiting: three nodes share a machine with everything else.
# A dead letter that its queue refused is sent again after this; three minutes by default.
DEAD_LETTER_CONFIRM_MS = 10_000
ERLANG = (
    f"-kernel net_ticktime {NET_TICK_SECONDS} -rabbit dead_letter_worker_publisher_confirm_timeout "
    f"{DEAD_LETTER_CONFIRM_MS} +S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none +A 8"
)
VHOST = "bank"


@dataclass(frozen=True)
class Node:
    """One broker node: its program is named like it; the ports are direct, past the proxy."""

    name: str
    port: int
    management: int
    distribution: int
    mapper: int

    @property
    def erlang_name(self) -> str:
        return f"{self.name}@localhost"


def add_cluster(
    servers: Servers,
    instance: Instance,
    found: Found,
    ports: Iterator[int],
    known: Mapping[str, str],
    proxies: ProxyPlan,
) -> Cluster:
    """Set up the nodes and their links; the programs go through the proxy, in an order of failover."""
    nodes = [Node(name, *(next(ports) for _ in range(4))) for name in NODES]
    for node in nodes:
        proxies.add_link(node.name, next(ports), node.port)
        routes = {}
        for peer in nodes:
            if peer is not node:
                routes[peer.name] = next(ports)
                proxies.add_link(distribution_link(node.name, peer.name), routes[peer.name], peer.distribution)
        proxies.mappers.append({"node": node.name, "listen": node.mapper, "routes": routes})
    for node in nodes:
        servers.programs.append(_program(instance, found, node, known))
    cluster = Cluster(nodes, operator=known["broker_operator"], cookie=known["broker_cookie"], program=found.program)
    account = f"bankcore:{known['broker']}"
    servers.broker = "rabbitmq"
    servers.broker_url = ";".join(f"amqp://{account}@127.0.0.1:{proxies.listen[node.name]}/{VHOST}" for node in nodes)
    servers.broker_api_url = f"http://operator:{known['broker_operator']}@127.0.0.1:{nodes[0].management}/api/"

    def ready(supervisor: Supervisor) -> None:
        supervisor.wait_for(
            f"the cluster of {found.name}", cluster.opens, program=nodes[0].name, seconds=FORM_SECONDS_MAX
        )

    servers.readies.append(ready)
    return cluster


def distribution_link(dials: str, answers: str) -> str:
    """The name of the link that one broker node reaches another by."""
    return f"{dials}-{answers}"


def _program(instance: Instance, found: Found, node: Node, known: Mapping[str, str]) -> Program:
    home = make_home(instance, node.name, ("rabbitmq",), spaces=False)
    definitions = home.write("definitions.json", json.dumps(definitions_of(known)))
    home.write("enabled_plugins", "[rabbitmq_management].\n")
    home.write("rabbitmq-env.conf", "")
    peers = "".join(
        f"cluster_formation.classic_config.nodes.{number} = {name}@localhost\n" for number, name in enumerate(NODES, 1)
    )
    home.write(
        "rabbitmq.conf",
        (REPOSITORY / "compose" / "rabbitmq" / "rabbitmq.conf").read_text()
        + f"listeners.tcp.1 = 127.0.0.1:{node.port}\n"
        + f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {node.management}\n"
        + f"load_definitions = {definitions}\n"
        + "cluster_formation.peer_discovery_backend = classic_config\n"
        + peers
        + "cluster_formation.randomized_startup_delay_range.min = 0\n"
        + "cluster_formation.randomized_startup_delay_range.max = 2\n"
        # A node that cannot see the majority stops serving, so that nobody works with a view of its own.
        + "cluster_partition_handling = pause_minority\n"
        + "queue_leader_locator = balanced\n"
        + "collect_statistics_interval = 2000\n",
    )
    cookie = home.folder / ".erlang.cookie"
    if not cookie.exists():
        home.write(".erlang.cookie", known["broker_cookie"])
        cookie.chmod(0o400)
    return Program(
        name=node.name,
        arguments=[str(found.program)],
        directory=str(home.folder),
        group=SERVERS,
        environment=home.environment
        | environment_of_node(home, mapper=node.mapper, distribution=node.distribution, node=node.name, erlang=ERLANG),
        user=home.user,
        stop_signal="KILL",
        stop_seconds=2,
    )


class Cluster:
    """The cluster as an operator sees it, past the proxy: management API and Erlang calls."""

    def __init__(self, nodes: list[Node], *, operator: str, cookie: str, program: Path) -> None:
        self.nodes = {node.name: node for node in nodes}
        self._operator = operator
        self._cookie = cookie
        self._program = program

    # -- what is ---------------------------------------------------------------------------------------------------

    def is_whole(self) -> bool:
        """Whether all nodes run and see each other."""
        return all(self.running(through=name) == set(NODES) for name in NODES)

    def is_open(self) -> bool:
        """Whether all nodes let clients in: when the cluster has just formed, one may still refuse the vhost."""
        try:
            state = self.api("GET", f"vhosts/{VHOST}").json()["cluster_state"]
        except (httpx.HTTPError, ValueError, KeyError):
            return False
        return self.is_whole() and len(state) == len(NODES) and set(state.values()) == {"running"}

    def opens(self) -> bool:
        """Whether it is open; if a node has not started the vhost, ask it to, as an operator does.

        A node that joins while another one makes the vhost can miss it for good: it is not told of it any more, and
        has read already which ones there are.
        """
        if self.is_open():
            return True
        try:
            state = self.api("GET", f"vhosts/{VHOST}").json()["cluster_state"]
            for node in [node.erlang_name for node in self.nodes.values()] if self.is_whole() else []:
                if state.get(node) != "running":
                    self.api("POST", f"vhosts/{VHOST}/start/{node}")
        except (httpx.HTTPError, ValueError, KeyError):
            return False
        return False

    def running(self, *, through: str | None = None) -> set[str]:
        """The nodes that run, as one node says (or the first that answers); empty if none does."""
        for node in [through] if through else NODES:
            try:
                seen = self.api("GET", "nodes", through=node).json()
                return {one["name"].partition("@")[0] for one in seen if one["running"]}
            except (httpx.HTTPError, ValueError, KeyError):
                continue
        return set()

    def apart(self) -> list[str]:
        """The fewest nodes to restart so that the others agree, by what each sees at this moment.

        A node belongs to those that go on if it answers and if it and they see each other: the largest such group
        stays, the rest is named. If no two agree, all are named: each may be waiting for another.
        """
        views = {name: self.running(through=name) for name in NODES}
        for size in range(len(NODES), 1, -1):
            for group in itertools.combinations(NODES, size):
                if all(set(group) <= views[name] for name in group):
                    return [name for name in NODES if name not in group]
        return list(NODES)

    def queues(self, *, through: str | None = None) -> list[dict[str, Any]]:
        """Every queue of the application, with `leader`, `members` and `online` where they are known."""
        answer: list[dict[str, Any]] = self.api("GET", f"queues/{VHOST}", through=through).json()
        return answer

    def leaders(self) -> dict[str, str]:
        """Which node leads which queue."""
        return {queue["name"]: str(queue.get("leader", "")).partition("@")[0] for queue in self.queues()}

    def replicas_are_whole(self) -> bool:
        """Whether every quorum queue has all of its members online.

        A queue that was declared while a node was away has the others as members, until an operator adds the third.
        """
        try:
            queues = [queue for queue in self.queues() if queue.get("type") == "quorum"]
            return bool(queues) and all(sorted(queue.get("online", ())) == sorted(queue["members"]) for queue in queues)
        except (httpx.HTTPError, ValueError):
            return False

    def await_true(self, what: str, is_true: Callable[[], bool], seconds: float) -> None:
        """Raises: StackError when it has not come true in time."""
        deadline = time.monotonic() + seconds
        while not is_true():
            if time.monotonic() > deadline:
                raise StackError(f"{what}: not within {seconds:.0f} s. Nodes running: {sorted(self.running())}.")
            time.sleep(0.2)

    # -- what can be done ------------------------------------------------------------------------------------------

    def api(
        self, method: str, path: str, *, through: str | None = None, body: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        """Ask the management API of a node (or of the first that answers). Raises httpx.HTTPError."""
        failure: httpx.HTTPError | None = None
        for name in [through] if through else NODES:
            url = f"http://127.0.0.1:{self.nodes[name].management}/api/{path}"
            try:
                answer = httpx.request(method, url, json=body, auth=("operator", self._operator), timeout=5)
                answer.raise_for_status()
                return answer
            except httpx.HTTPError as error:
                failure = error
        raise failure or httpx.ConnectError("no node to ask")

    def purge(self, queue: str) -> None:
        self.api("DELETE", f"queues/{VHOST}/{queue}/contents")

    def delete_queue(self, queue: str) -> None:
        self.api("DELETE", f"queues/{VHOST}/{queue}")

    def set_policy(self, name: str, pattern: str, definition: Mapping[str, Any]) -> None:
        self.api(
            "PUT",
            f"policies/{VHOST}/{urllib.parse.quote(name)}",
            body={"pattern": pattern, "definition": dict(definition), "apply-to": "queues", "priority": 10},
        )

    def delete_policy(self, name: str) -> None:
        self.api("DELETE", f"policies/{VHOST}/{urllib.parse.quote(name)}")

    def set_permissions(self, user: str, pattern: str | None) -> None:
        """What a user may configure, write and read; None: not even connect."""
        path = f"permissions/{VHOST}/{urllib.parse.quote(user)}"
        if pattern is None:
            self.api("DELETE", path)
        else:
            self.api("PUT", path, body={"configure": pattern, "write": pattern, "read": pattern})

    def call(self, node: str, expression: str) -> str:
        """Have a node evaluate an Erlang expression (ending in a full stop). Raises StackError."""
        # By its address, past the port mapper, as nobody on the command line has to know the cookie either.
        port = self.nodes[node].distribution
        answer = subprocess.run(
            ["erl_call", "-address", f"127.0.0.1:{port}", "-c", self._cookie, "-R", "-e"],
            input=f"{expression}\n",
            capture_output=True,
            text=True,
            timeout=CALL_SECONDS_MAX,
            check=False,
        )
        if answer.returncode:
            raise StackError(f"{node} did not evaluate {expression}: {answer.stderr.strip() or answer.stdout.strip()}")
        return answer.stdout.strip()
