"""An endpoint that has more to hear than it takes costs itself alone: its calls are in use, and no other message waits.

A message of deliveries holds one of its worker's few places until its last call has ended, which may be half a minute.
So a second one makes no call to an endpoint whose calls are in use already: what it has for it is made due later, at
once. The more waits for the endpoint, the later: so looking again costs little, however much waits.
"""

import random
from collections.abc import Collection, Mapping, Sequence
from uuid import UUID

from django.conf import settings

from bankcore import metrics
from bankcore.database import fetch_all
from bankcore.messaging import outbox

# Of one endpoint, so many deliveries a second are looked at again; more than most endpoints take.
LOOKS_PER_SECOND = 250
# More than this counts as so many.
WAITING_MAX = 50_000

# One lane has one call open, however many of its deliveries are in hand.
_CROWDED = """
SELECT endpoint_id FROM notifications_webhookdelivery
 WHERE endpoint_id = ANY(%b::uuid[]) AND state = 'pending' AND claimed_until > statement_timestamp()
 GROUP BY endpoint_id HAVING count(DISTINCT lane) + count(*) FILTER (WHERE lane IS NULL) >= %b::int
"""
_WAITING = """
SELECT e.id, (SELECT count(*) FROM (SELECT FROM notifications_webhookdelivery
                                     WHERE endpoint_id = e.id AND state = 'pending' LIMIT %b) AS waiting)
  FROM unnest(%b::uuid[]) AS e(id)
"""


def crowded(endpoints: Collection[UUID]) -> frozenset[UUID]:
    """Name those of the endpoints whose calls (WEBHOOK_ENDPOINT_CALLS) are in use by other messages' deliveries.

    Call with the endpoints' rows locked.
    """
    rows = fetch_all(_CROWDED, (list(endpoints), settings.WEBHOOK_ENDPOINT_CALLS)) if endpoints else []
    return frozenset(row[0] for row in rows)


def leave(event_type: str, left: Mapping[UUID, Sequence[int]]) -> None:
    """Make what a message has for crowded endpoints due later, uncounted; the first of each endpoint the soonest."""
    waiting = dict(fetch_all(_WAITING, (WAITING_MAX, list(left)))) if left else {}
    delays: dict[str, float] = {}
    for endpoint, deliveries in left.items():
        step_seconds = waiting[endpoint] / LOOKS_PER_SECOND / len(deliveries)
        for place, delivery in enumerate(deliveries):
            delays[str(delivery)] = (place + random.random()) * step_seconds  # noqa: S311  Not a secret.
    metrics.notifications.labels("webhook", "held").inc(outbox.postpone_each([event_type], delays))
