"""Our own processes in a stack: what each role is started with, and how it shows that it is ready."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from compose.instance import REPOSITORY, Instance, StackError, claim_preferred
from compose.servers import Servers, port_answers
from compose.supervision import ROLES, Program, Supervisor, role_of

# How many processes of each role. Those of a partitioned role share the partitions (--index I --of N).
ALL_ROLES: Mapping[str, int] = {
    "web": 1,
    "relay": 1,
    "risk": 2,
    "posting": 2,
    "notifications": 1,
    "maintenance": 1,
    "flower": 1,
}
PARTITIONED = ("risk", "posting")
SINGLE = ("flower",)
SERVES_HTTP = ("web", "flower")
WEB_PORT, FLOWER_PORT = 8000, 5555
WEB_WORKERS, WEB_CONNECTIONS = 2, 4096
FLOWER_USER = "staff"
# Far more than it takes: a machine that starts many things at once is slow, and what has ended is noticed at once.
READY_SECONDS_MAX = 240.0
# A batch in hand is finished first; what takes longer is redelivered, and has no effect twice.
STOP_SECONDS = 15


@dataclass(frozen=True)
class Roles:
    """The programs, and the addresses they serve."""

    programs: list[Program]
    urls: dict[str, str]
    metrics: list[str]
    metrics_ports: dict[str, int]

    @property
    def web_urls(self) -> list[str]:
        return [url for name, url in self.urls.items() if role_of(name) == "web"]

    @property
    def web_url(self) -> str | None:
        return next(iter(self.web_urls), None)

    @property
    def flower_url(self) -> str | None:
        return self.urls.get("flower")


def plan(
    instance: Instance,
    roles: Mapping[str, int],
    servers: Servers,
    ports: Iterator[int],
    known: Mapping[str, str],
    environment: Mapping[str, str],
) -> Roles:
    """Decide ports and command lines of every process; private runs leave 8000 and 5555 to `make up`."""
    unknown = set(roles) - set(ALL_ROLES)
    if unknown:
        raise StackError(f"No such role: {', '.join(sorted(unknown))}. There are {', '.join(ALL_ROLES)}.")
    programs: list[Program] = []
    metrics_ports: dict[str, int] = {}
    urls: dict[str, str] = {}
    for role, count in roles.items():
        own = {**environment, "BROKER_URL": servers.broker_urls.get(role, servers.broker_url)}
        for index in range(min(count, 1) if role in SINGLE else count):
            name = role if count == 1 or role in SINGLE else f"{role}-{index}"
            if role in SERVES_HTTP:
                preferred = WEB_PORT + index if role == "web" else FLOWER_PORT
                port = next(ports) if instance.throwaway else claim_preferred(instance, preferred)
                if not instance.throwaway and port != preferred:
                    print(f"[stack] port {preferred} is taken: {name} is on {port}", file=sys.stderr, flush=True)
                urls[name] = f"http://127.0.0.1:{port}"
                if role == "web":
                    programs.append(_web(instance, name, port, environment))
                else:
                    programs.append(_flower(instance, port, servers, known, own))
            else:
                metrics_ports[name] = next(ports)
                programs.append(_worker(role, name, index, count, metrics_ports[name], own))
    metrics = [f"{url}/metrics" for name, url in urls.items() if role_of(name) == "web"]
    metrics += [f"http://127.0.0.1:{port}/metrics" for port in metrics_ports.values()]
    return Roles(programs, urls, metrics, metrics_ports)


def _web(instance: Instance, name: str, port: int, environment: Mapping[str, str]) -> Program:
    metrics = str(instance.folder / f"metrics-{name}")
    return Program(
        name=name,
        arguments=[
            sys.executable, "-m", "granian", "bankcore.front:application", "--interface", "rsgi",
            # By itself granian takes any other event loop that is installed; not all can what the front needs.
            "--loop", "asyncio",
            "--host", "127.0.0.1", "--port", str(port), "--workers", str(WEB_WORKERS),
            # A request that is still arriving costs a socket and no thread, so there may be many of them.
            "--backlog", str(WEB_CONNECTIONS), "--backpressure", str(WEB_CONNECTIONS),
            "--no-ws", "--respawn-failed-workers", "--workers-kill-timeout", "2",
        ],
        directory=str(REPOSITORY),
        environment={**environment, "PROMETHEUS_MULTIPROC_DIR": metrics, "APPLICATION_NAME": name},
        inherits=True,
        stop_seconds=STOP_SECONDS,
        empties=[metrics],
    )  # fmt: skip


def _worker(role: str, name: str, index: int, count: int, port: int, environment: Mapping[str, str]) -> Program:
    command = ["relay"] if role == "relay" else ["worker", role]
    share = ["--index", str(index), "--of", str(count)] if role in PARTITIONED else []
    return Program(
        name=name,
        arguments=[sys.executable, "manage.py", *command, *share],
        directory=str(REPOSITORY),
        environment={**environment, "METRICS_PORT": str(port), "APPLICATION_NAME": name},
        inherits=True,
        stop_seconds=STOP_SECONDS,
    )


def _flower(
    instance: Instance, port: int, servers: Servers, known: Mapping[str, str], environment: Mapping[str, str]
) -> Program:
    secrets = {"FLOWER_BASIC_AUTH": f"{FLOWER_USER}:{known['flower']}"}
    if servers.broker_monitor_api_url:
        secrets["FLOWER_BROKER_API"] = servers.broker_monitor_api_url
    return Program(
        name="flower",
        arguments=[
            sys.executable, "-m", "celery", "-A", "bankcore", "flower", "--address=127.0.0.1", f"--port={port}",
            # Events cost every worker a confirmed publish per task; looking is all that staff may do.
            "--enable_events=False", "--read_only=True",
            f"--conf={REPOSITORY / 'compose' / 'flower' / 'local.py'}",
        ],
        directory=str(REPOSITORY),
        environment={**environment, **secrets, "APPLICATION_NAME": "flower"},
        inherits=True,
        stop_seconds=5,
    )  # fmt: skip


def start(roles: Roles, supervisor: Supervisor) -> None:
    """Start all roles together and return when each of them serves."""
    if not roles.programs:
        return
    supervisor.start(f"{ROLES}:*")
    for name, url in roles.urls.items():
        path = f"{url}/healthcheck" if name == "flower" else f"{url}/readyz"
        supervisor.wait_for(name, partial(_is_ok, path), program=name, seconds=READY_SECONDS_MAX)
    for name, port in roles.metrics_ports.items():
        supervisor.wait_for(name, partial(port_answers, port), program=name, seconds=READY_SECONDS_MAX)


def _is_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 the address is our own
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def parse_roles(text: str) -> dict[str, int]:
    """`risk=1,posting=4,...` on top of the usual numbers."""
    roles = dict(ALL_ROLES)
    for part in filter(None, text.split(",")):
        role, _, count = part.partition("=")
        if role not in roles or not count.isdigit():
            raise StackError(f"--roles is like risk=1,posting=4 with the roles {', '.join(roles)}; not {part!r}.")
        roles[role] = int(count)
    return roles


def role_log(instance: Instance, name: str) -> list[Path]:
    """The log files of a role or server: `risk` means risk-0 and risk-1."""
    return sorted(
        path for path in instance.logs.glob("*.log") if path.stem == name or path.stem.rpartition("-")[0] == name
    )
