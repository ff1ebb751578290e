"""The database is lost with its disk, and restored from a base backup and the log since, up to the last commit."""

from __future__ import annotations

import os
import random
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import psycopg

from compose.gameday.faults.fault import Fault, wait_until
from compose.gameday.rig import POSTGRESQL, Rig
from compose.instance import StackError, remove_tree

BACKUP_SECONDS_MAX = 120
# Commits that only the log has: they are what a restore could lose.
AFTERWARDS_SECONDS = 3.0
BACK_SECONDS_MAX = 180.0


class RestoreDatabase(Fault):
    """A base backup under load; later the data directory is lost, and made anew from the backup and the kept log."""

    name = "restore-database"
    numbers = ("F37",)
    fault_class = "database restored"
    touches = frozenset({"database"})
    goal_seconds = 15.0
    is_long = True

    def inject(self, rig: Rig, rng: random.Random) -> None:
        home = rig.home(POSTGRESQL).resolve()
        data = next(path for path in home.glob("data-*") if (path / "PG_VERSION").exists())
        backup, lost = home / "backup", home / "lost"
        for folder in (backup, lost):
            remove_tree(folder)
        began = time.monotonic()
        _back_up(rig, data, backup)
        seconds, size = time.monotonic() - began, _size(backup)
        at_backup = _log_position(rig)
        time.sleep(AFTERWARDS_SECONDS)
        last = _log_position(rig)
        pid = rig.pids()[POSTGRESQL]
        rig.stop(POSTGRESQL)
        self.needs("PostgreSQL has ended", lambda: rig.is_gone(pid))
        data.rename(lost)
        backup.rename(data)
        _recover_from(data, lost / "pg_wal")
        rig.start(POSTGRESQL)
        timeline = wait_until("the database is restored", lambda: _restored(rig), seconds=BACK_SECONDS_MAX)
        remove_tree(lost)
        self.proved(
            f"backup of {size >> 20} MiB in {seconds:.0f} s; the data directory lost {last - at_backup:,} bytes of log"
            f" later, and restored to the last commit, as timeline {timeline}"
        )

    def heal(self, rig: Rig) -> None:
        rig.start(POSTGRESQL)
        wait_until("PostgreSQL is back", lambda: _restored(rig), seconds=BACK_SECONDS_MAX)


def _back_up(rig: Rig, data: Path, backup: Path) -> None:
    """Raises StackError with what pg_basebackup said."""
    program = Path(os.readlink(f"/proc/{rig.pids()[POSTGRESQL]}/exe")).with_name("pg_basebackup")
    owner = data.stat()
    # As the owner of the data, who has to be able to read what is put in its place.
    user: dict[str, Any] = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
    options = ["--checkpoint=fast", "--wal-method=stream", "--dbname", rig.superuser_url]
    done = subprocess.run(
        [str(program), "--pgdata", str(backup), *options],
        cwd=data.parent,
        env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": str(data.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=BACKUP_SECONDS_MAX,
        **(user if os.geteuid() == 0 else {}),
    )
    if done.returncode:
        raise StackError(f"pg_basebackup failed: {done.stderr.strip()[-500:]}")


def _recover_from(data: Path, log: Path) -> None:
    """Have the server at `data` read the log of the lost one to its end, and then go on as a new timeline."""
    owner = data.stat()
    copy = f"cp {shlex.quote(str(log))}/%f %p"
    # A quote within a setting's string stands twice; the path has quotes where it has spaces.
    copy = copy.replace("'", "''")
    with (data / "postgresql.auto.conf").open("a") as file:
        file.write(f"restore_command = '{copy}'\nrecovery_target_timeline = 'latest'\n")
    signal_file = data / "recovery.signal"
    signal_file.touch(mode=0o600)
    os.chown(signal_file, owner.st_uid, owner.st_gid)


def _log_position(rig: Rig) -> int:
    with psycopg.connect(rig.superuser_url, autocommit=True) as database:
        ((position,),) = database.execute("SELECT pg_current_wal_flush_lsn() - '0/0'").fetchall()
    return int(position)


def _restored(rig: Rig) -> int:
    """The timeline of a database that takes writes; 0 while it recovers."""
    with psycopg.connect(rig.superuser_url, autocommit=True, connect_timeout=5) as database:
        ((recovers, timeline),) = database.execute(
            "SELECT pg_is_in_recovery(), ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int"
        ).fetchall()
    return 0 if recovers else int(timeline)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


FAULTS: list[type[Fault]] = [RestoreDatabase]
