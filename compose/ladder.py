"""Decides where each server comes from: the environment, an installed program, Debian's packages, or a wheel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from compose import packages
from compose.instance import REPOSITORY, Instance, StackError
from compose.packages import Found
from compose.private_postgresql import add_postgresql
from compose.private_rabbitmq import add_rabbitmq
from compose.private_valkey import add_valkey
from compose.servers import Servers

RUNGS = ("auto", "installed", "apt", "wheels")


@dataclass(frozen=True)
class Choice:
    postgresql: Found | None
    rabbitmq: Found | None
    valkey: Found | None


def choose(environment: Mapping[str, str], say: Callable[[str], None]) -> Choice:
    """Decide where each server comes from, installing what is missing; None: its address is given, or not needed."""
    rung = environment.get("BANKCORE_SERVERS", "auto")
    if rung not in RUNGS:
        raise StackError(f"BANKCORE_SERVERS is one of {', '.join(RUNGS)}; not {rung!r}.")
    for name in ("DATABASE_URL", "BROKER_URL", "REDIS_URL"):
        if environment.get(name):
            say(f"{name}: used as it is, from the environment")
    need_postgresql = not environment.get("DATABASE_URL")
    need_broker = not environment.get("BROKER_URL")
    need_valkey = not environment.get("REDIS_URL")

    may_use_installed = rung != "wheels"
    if may_use_installed and rung != "installed":
        _install_missing(need_postgresql, need_broker, need_valkey, say)
    rabbitmq = packages.installed_rabbitmq() if need_broker and may_use_installed else None
    need_valkey = need_valkey or (need_broker and rabbitmq is None)
    postgresql = packages.installed_postgresql() if need_postgresql and may_use_installed else None
    valkey = packages.installed_valkey() if need_valkey and may_use_installed else None
    if rung in ("installed", "apt") and ((need_postgresql and not postgresql) or (need_valkey and not valkey)):
        raise StackError(f"BANKCORE_SERVERS={rung}, but PostgreSQL >= 15 or a Redis/Valkey server is missing.")
    if (need_postgresql and not postgresql) or (need_valkey and not valkey):
        why = (
            "as BANKCORE_SERVERS asks" if rung == "wheels" else "the machine has none to use, and none can be installed"
        )
        say(f"servers from pinned wheels in .venv ({why})")
    if need_postgresql and not postgresql:
        postgresql = packages.wheel_postgresql()
    if need_valkey and not valkey:
        valkey = packages.wheel_valkey()

    for found in (postgresql, rabbitmq, valkey):
        if found:
            say(f"{found.name}: private instance of {_shown(found.program)} ({found.origin})")
    if need_broker and rabbitmq is None and valkey is not None:
        say(
            f"broker: {valkey.name} stands in for RabbitMQ, which this machine does not have. The AMQP guarantees"
            " (quorum queues, publisher confirms, dead-letter exchange, single active consumer) are OFF in this mode."
        )
    return Choice(postgresql, rabbitmq, valkey)


def _install_missing(postgresql: bool, broker: bool, valkey: bool, say: Callable[[str], None]) -> None:
    missing = [
        *(["postgresql"] if postgresql and not packages.installed_postgresql() else []),
        *(["rabbitmq-server"] if broker and not packages.installed_rabbitmq() else []),
        *(["redis-server"] if valkey and not packages.installed_valkey() else []),
    ]
    if missing and packages.can_install():
        say(f"installing {', '.join(missing)} with apt-get (you are root on Debian or Ubuntu; no service is started)")
        if not packages.install_debian(missing):
            say("apt-get could not install them: going on with what there is")


def _shown(program: Path) -> str:
    return str(program.relative_to(REPOSITORY)) if program.is_relative_to(REPOSITORY) else str(program)


def prepare(
    instance: Instance,
    choice: Choice,
    environment: Mapping[str, str],
    ports: Iterator[int],
    known: Mapping[str, str],
) -> Servers:
    """Set up the chosen servers; the addresses in the environment go before them."""
    given = environment.get("BROKER_URL", "")
    servers = Servers(
        database_url=environment.get("DATABASE_URL", ""),
        broker_url=given,
        redis_url=environment.get("REDIS_URL", ""),
        broker="valkey" if given.startswith(("redis", "valkey")) else "rabbitmq",
    )
    if choice.rabbitmq:
        add_rabbitmq(servers, instance, choice.rabbitmq, ports, known)
    if choice.postgresql:
        add_postgresql(servers, instance, choice.postgresql, ports, known)
    if choice.valkey:
        add_valkey(servers, instance, choice.valkey, ports, known, is_broker=not servers.broker_url)
    return servers
