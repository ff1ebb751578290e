"""Faults of PostgreSQL and Redis: crashed, frozen, exhausted, locked, flushed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import redis

from compose.gameday.faults.fault import WAY, Fault, wait_until
from compose.gameday.rig import POSTGRESQL, Rig

DATABASE = frozenset({"database"})
CACHE = frozenset({"redis"})
BACK_SECONDS_MAX = 60.0


def _database_started(rig: Rig) -> str:
    with psycopg.connect(rig.database_url, connect_timeout=2) as database:
        row = database.execute("SELECT pg_postmaster_start_time()::text").fetchone()
    return str(row[0]) if row else ""


class _OnDatabase(Fault):
    touches = DATABASE
    fault_class = "database crashed"
    goal_seconds = 5.0

    def heal(self, rig: Rig) -> None:
        wait_until("PostgreSQL is back", lambda: _database_started(rig), seconds=BACK_SECONDS_MAX)


class ImmediateStop(_OnDatabase):
    """`pg_ctl stop -m immediate`: no checkpoint, recovery from the log when supervision starts it again."""

    name = "stop-database"
    numbers = ("F19",)

    def inject(self, rig: Rig, rng: random.Random) -> None:
        pid = rig.signal(POSTGRESQL, signal.SIGQUIT)
        self.needs("PostgreSQL has ended", lambda: rig.is_gone(pid))
        self.proved(f"PostgreSQL (pid {pid}) stopped at once")


class KillDatabase(_OnDatabase):
    """SIGKILL to the postmaster itself; its orphans have to go before another may start."""

    name = "kill-database"
    numbers = ("F19",)

    def inject(self, rig: Rig, rng: random.Random) -> None:
        pid = rig.signal(POSTGRESQL, signal.SIGKILL)
        self.needs("PostgreSQL has ended", lambda: rig.is_gone(pid))
        self.proved(f"the postmaster (pid {pid}) killed")


class KillBackend(_OnDatabase):
    """SIGKILL to one session's process: PostgreSQL then ends all sessions and recovers."""

    name = "kill-database-backend"
    numbers = ("F19",)

    def inject(self, rig: Rig, rng: random.Random) -> None:
        with psycopg.connect(rig.database_url, autocommit=True) as database:
            rows = database.execute(
                "SELECT pid, application_name FROM pg_stat_activity"
                " WHERE usename = 'bankcore' AND pid <> pg_backend_pid() ORDER BY pid"
            ).fetchall()
            pid, application = rng.choice(rows)
            os.kill(pid, signal.SIGKILL)
            # The crash of one session ends them all, this one included.
            self.needs("our own session is ended as well", lambda: _is_ended(database))
        self.proved(f"session {pid} of {application} killed: PostgreSQL ended all {len(rows)} others and recovers")


def _is_ended(database: psycopg.Connection[Any]) -> bool:
    try:
        database.execute("SELECT 1")
    except psycopg.OperationalError:
        return True
    return False


class TerminateSessions(_OnDatabase):
    """Every session is ended by an administrator: each program has to connect again, in the middle of its work."""

    name = "terminate-sessions"
    numbers = ("F19", "F16")
    fault_class = "database sessions ended"
    rides_out = True

    def inject(self, rig: Rig, rng: random.Random) -> None:
        with psycopg.connect(rig.database_url, autocommit=True) as database:
            rows = database.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE usename = 'bankcore' AND pid <> pg_backend_pid()"
            ).fetchall()
        ended = sum(bool(row[0]) for row in rows)
        self.needs("sessions were ended", lambda: ended)
        self.proved(f"{ended} sessions ended by pg_terminate_backend")


class FreezeDatabase(_OnDatabase):
    """SIGSTOP to PostgreSQL and all its sessions: connections stay open, and no answer comes."""

    name = "freeze-database"
    numbers = ("F20",)
    fault_class = "database frozen"
    hold_seconds = (4.0, 10.0)

    def __init__(self) -> None:
        super().__init__()
        self.frozen: list[int] = []

    def inject(self, rig: Rig, rng: random.Random) -> None:
        pid = rig.pids()[POSTGRESQL]
        answer = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
        self.frozen = [pid, *(int(line) for line in answer.stdout.split())]
        for each in self.frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGSTOP)
        state = Path(f"/proc/{pid}/stat")
        self.needs("PostgreSQL stands still", lambda: state.read_text().rpartition(")")[2].split()[0] == "T")
        self.proved(f"PostgreSQL and {len(self.frozen) - 1} of its processes in state T")

    def heal(self, rig: Rig) -> None:
        for pid in reversed(self.frozen):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.frozen = []
        super().heal(rig)


