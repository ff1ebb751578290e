"""What happens when work fails, in one place: wait for infrastructure, bisect around a bug, park what cannot be done.

A task's body is one line that calls a verb with a list of ids. Each call is one database transaction. Business
refusals never come here: a verb records them as the transfer's end.
"""

import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from celery import Task
from celery.exceptions import Reject
from celery.worker import state as worker_state
from django.conf import settings
from django.db import InterfaceError, OperationalError, connection
from kombu.exceptions import OperationalError as BrokerError

from bankcore import metrics
from bankcore.messaging import outbox
from bankcore.messaging.dead_letters import park_work

log = logging.getLogger(__name__)

# The database or the broker is away, failing over, or asks to try again: nothing is wrong with the transfers.
INFRASTRUCTURE = (OperationalError, InterfaceError, BrokerError, ConnectionError, TimeoutError)
# The same by SQLSTATE, for what psycopg sorts elsewhere: read-only after a failover (25006), sessions and transactions
# that were timed out while a process was frozen (25P03, 25P04), and the classes for connection, rollback, resources,
# operator intervention and system errors.
_SQLSTATES = ("25006", "25P03", "25P04", "08", "40", "53", "57", "58")
PAUSE_SECONDS_MIN = 0.05


class BatchTask(Task):
    """A task over a list of ids.

    `retry_types` are the event types that ask for this work (a retry makes the newest of them due again), and
    `park(id, error, attempts)` puts one id that cannot be done into a waiting room with its traceback.
    """

    abstract = True
    acks_late = True
    retry_types: ClassVar[Sequence[str]] = ()

    @staticmethod
    def park(only_id: str, error: Exception, attempts: int, /) -> None:
        """Put one id that cannot be done where a person sees it. Each task says where."""
        raise error

    def __call__(self, ids: Any = None, *rest: Any, **unknown: Any) -> None:
        if rest or unknown or not _is_id_list(ids):
            raise Reject(f"{self.name} takes one list of at most {settings.MESSAGE_IDS_MAX} ids", requeue=False)
        waiting = [list(ids)]
        while waiting:
            chunk = waiting.pop()
            try:
                self._run_through_outages(chunk)
            except Reject:
                raise
            except Exception as error:
                if len(chunk) > 1:
                    # One of them is the culprit: the halves go again, the first one first, until it is alone.
                    middle = len(chunk) // 2
                    waiting += [chunk[middle:], chunk[:middle]]
                else:
                    self._retry_or_park(chunk[0], error)

    def _run_through_outages(self, chunk: list[Any]) -> None:
        pause = PAUSE_SECONDS_MIN
        while True:
            try:
                self.run(chunk)
                return
            except Exception as error:
                if not is_infrastructure(error):
                    raise
                wait_in_place(self.name, error, pause)
                pause = min(pause * 2, settings.PAUSE_SECONDS_MAX)

    def _retry_or_park(self, only_id: Any, error: Exception) -> None:
        log.error("%s fails for %s", self.name, only_id, exc_info=error)
        attempts = self._durably(lambda: outbox.attempts(self.retry_types, str(only_id)))
        if self.retry_types and attempts < settings.TASK_ATTEMPTS_MAX:
            metrics.retries.labels(self.name, type(error).__name__).inc()
            delay = random.uniform(0, settings.TASK_RETRY_SECONDS * 2**attempts)  # noqa: S311  Jitter, not a secret.
            if self._durably(lambda: outbox.defer(self.retry_types, str(only_id), delay)):
                return
        try:
            self._durably(lambda: self.park(str(only_id), error, attempts + 1))
        except Reject:
            raise
        except Exception as unparkable:
            # Not even an id of ours: the desk gets it as it came, and the rest of the message goes on.
            log.error("%s cannot park %s", self.name, only_id, exc_info=unparkable)
            self._durably(
                lambda: park_work(task=self.name, subject=str(only_id)[:64], error=error, attempts=attempts + 1)
            )

    def _durably(self, step: Callable[[], Any]) -> Any:
        pause = PAUSE_SECONDS_MIN
        while True:
            try:
                return step()
            except Exception as error:
                if not is_infrastructure(error):
                    raise
                wait_in_place(self.name, error, pause)
                pause = min(pause * 2, settings.PAUSE_SECONDS_MAX)


def is_infrastructure(error: Exception) -> bool:
    """Tell an outage, which is waited for, from a bug, which is not."""
    sqlstate = getattr(error.__cause__, "sqlstate", None) or ""
    return isinstance(error, INFRASTRUCTURE) or sqlstate.startswith(_SQLSTATES)


def wait_in_place(stage: str, error: Exception, ceiling_seconds: float) -> None:
    """Sleep with full jitter while infrastructure recovers; the message stays ours, so the partition keeps its order.

    Raises:
        Reject: the worker is asked to stop; the message goes back to its queue untouched.
    """
    metrics.retries.labels(stage, type(error).__name__).inc()
    log.warning("%s waits for infrastructure: %s: %s", stage, type(error).__name__, error)
    connection.close()
    until = time.monotonic() + random.uniform(PAUSE_SECONDS_MIN, max(ceiling_seconds, PAUSE_SECONDS_MIN))  # noqa: S311
    while time.monotonic() < until:
        # The exit code 0 asks to stop as well, and is equal to False.
        if any(asked is not None and asked is not False for asked in _stop_requests()):
            raise Reject("the worker is stopping", requeue=True)
        time.sleep(0.05)


def _stop_requests() -> tuple[Any, Any]:
    return worker_state.should_stop, worker_state.should_terminate


def _is_id_list(ids: Any) -> bool:
    if not isinstance(ids, list) or not 0 < len(ids) <= max(settings.MESSAGE_IDS_MAX, 500):
        return False
    return all(isinstance(i, str) or (isinstance(i, int) and not isinstance(i, bool)) for i in ids)
