"""Find the one id for which workers die, and park it, so that it does not kill again and the others go on.

The broker gives a message up that was delivered too often, and nobody can say which of its ids it was. So all of them
are counted, like any work that failed, and are due at once: the relay sends each in a message of its own, in order, and
before what is written later. One that kills again, alone, is parked by its task. Without this the sweep would send the
same again and again, and what comes later from the same account would take it along.
"""

import logging
from collections.abc import Mapping
from typing import Any

from celery import current_app
from django.conf import settings
from django.db import transaction

from bankcore import metrics
from bankcore.messaging import envelope, undelivered
from bankcore.messaging.pause import is_infrastructure

log = logging.getLogger(__name__)

# What the relay does not send alone comes due so far apart that it mostly is.
APART_SECONDS = 2.0


class WorkerDied(Exception):
    """Workers died while they had the message; none of them could say why."""


def isolate(headers: Mapping[str, Any], *, queue: str, body: bytes, content_type: Any) -> None:
    """Let each id of a message that killed its workers be tried alone, or park the one it was about.

    Only for messages of ours: a stranger's word on how one died moves nothing. Call inside the transaction that records
    the message. Safe to repeat: work that is done meanwhile is left alone by its stage.
    """
    try:
        with transaction.atomic():
            envelope.check(headers, queue=queue, body=body)
            reading = undelivered.read({**headers, "content_type": content_type}, body)
            if reading.ids:
                _isolate(current_app.tasks[reading.task], [str(one) for one in reading.ids])
    except envelope.Refused as why:
        log.error("what killed workers on %s is not believed to be ours: %s", queue, why)
    except Exception as error:
        if is_infrastructure(error):
            raise
        # The letter is what counts; the sweep sends what waits.
        log.exception("the ids of a message that killed its workers are not tried alone")


def _isolate(task: Any, ids: list[str]) -> None:
    if len(ids) == 1 and (attempts := task.attempts(ids[0])):
        log.error("%s kills its workers with %s, which is parked", task.name, ids[0])
        task.park(ids[0], WorkerDied("workers died of it, again and again"), attempts + 1)
        return
    alone = all(route.retried_alone for route in settings.TOPOLOGY_ROUTES.values() if route.task == task.name)
    for place, only_id in enumerate(ids):
        if task.defer(only_id, 0.0 if alone else settings.TASK_RETRY_SECONDS + place * APART_SECONDS):
            metrics.retries.labels(task.name, "WorkerDied").inc()
