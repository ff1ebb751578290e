"""Find what a broker lost on its way to those who want to be told: a position behind the events, and what is pending.

Every event is looked at once, some time after it was published. One whose notifications are not there is dispatched
here, which needs no broker; the unique constraints keep anybody from being told twice, also if its message comes after
all.
"""

import logging
import time
from collections.abc import Sequence
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from bankcore import metrics
from bankcore.database import execute, fetch_all
from bankcore.messaging import redrive
from bankcore.messaging.pause import is_infrastructure
from notifications import delivery
from notifications.dispatch import dispatch

log = logging.getLogger(__name__)

TASK = "notifications.dispatch"
PENDING_MAX = 5000
# One step: read by primary key, and looked up in two unique indexes.
EVENTS_MAX = 5000
# What is not reached in this time is reached by the next run: telling late is better than slowing those who move money.
RUN_SECONDS_MAX = 1.0


def sweep_lost() -> int:
    """Drive again what has come to nothing STUCK_SECONDS after it was published; return how many events and e-mails.

    Locks the position's row; a second sweep at the same time does nothing. Safe to repeat and harmless when wrong.
    """
    before = timezone.now() - timedelta(seconds=settings.STUCK_SECONDS)
    resent, until, told = delivery.redrive(before, PENDING_MAX), time.monotonic() + RUN_SECONDS_MAX, 0
    while True:
        found, goes_on = _step(before)
        told += found
        if not goes_on or time.monotonic() > until:
            break
    if resent or told:
        metrics.retries.labels("sweep", "notifications").inc(resent + told)
        log.warning("%s e-mails are due again, and %s notifications were missing", resent, told)
    return resent + told


_BEGIN = "INSERT INTO notifications_sweepposition (id, event) VALUES (1, 0) ON CONFLICT DO NOTHING"
_POSITION = "SELECT event FROM notifications_sweepposition FOR UPDATE SKIP LOCKED"
_ADVANCE = "UPDATE notifications_sweepposition SET event = %s"
# The chunk ends before the first event that is young, or that the relay owes or has just published.
_CHUNK = """
WITH chunk AS MATERIALIZED (
    SELECT id, type, created_at, published_at FROM messaging_event
     WHERE id > %(after)s::bigint ORDER BY id LIMIT %(most)s
), edge AS (
    SELECT coalesce((SELECT min(id) - 1 FROM chunk
                      WHERE created_at >= %(before)s
                         OR type = ANY(%(types)s::text[]) AND coalesce(published_at >= %(before)s, true)),
                    (SELECT max(id) FROM chunk)) AS id
)
SELECT edge.id, edge.id = (SELECT max(id) FROM chunk) AND (SELECT count(*) FROM chunk) = %(most)s,
       ARRAY(SELECT c.id FROM chunk c
              WHERE c.type = ANY(%(types)s::text[]) AND c.id <= edge.id
                AND NOT EXISTS (SELECT FROM notifications_notification n WHERE n.event = c.id)
                AND NOT EXISTS (SELECT FROM notifications_webhookdelivery d WHERE d.event = c.id)
                AND NOT EXISTS (SELECT FROM messaging_deadletter l WHERE l.subject = c.id::text AND l.task = %(task)s)
              ORDER BY c.id)
  FROM edge WHERE edge.id IS NOT NULL
"""
_ANYBODY = """
SELECT EXISTS (SELECT FROM notifications_subscription)
    OR EXISTS (SELECT FROM notifications_webhookendpoint WHERE state = 'active')
"""


@transaction.atomic
def _step(before: datetime) -> tuple[int, bool]:
    """Look at the next events; return how many notifications were missing, and whether there is more to look at."""
    execute(_BEGIN)
    position = fetch_all(_POSITION)
    if not position:
        return 0, False
    types = [name for name, route in settings.TOPOLOGY_ROUTES.items() if route.task == TASK]
    arguments = {"after": position[0][0], "most": EVENTS_MAX, "before": before, "types": types, "task": TASK}
    chunk = fetch_all(_CHUNK, arguments)
    if not chunk or chunk[0][0] <= position[0][0]:
        return 0, False
    ((edge, goes_on, untold),) = chunk
    missing = _tell(untold) if untold and fetch_all(_ANYBODY)[0][0] else 0
    execute(_ADVANCE, (edge,))
    return missing, goes_on


def _tell(event_ids: Sequence[int]) -> int:
    """Write the notifications of events that have none; most have none because nobody wants any."""
    missing = 0
    for begin in range(0, len(event_ids), settings.MESSAGE_IDS_MAX):
        some = event_ids[begin : begin + settings.MESSAGE_IDS_MAX]
        try:
            missing += dispatch(some)
        except Exception as error:
            if is_infrastructure(error):
                raise
            # One of them has a bug: the workers find out which one, and park it.
            log.warning("cannot tell of events %s to %s here: %s", some[0], some[-1], error)
            redrive.make_due(some)
    return missing
