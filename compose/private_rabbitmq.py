"""A RabbitMQ of the instance's own: one node with its own port mapper and cookie, on 127.0.0.1 only, without guest."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import amqp

from compose import packages
from compose.homes import Home, make_home
from compose.instance import REPOSITORY, Instance
from compose.packages import Found
from compose.servers import START_SECONDS_MAX, Servers
from compose.supervision import SERVERS, Program, Supervisor

RIGHTS = ("configure", "write", "read")
EVERYTHING, NOTHING = dict.fromkeys(RIGHTS, ".*"), dict.fromkeys(RIGHTS, "^$")


def add_rabbitmq(
    servers: Servers, instance: Instance, found: Found, ports: Iterator[int], known: Mapping[str, str]
) -> None:
    """Set up RabbitMQ: its own node, port mapper and cookie, vhost `bank`, a user for each role and no guest."""
    home = make_home(instance, "rabbitmq", ("rabbitmq",), spaces=False)
    port, management, metrics, distribution, mapper = (next(ports) for _ in range(5))
    definitions = home.write("definitions.json", json.dumps(definitions_of(known)))
    home.write("enabled_plugins", (REPOSITORY / "compose" / "rabbitmq" / "enabled_plugins").read_text())
    home.write("rabbitmq-env.conf", "")
    home.write(
        "rabbitmq.conf",
        (REPOSITORY / "compose" / "rabbitmq" / "rabbitmq.conf").read_text()
        + f"listeners.tcp.1 = 127.0.0.1:{port}\n"
        + f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management}\n"
        + f"prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {metrics}\n"
        + f"load_definitions = {definitions}\n",
    )
    # Erlang insists that nobody but its owner can read the cookie, and writes to none that is there.
    cookie = home.folder / ".erlang.cookie"
    if not cookie.exists():
        home.write(".erlang.cookie", known["broker_cookie"])
        cookie.chmod(0o400)
    environment = home.environment | environment_of_node(home, mapper=mapper, distribution=distribution)
    servers.programs += [
        Program(
            name="epmd",
            arguments=[str(packages.epmd(found.program)), "-port", str(mapper), "-address", "127.0.0.1"],
            directory=str(home.folder),
            group=SERVERS,
            environment=environment,
            user=home.user,
        ),
        Program(
            name="rabbitmq",
            arguments=[str(found.program)],
            directory=str(home.folder),
            group=SERVERS,
            environment=environment,
            user=home.user,
            # Its stores are flushed and closed at once; the seven seconds that follow are waiting only.
            stop_signal="KILL" if instance.throwaway else "TERM",
            stop_seconds=2,
        ),
    ]

    def ready(supervisor: Supervisor) -> None:
        supervisor.wait_for(
            found.name,
            lambda: broker_answers(port, known["broker"]),
            program="rabbitmq",
            seconds=START_SECONDS_MAX,
        )

    servers.broker = "rabbitmq"
    servers.first = ("epmd", mapper)
    servers.broker_url = f"amqp://bankcore:{known['broker']}@127.0.0.1:{port}/bank"
    servers.broker_urls = {
        role: f"amqp://{role}:{known[f'broker_{role}']}@127.0.0.1:{port}/bank" for role in rights_of_roles()
    }
    servers.broker_api_url = f"http://operator:{known['broker_operator']}@127.0.0.1:{management}/api/"
    servers.broker_monitor_api_url = f"http://monitor:{known['broker_monitor']}@127.0.0.1:{management}/api/"
    servers.readies.append(ready)


def environment_of_node(
    home: Home, *, mapper: int, distribution: int, node: str = "bank", erlang: str = ""
) -> dict[str, str]:
    """What a node's start script is told; `erlang` is more arguments for its virtual machine."""
    folder = home.folder
    return {
        "ERL_EPMD_PORT": str(mapper),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_CRASH_DUMP_BYTES": "0",
        # The start script then becomes the Erlang machine, instead of staying beside it.
        "RUNNING_UNDER_SYSTEMD": "true",
        "RABBITMQ_NODENAME": f"{node}@localhost",
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-kernel inet_dist_use_interface {{127,0,0,1}} {erlang}".strip(),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_PID_FILE": str(folder / "rabbitmq.pid"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "config"),
        "RABBITMQ_SCHEMA_DIR": str(folder / "schema"),
    }


def definitions_of(known: Mapping[str, str]) -> dict[str, Any]:
    """The broker's first state: one user that sets up, one for each role, one for people and tests, one that looks."""
    users: tuple[tuple[str, str, list[str], Mapping[str, str]], ...] = (
        ("bankcore", known["broker"], [], EVERYTHING),
        ("operator", known["broker_operator"], ["administrator"], EVERYTHING),
        *((role, known[f"broker_{role}"], [], rights) for role, rights in rights_of_roles().items()),
        # It sees numbers by its tag. With a right to read it could take messages away, or purge them.
        ("monitor", known["broker_monitor"], ["monitoring"], NOTHING),
    )
    return {
        "users": [
            {
                "name": name,
                "password_hash": _password_hash(password),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": tags,
            }
            for name, password, tags, _ in users
        ],
        "vhosts": [{"name": "bank"}],
        "permissions": [
            {"user": name, "vhost": "bank", **{verb: rights[verb] for verb in RIGHTS}} for name, _, _, rights in users
        ],
        "topic_permissions": [one | {"vhost": "bank"} for one in _definitions_of_containers()["topic_permissions"]],
    }


def rights_of_roles() -> dict[str, dict[str, str]]:
    """What each role may do at the broker: the same as in containers."""
    permissions = _definitions_of_containers()["permissions"]
    return {one["user"]: one for one in permissions if one["user"] != "bankcore"}


def _definitions_of_containers() -> dict[str, Any]:
    definitions: dict[str, Any] = json.loads(
        (REPOSITORY / "compose" / "rabbitmq" / "docker" / "definitions.json").read_text()
    )
    return definitions


def _password_hash(password: str) -> str:
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def broker_answers(port: int, password: str) -> bool:
    """Whether the application's user can open a channel there."""
    address = f"127.0.0.1:{port}"
    try:
        with amqp.Connection(
            address, userid="bankcore", password=password, virtual_host="bank", connect_timeout=2
        ) as connection:
            connection.channel().close()
    except (OSError, amqp.exceptions.AMQPError):
        return False
    return True
