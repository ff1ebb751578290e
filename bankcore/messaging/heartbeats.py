"""Keep a worker's connection to the broker alive while its only thread is busy with a task.

The solo pool runs a task in the thread that also speaks to the broker. During an outage of the database a task waits
for minutes; a broker that hears nothing takes the worker for dead, delivers its message to the next one, and after
enough of that to the dead letters. A frozen process sends no heartbeats, so the broker still notices one within
seconds.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)


class Heartbeats:
    """A thread that sends heartbeats while the block `during_task` is open, and touches nothing at other times."""

    def __init__(self, interval_seconds: float) -> None:
        self.interval_seconds = interval_seconds
        self._connection: Any = None
        # Whoever writes to the connection holds it: this thread during a task, and the worker's at all other times.
        self._turn = threading.Lock()
        threading.Thread(target=self._run, name="heartbeats", daemon=True).start()

    @contextmanager
    def during_task(self, connection: Any) -> Iterator[None]:
        """Send heartbeats on this AMQP connection until the block ends. A block inside another changes nothing."""
        with self._turn:
            outermost, began = self._connection is None, time.monotonic()
            self._connection = connection
        try:
            yield
        finally:
            if outermost:
                with self._turn:
                    self._connection = None
                if time.monotonic() - began > self.interval_seconds:
                    # The broker's own heartbeats were not read meanwhile; that they are late is not the broker's fault.
                    connection.last_heartbeat_received = time.monotonic()

    def _run(self) -> None:
        while True:
            time.sleep(self.interval_seconds)
            with self._turn:
                if self._connection is None:
                    continue
                try:
                    self._connection.send_heartbeat()
                except Exception as error:
                    # The worker finds out when it acknowledges.
                    log.warning("no heartbeat to the broker: %s", error)