class _Sessions(_OnDatabase):
    """Holds sessions of its own until it is healed."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions: list[psycopg.Connection[Any]] = []

    def heal(self, rig: Rig) -> None:
        for session in self.sessions:
            with contextlib.suppress(psycopg.Error):
                session.close()
        self.sessions = []
        super().heal(rig)


class ExhaustConnections(_Sessions):
    """All of max_connections are taken, and every session is ended: whoever comes back finds the door closed."""

    name = "exhaust-connections"
    numbers = ("F21",)
    fault_class = "database exhausted"
    hold_seconds = (3.0, 6.0)

    def inject(self, rig: Rig, rng: random.Random) -> None:
        with psycopg.connect(rig.database_url, autocommit=True) as database:
            database.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE usename = 'bankcore' AND pid <> pg_backend_pid()"
            )
        refusal = ""
        for _ in range(200):
            try:
                self.sessions.append(psycopg.connect(rig.database_url, connect_timeout=5))
            except psycopg.OperationalError as error:
                refusal = str(error).strip().rpartition("FATAL:")[2].strip()
                break
        self.needs("a connection was refused", lambda: "connection" in refusal)
        self.proved(f"{len(self.sessions)} sessions taken, then: {refusal}")


class LockHotAccount(_Sessions):
    """Somebody holds the rows of the busiest accounts locked in a transaction that does not end."""

    name = "lock-accounts"
    numbers = ("F21", "F23")
    fault_class = "rows locked"
    # Nobody comes to wait for a lock while no work does.
    relies_on = WAY - {"database"}
    hold_seconds = (3.0, 8.0)

    def inject(self, rig: Rig, rng: random.Random) -> None:
        session = psycopg.connect(rig.database_url)
        self.sessions.append(session)
        rows = session.execute(
            "SELECT id FROM accounts_account WHERE customer_id IS NOT NULL ORDER BY id FOR UPDATE"
        ).fetchall()
        self.needs("accounts are locked", lambda: rows)
        with psycopg.connect(rig.database_url, autocommit=True) as database:
            waiting = self.needs("somebody waits for the lock", lambda: _waiting_for_locks(database), seconds=15)
        self.proved(f"{len(rows)} accounts locked, {waiting} sessions waiting for them")


def _waiting_for_locks(database: psycopg.Connection[Any]) -> int:
    row = database.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = 'bankcore'"
    ).fetchone()
    return int(row[0]) if row else 0


class _OnRedis(Fault):
    touches = CACHE
    goal_seconds = 5.0

    def heal(self, rig: Rig) -> None:
        wait_until("Redis is back", lambda: _redis(rig).ping(), seconds=BACK_SECONDS_MAX)


def _redis(rig: Rig) -> redis.Redis:
    return redis.Redis.from_url(rig.redis_url, socket_timeout=3, socket_connect_timeout=3)


class FlushRedis(_OnRedis):
    """FLUSHALL: everything that was only remembered is forgotten."""

    name = "flush-redis"
    numbers = ("F24",)
    fault_class = "cache lost"
    rides_out = True

    def inject(self, rig: Rig, rng: random.Random) -> None:
        with _redis(rig) as client:
            client.set("gameday", "about to be flushed")
            keys = client.dbsize()
            client.flushall()
            self.needs("the marker is gone", lambda: client.get("gameday") is None)
        self.proved(f"{keys} keys before FLUSHALL, the marker among them; now it is gone")


class KillRedis(_OnRedis):
    """SIGKILL: it keeps nothing on disk, so it comes back empty."""

    name = "kill-redis"
    numbers = ("F24",)
    fault_class = "cache lost"

    def inject(self, rig: Rig, rng: random.Random) -> None:
        pid = rig.signal("valkey", signal.SIGKILL)
        self.needs("Redis has ended", lambda: rig.is_gone(pid))
        self.proved(f"Redis (pid {pid}) killed with all that it had")


class FreezeRedis(_OnRedis):
    """SIGSTOP: connections are taken, and no answer comes."""

    name = "freeze-redis"
    numbers = ("F24",)
    fault_class = "cache frozen"
    rides_out = True
    hold_seconds = (4.0, 8.0)

    def __init__(self) -> None:
        super().__init__()
        self.pid = 0

    def inject(self, rig: Rig, rng: random.Random) -> None:
        self.pid = rig.signal("valkey", signal.SIGSTOP)
        state = Path(f"/proc/{self.pid}/stat")
        self.needs("Redis stands still", lambda: state.read_text().rpartition(")")[2].split()[0] == "T")
        self.proved(f"Redis (pid {self.pid}) in state T")

    def heal(self, rig: Rig) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)
        super().heal(rig)


class ReadOnlyRedis(_OnRedis):
    """Redis takes no writes, as a replica or one without memory would."""

    name = "full-redis"
    numbers = ("F24",)
    fault_class = "cache frozen"
    rides_out = True
    hold_seconds = (4.0, 8.0)

    def inject(self, rig: Rig, rng: random.Random) -> None:
        with _redis(rig) as client:
            client.config_set("maxmemory", "1")
            try:
                client.set("gameday", "no room")
            except redis.RedisError as error:
                self.proved(f"writes are refused: {error}")

    def heal(self, rig: Rig) -> None:
        with _redis(rig) as client:
            client.config_set("maxmemory", "0")
        super().heal(rig)


FAULTS: list[type[Fault]] = [
    ImmediateStop,
    KillDatabase,
    KillBackend,
    TerminateSessions,
    FreezeDatabase,
    ExhaustConnections,
    LockHotAccount,
    FlushRedis,
    KillRedis,
    FreezeRedis,
    ReadOnlyRedis,
]
