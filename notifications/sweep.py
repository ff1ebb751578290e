"""Find what a broker lost on its way to those who want to be told: a position behind the events, and what is pending.

Every event is looked at some time after it was published. One that somebody should have been told of is made due again,
so that a worker that may die of it does the work, and never the one that keeps house; the unique constraints keep
anybody from being told twice, also if its first message comes after all. The position waits until the second message
has come to something too, and for no third.
"""

import logging
import time

from django.conf import settings
from django.db import transaction

from bankcore import metrics
from bankcore.database import execute, fetch_all
from notifications import delivery
from notifications.dispatch import RECEIVER_TYPES

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
    resent = delivery.redrive(settings.STUCK_SECONDS, PENDING_MAX)
    untold = _sweep_events()
    if resent or untold:
        metrics.retries.labels("sweep", "notifications").inc(resent + untold)
        log.warning("%s e-mails are due again, and so are %s events nobody was told of", resent, untold)
    return resent + untold


_BEGIN = "INSERT INTO notifications_sweepposition (id, event) VALUES (1, 0) ON CONFLICT DO NOTHING"
_POSITION = "SELECT event FROM notifications_sweepposition FOR UPDATE SKIP LOCKED"
_ADVANCE = "UPDATE notifications_sweepposition SET event = %s"
# The chunk ends before the first event that is young, or that the relay owes or has just published. One that was made
# due again ends no chunk, so that those behind it do not wait for it; the position does.
_CHUNK = """
WITH clock AS (
    SELECT statement_timestamp() - %(seconds)s * interval '1 second' AS before
), chunk AS MATERIALIZED (
    SELECT id, created_at, attempt, type = ANY(%(types)s::text[]) AS tells,
           coalesce(published_at >= before, true) AS is_under_way
      FROM messaging_event, clock
     WHERE id > %(after)s::bigint ORDER BY id LIMIT %(most)s
), edge AS (
    SELECT coalesce((SELECT min(id) - 1 FROM chunk, clock
                      WHERE created_at >= before OR tells AND is_under_way AND attempt = 0),
                    (SELECT max(id) FROM chunk)) AS id
)
SELECT edge.id, edge.id = (SELECT max(id) FROM chunk) AND (SELECT count(*) FROM chunk) = %(most)s,
       (SELECT min(id) FROM chunk WHERE tells AND is_under_way AND chunk.id <= edge.id),
       ARRAY(SELECT c.id FROM chunk c
              WHERE tells AND NOT is_under_way AND c.id <= edge.id
                AND NOT EXISTS (SELECT FROM notifications_notification n WHERE n.event = c.id)
                AND NOT EXISTS (SELECT FROM notifications_webhookdelivery d WHERE d.event = c.id)
                AND NOT EXISTS (SELECT FROM messaging_deadletter l WHERE l.subject = c.id::text AND l.task = %(task)s)
              ORDER BY c.id)
  FROM edge WHERE edge.id IS NOT NULL
"""
# Of those, what somebody wants to hear: whom dispatch would tell, asked of the database alone, as whatever a row may do
# to a process it must not do to this one. `attempt` counts nothing here; its sign tells the first time from the second.
_AGAIN = """
UPDATE messaging_event AS e
   SET attempt = -e.attempt - 1, published_at = NULL, due_at = statement_timestamp()
  FROM transfers_transfer t
  JOIN accounts_account d ON d.id = t.debit_account_id
  JOIN accounts_account c ON c.id = t.credit_account_id
 CROSS JOIN LATERAL (VALUES (d.customer_id, c.customer_id)) AS side(pays, receives)
 WHERE e.id = ANY(%(untold)s::bigint[]) AND t.id = e.subject::uuid
   AND (EXISTS (SELECT FROM notifications_subscription s
                 WHERE s.customer = pays OR s.customer = receives AND e.type = ANY(%(receiver)s::text[]))
        OR EXISTS (SELECT FROM notifications_webhookendpoint w
                    WHERE w.state = 'active' AND e.type = ANY(w.event_types)
                      AND (w.customer IS NULL OR w.customer = pays
                           OR w.customer = receives AND e.type = ANY(%(receiver)s::text[]))))
RETURNING e.id, e.attempt
"""
_FIRST_TIME = -1


@transaction.atomic
def _sweep_events() -> int:
    """Make events due again that somebody should have been told of, move the position on; return how many they were."""
    execute(_BEGIN)
    position = fetch_all(_POSITION)
    if not position:
        return 0
    began_at = after = position[0][0]
    until, goes_on = time.monotonic() + RUN_SECONDS_MAX, True
    held: list[int] = []
    again = 0
    types = [name for name, route in settings.TOPOLOGY_ROUTES.items() if route.task == TASK]
    arguments = {"seconds": float(settings.STUCK_SECONDS), "most": EVENTS_MAX, "types": types, "task": TASK}
    while goes_on and time.monotonic() <= until:
        chunk = fetch_all(_CHUNK, {**arguments, "after": after})
        if not chunk or chunk[0][0] <= after:
            break
        ((after, goes_on, under_way, untold),) = chunk
        rows = fetch_all(_AGAIN, {"untold": untold, "receiver": list(RECEIVER_TYPES)}) if untold else []
        again += len(rows)
        held += [under_way] if under_way else []
        held += [event for event, attempt in rows if attempt == _FIRST_TIME]
    reached = min(held) - 1 if held else after
    if reached != began_at:
        execute(_ADVANCE, (reached,))
    return again
