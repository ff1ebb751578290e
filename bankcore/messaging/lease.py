"""A relay's lease on being the active one: its database session, kept alive only while the process runs and gets on.

The session holds the advisory lock. PostgreSQL ends it when nothing was asked for LEASE_SECONDS (idle_session_timeout),
so a relay that is frozen, or hangs, loses the lock without anybody deciding so. A relay that is merely busy with the
broker asks from a thread.

A session in the middle of a statement is not idle. One that sends to a process that takes nothing is ended by the
network (tcp_user_timeout; a Unix socket has none, and there it waits as long as the process is frozen). One that has
got the first part of a large statement and not the second is ended by none of its limits, statement_timeout included:
that is left to the standby (Watch).
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

log = logging.getLogger(__name__)

LEASE_SECONDS = 3.0
ASK_SECONDS = 0.75
# Longer than anything the relay does in one step with a broker that is ill.
STEP_SECONDS_MAX = 60.0


# A session that has waited for the rest of a statement for so long has lost its client. Not ClientWrite: that is also
# what a long answer looks like from its first row to its last while a healthy client takes it over a slow link.
HALFWAY_SECONDS_MAX = 2.0
_HALFWAY = """
SELECT a.pid, a.state_change
  FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
 WHERE l.locktype = 'advisory' AND l.classid = 0 AND l.objid = %s AND l.objsubid = 1 AND l.granted
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND a.state = 'active' AND a.wait_event = 'ClientRead'
"""


class Watch:
    """A standby's eye on the session that holds a lock: ends it when it hangs halfway through a statement."""

    def __init__(self, lock: int) -> None:
        self._lock = lock
        self._seen: object = None
        self._seen_at = 0.0

    def look(self, database: psycopg.Connection) -> None:
        """Look once; a session that looked the same all the time for HALFWAY_SECONDS_MAX is ended."""
        found = database.execute(_HALFWAY, (self._lock,)).fetchone()
        now = time.monotonic()
        if found is None or found != self._seen:
            self._seen, self._seen_at = found, now
        elif now - self._seen_at >= HALFWAY_SECONDS_MAX:
            log.warning("the holder hangs in the middle of a statement: ending its session %s", found[0])
            database.execute("SELECT pg_terminate_backend(%s)", (found[0],))


class Lease:
    """The lease on one session. `extend` says that the relay gets on; `confirm` that it still holds it.

    To be made before the lock is asked for: a relay that is frozen with the lock just got loses it like any other.
    """

    def __init__(self, database: psycopg.Connection) -> None:
        self._database = database
        self._extended_at = self._confirmed_at = time.monotonic()
        database.execute(f"SET idle_session_timeout = {int(LEASE_SECONDS * 1000)}")
        # Set at the server's end: a backend that sends to a frozen process waits in the network, where no other limit
        # reaches it.
        database.execute(f"SET tcp_user_timeout = {int(LEASE_SECONDS * 1000)}")

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the session from being idle until the block ends."""
        self.extend()
        ended = threading.Event()
        thread = threading.Thread(target=self._keep, args=(ended,), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def extend(self) -> None:
        self._extended_at = time.monotonic()

    def confirm(self) -> None:
        """Make sure that the session is alive, if it was not asked anything just before.

        A relay that was frozen and goes on finds out here, before it publishes what another has published since.

        Raises:
            psycopg.Error: it is not; somebody else may be active.
        """
        if time.monotonic() - self._confirmed_at > ASK_SECONDS / 2:
            self._database.execute("SELECT 1")
        self._confirmed_at = time.monotonic()

    def _keep(self, ended: threading.Event) -> None:
        while not ended.wait(ASK_SECONDS):
            if time.monotonic() - self._extended_at > STEP_SECONDS_MAX:
                log.error("the relay has not got on for %.0f s: it lets its lease run out", STEP_SECONDS_MAX)
                return
            try:
                self._database.execute("SELECT 1")
            except psycopg.Error:
                # The relay finds out with its next statement.
                return
