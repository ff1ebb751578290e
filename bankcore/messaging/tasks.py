"""What happens when work fails, in one place: wait for infrastructure, bisect around a bug, park what cannot be done.

A task's body is one line that calls a verb with a list of ids. Each call is one database transaction. Business
refusals never come here: a verb records them as the transfer's end.
"""

import logging
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

from celery import Task
from celery.exceptions import Reject
from django.conf import settings

from bankcore import metrics
from bankcore.messaging import outbox
from bankcore.messaging.blame import TakenAlongFailed
from bankcore.messaging.dead_letters import park_work
from bankcore.messaging.envelope import is_id_list
from bankcore.messaging.pause import through_outages
from bankcore.messaging.stretch import follow

log = logging.getLogger(__name__)


class BatchTask(Task):
    """A task over a list of ids.

    `retry_types` are the event types that ask for this work (a retry makes the newest of them due again; another way
    to find the event is a task's own `attempts` and `defer`), and `park(id, error, attempts)` puts one id that cannot
    be done into a waiting room with its traceback. A stage that keeps order, and so has one consumer for each queue,
    says `in_order`: while it works, `current_stretch()` tells what it knows from the messages before.
    """

    abstract = True
    acks_late = True
    in_order: ClassVar[bool] = False
    retry_types: ClassVar[Sequence[str]] = ()

    @staticmethod
    def park(only_id: str, error: Exception, attempts: int, /) -> None:
        """Put one id that cannot be done where a person sees it. Each task says where."""
        raise error

    def attempts(self, only_id: str, /) -> int:
        """Tell how often this id was tried again."""
        return outbox.attempts(self.retry_types, only_id)

    def defer(self, only_id: str, delay_seconds: float, /) -> bool:
        """Make what asks for this id due again, counted; False if nothing does."""
        return bool(self.retry_types) and outbox.defer(self.retry_types, only_id, delay_seconds)

    def __call__(self, ids: Any = None, *rest: Any, **unknown: Any) -> None:
        if rest or unknown or not is_id_list(ids):
            raise Reject(f"{self.name} takes one list of at most {settings.MESSAGE_IDS_MAX} ids", requeue=False)
        if self.in_order:
            with follow(self._queue(), self.request.id):
                self._handle(ids)
        else:
            self._handle(ids)

    def _handle(self, ids: list[Any]) -> None:
        waiting = [list(ids)]
        while waiting:
            chunk = waiting.pop()
            try:
                self._durably(partial(self.run, chunk))
            except Reject:
                raise
            except TakenAlongFailed as error:
                # What came along is asked for by name, so that the halves find the culprit; then this chunk again.
                waiting += [chunk, error.ids]
            except Exception as error:
                if len(chunk) > 1:
                    # One of them is the culprit: the halves go again, the first one first, until it is alone.
                    middle = len(chunk) // 2
                    waiting += [chunk[middle:], chunk[:middle]]
                else:
                    self._retry_or_park(chunk[0], error)

    def _retry_or_park(self, only_id: Any, error: Exception) -> None:
        log.error("%s fails for %s", self.name, only_id, exc_info=error)
        attempts = self._durably(lambda: self.attempts(str(only_id)))
        if attempts < settings.TASK_ATTEMPTS_MAX:
            delay = random.uniform(0, settings.TASK_RETRY_SECONDS * 2**attempts)  # noqa: S311  Jitter, not a secret.
            if self._durably(lambda: self.defer(str(only_id), delay)):
                metrics.retries.labels(self.name, type(error).__name__).inc()
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
        return through_outages(self.name, step, queue=self._queue())

    def _queue(self) -> str:
        came = self.request.delivery_info or {}
        return str(came.get("routing_key", ""))
