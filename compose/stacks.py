"""A stack from nothing to ready, and back to nothing."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from compose import ladder, supervision
from compose import roles as our_roles
from compose import servers as our_servers
from compose.briefing import describe, environment_of, take_first_steps, write_env_file
from compose.homes import remove_homes
from compose.instance import Instance, claim_ports, claim_run, load_secrets, remove_tree, write_json
from compose.roles import ALL_ROLES
from compose.servers import Servers
from compose.supervision import Supervisor

SERVERS_ONLY: Mapping[str, int] = {}
# Sets up the servers of a claimed instance: (instance, environment, ports, secrets) -> Servers.
Prepare = Callable[[Instance, Mapping[str, str], Iterator[int], Mapping[str, str]], Servers]


def usual_servers(
    instance: Instance, given: Mapping[str, str], ports: Iterator[int], known: Mapping[str, str]
) -> Servers:
    """One PostgreSQL, one RabbitMQ and one Redis or Valkey, each unless the environment has its address."""
    return ladder.prepare(instance, ladder.choose(given, say), given, ports, known)


def say(line: str) -> None:
    print(f"[stack] {line}", file=sys.stderr, flush=True)


@contextmanager
def stack(
    *,
    name: str,
    roles: Mapping[str, int] = ALL_ROLES,
    environment: Mapping[str, str] | None = None,
    prepare: Prepare = usual_servers,
) -> Iterator[dict[str, Any]]:
    """Bring up a private stack, yield what stack.json holds, and stop it all when the block ends.

    `environment` is added to what every role sees (for instance {"PARTITIONS": "8"}); `prepare` sets up the servers.

    Keys of the yielded dict: "api" (http://127.0.0.1:PORT, without /api/v1), "apis" (one for each web process),
    "admin", "flower", "metrics" (list of URLs), "database_url", "broker_url", "redis_url", "broker" ("rabbitmq" |
    "valkey"), "broker_api_url" (RabbitMQ's management API with credentials in it, or None), "database" (for instance
    "PostgreSQL 15.16"), "pids" ({role: [pid, ..]}, as at the start; read stack["file"] again to follow restarts),
    "server_pids", "logs" (folder), "mail" (folder of the e-mails sent), "file" (path of stack.json), "credentials"
    (path of credentials.json) and "environment" (every variable that a manage.py or pytest of yours needs,
    BANKCORE_STACK included).
    """
    instance = claim_run(name)
    try:
        supervision.end_leftovers(instance)
        _forget_run(instance)
        with bring_up(instance, roles, environment or {}, parent=os.getpid(), prepare=prepare) as (
            supervisor,
            description,
        ):
            try:
                yield description
            finally:
                with _unhurried():
                    supervisor.shut_down()
    finally:
        forget(instance)
        remove_homes(instance)
        instance.close()


@contextmanager
def bring_up(
    instance: Instance,
    roles: Mapping[str, int],
    environment: Mapping[str, str],
    *,
    parent: int | None,
    prepare: Prepare = usual_servers,
) -> Iterator[tuple[Supervisor, dict[str, Any]]]:
    """Bring a claimed instance up; whatever goes wrong before the block is entered, nothing stays running."""
    given = {**os.environ, **environment}
    known = load_secrets(instance)
    ports = claim_ports(instance)
    supervisor_port = next(ports)
    servers = prepare(instance, given, ports, known)
    variables = environment_of(instance, servers, known, environment)
    planned = our_roles.plan(instance, roles, servers, ports, known, variables)
    supervisor = supervision.start_supervisor(
        instance,
        [*servers.programs, *planned.programs],
        port=supervisor_port,
        password=known["supervisor"],
        parent=parent,
    )
    try:
        our_servers.start(servers, supervisor)
        write_env_file(instance, variables)
        if roles:
            take_first_steps(instance, servers, known, variables)
            our_roles.start(planned, supervisor)
        write_json(instance.folder / "description.json", describe(instance, servers, planned, variables))
        description = supervision.publish(instance, supervisor)
    except BaseException:
        with _unhurried():
            supervisor.shut_down()
        raise
    yield supervisor, description


def forget(instance: Instance) -> None:
    """Remove the files that say a stack is running."""
    for name in ("stack.json", "description.json", "control.json", "programs.json", "supervisord.conf", "env"):
        (instance.folder / name).unlink(missing_ok=True)


def _forget_run(instance: Instance) -> None:
    """Start a private run afresh: nothing of an earlier one, its data and passwords included, except the folder."""
    forget(instance)
    remove_homes(instance)
    for name in ("secrets.json", "credentials.json"):
        (instance.folder / name).unlink(missing_ok=True)
    for folder in (instance.folder / "mail", *instance.folder.glob("metrics-*")):
        remove_tree(folder)
    for log in instance.logs.glob("*"):
        log.unlink()


@contextmanager
def _unhurried() -> Iterator[None]:
    """A second Ctrl-C must not leave half a stack behind."""
    before = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM)}
    try:
        for sign in before:
            signal.signal(sign, signal.SIG_IGN)
    except ValueError:
        # Not in the main thread: signals do not come here anyway.
        before = {}
    try:
        yield
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
