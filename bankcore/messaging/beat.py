"""Beat inside the maintenance workers: of however many there are, one sends the housekeeping, and it dies with them.

Celery's own embedded beat is a child process: it outlives a worker that is killed, and each worker has one. Here it is
a thread, and sends only while it holds an advisory lock. The lock's session ends with the process, and when nothing was
asked for LEASE_SECONDS, so that neither a dead worker nor a frozen one keeps the others from sending.
"""

import logging
import threading
from typing import Any

import celery.beat
import psycopg
from celery import Celery, bootsteps
from django.conf import settings

from bankcore.database import open_session
from bankcore.messaging.broker import nodes, retry_intervals, rotated

log = logging.getLogger(__name__)

BEAT_LOCK = 7206
LEASE_SECONDS = 5.0
LOOK_SECONDS = 1.0


class Scheduler(celery.beat.Scheduler):
    """Celery's, that goes on to the next broker node where it would wait for one."""

    def _ensure_connected(self) -> Any:
        return self.connection.ensure_connection(max_retries=nodes(settings.BROKER_URL) - 1, **retry_intervals())

    def reconnect(self) -> None:
        """Be connected, or raise: once an entry is taken off the schedule it is too late to find out."""
        self._ensure_connected()

    def forget_connection(self, turn: int) -> None:
        """Begin with another node next time."""
        self.connection.collect(socket_timeout=0.5)
        self.__dict__.pop("producer", None)
        self.__dict__["connection"] = self.app.connection_for_write(url=rotated(settings.BROKER_URL, turn))


class Beat(bootsteps.StartStopStep):
    """The worker's step that runs beat in a thread of the worker's own process."""

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, worker: Any) -> None:
        self._thread = threading.Thread(target=self._run, args=(worker.app,), name="beat", daemon=True)
        self._thread.start()

    def stop(self, worker: Any) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(LOOK_SECONDS)

    terminate = stop

    def _run(self, app: Celery) -> None:
        app.set_current()
        # One for good: who takes over sends at once what fell due meanwhile, each entry once.
        scheduler = Scheduler(app)
        turn = 0
        while not self._stop.is_set():
            try:
                with open_session("bankcore beat") as session:
                    session.execute(f"SET idle_session_timeout = {int(LEASE_SECONDS * 1000)}")
                    self._send_while_first(session, scheduler)
            except psycopg.Error as error:
                log.warning("beat waits for the database: %s", error)
            except Exception as error:
                turn += 1
                log.warning("beat waits for the broker: %s: %s", type(error).__name__, error)
                scheduler.forget_connection(turn)
            self._stop.wait(LOOK_SECONDS)

    def _send_while_first(self, session: psycopg.Connection[Any], scheduler: Scheduler) -> None:
        is_first = False
        while not self._stop.is_set():
            wait_seconds = LOOK_SECONDS
            if is_first:
                # The lock's end is that of the session: a worker that was frozen finds out here, before it sends.
                session.execute("SELECT 1")
            elif is_first := _lock(session):
                log.info("beat is active")
            if is_first:
                scheduler.reconnect()
                wait_seconds = min(scheduler.tick() or 0.0, LOOK_SECONDS)
            self._stop.wait(wait_seconds)


def _lock(session: psycopg.Connection[Any]) -> bool:
    row = session.execute("SELECT pg_try_advisory_lock(%s)", (BEAT_LOCK,)).fetchone()
    return bool(row and row[0])
