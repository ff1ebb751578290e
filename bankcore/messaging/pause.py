"""Wait in place while infrastructure is away, and say so in log, metrics and state; a request to stop ends the wait.

The message stays in the worker's hand, so its partition keeps its order, and nothing is counted against anyone.
"""

import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from celery.exceptions import Reject
from celery.worker import state as worker_state
from django.conf import settings
from django.db import connection
from kombu.exceptions import OperationalError as BrokerError

from bankcore import metrics
from bankcore.database import is_away
from bankcore.messaging.stretch import forget

log = logging.getLogger(__name__)

# The broker, or whatever else is called, is away: nothing is wrong with the transfers.
_UNREACHABLE = (BrokerError, ConnectionError, TimeoutError)
CEILING_SECONDS_MIN = 0.1
# How often a pause looks whether the worker is to stop.
LOOK_SECONDS = 0.05

# What waits in this process now.
_open: "set[Pause]" = set()


def is_infrastructure(error: Exception) -> bool:
    """Tell an outage, which is waited for, from a bug, which is not."""
    return isinstance(error, _UNREACHABLE) or is_away(error)


def through_outages(stage: str, step: Callable[[], Any], *, queue: str = "") -> Any:
    """Take a step again and again until infrastructure lets it, and return its answer.

    `queue` is where the message in hand came from.

    Raises:
        Reject: the worker is asked to stop; the message goes back to its queue untouched.
        Exception: whatever the step raised that is no outage.
    """
    pause = Pause(stage, queue)
    try:
        while True:
            try:
                return step()
            except Exception as error:
                if not is_infrastructure(error):
                    raise
                forget()
                pause.wait(error)
    finally:
        pause.end()


def state() -> dict[str, Any]:
    """Say what this process waits with: from which queue, since when, and why. Asks nobody, so it answers meanwhile."""
    pauses = sorted(_open.copy(), key=lambda pause: (pause.queue, pause.since))
    # The error's text may name hosts and users: it is in the log.
    paused = [{"queue": p.queue, "stage": p.stage, "since": p.since, "cause": p.cause} for p in pauses]
    return {"status": "paused" if paused else "working", "paused": paused}


class Pause:
    """One outage as one task sees it: how often it was tried, and since when."""

    def __init__(self, stage: str, queue: str = "") -> None:
        self.stage, self.queue = stage, queue
        self.cause = ""
        self.ceiling_seconds = CEILING_SECONDS_MIN
        self.began = 0.0
        self.since = ""

    def wait(self, error: Exception) -> None:
        """Sleep for a random part of the ceiling (full jitter), which doubles up to PAUSE_SECONDS_MAX."""
        self._show(type(error).__name__)
        metrics.retries.labels(self.stage, self.cause).inc()
        log.warning("%s is paused, waiting for infrastructure: %s: %s", self.stage, self.cause, error)
        connection.close()
        self._sleep(random.uniform(0, self.ceiling_seconds))  # noqa: S311  Jitter, not a secret.
        self.ceiling_seconds = min(self.ceiling_seconds * 2, settings.PAUSE_SECONDS_MAX)

    def end(self) -> None:
        if self.cause:
            metrics.paused.labels(self.stage, self.cause).dec()
            log.warning("%s ends its pause of %.1f s", self.stage, time.monotonic() - self.began)
            self.cause = ""
            _open.discard(self)

    def _show(self, cause: str) -> None:
        if not self.cause:
            self.began = time.monotonic()
            self.since = datetime.now(UTC).isoformat(timespec="seconds")
            _open.add(self)
        if cause != self.cause:
            if self.cause:
                metrics.paused.labels(self.stage, self.cause).dec()
            metrics.paused.labels(self.stage, cause).inc()
            self.cause = cause

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if is_asked_to_stop():
                raise Reject("the worker is stopping", requeue=True)
            time.sleep(min(left, LOOK_SECONDS))
            metrics.paused_seconds.labels(self.stage, self.cause).inc(min(left, LOOK_SECONDS))


def is_asked_to_stop() -> bool:
    """Tell whether this worker is to end."""
    # The exit code 0 asks to stop as well, and is equal to False.
    asked = (worker_state.should_stop, worker_state.should_terminate)
    return any(one is not None and one is not False for one in asked)
