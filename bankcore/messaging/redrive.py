"""Make the events behind lost work due again, so that the relay sends fresh messages: the database is the truth.

No old message is ever put back into a queue. So a replay needs no broker, loses nothing when it is away, carries no
death headers or stale ids, and is shaped as this release does it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from django.conf import settings

from bankcore.database import fetch_all


class Owed(NamedTuple):
    """An event that some work belongs to, and the queue that its message goes to."""

    event_id: int
    queue: str


# The newest event of each subject asks for the work; the older ones asked for it before.
_BY_SUBJECT = """
SELECT e.id, e.type, e.partition_key, e.subject
  FROM (SELECT max(id) AS id FROM messaging_event
         WHERE subject = ANY(%b::text[]) AND type = ANY(%b::text[]) GROUP BY subject) AS newest
  JOIN messaging_event e USING (id)
 ORDER BY e.id
"""
_BY_ID = """
SELECT id, type, partition_key, subject FROM messaging_event
 WHERE id = ANY(%b::bigint[]) AND type = ANY(%b::text[]) ORDER BY id
"""
_MAKE_DUE = """
UPDATE messaging_event
   SET published_at = NULL, due_at = statement_timestamp() + %s * interval '1 second'
 WHERE id = ANY(%s::bigint[])
RETURNING id
"""


def plan(task: str, ids: Sequence[str | int]) -> list[Owed]:
    """Find the events that ask for `task` about these ids; what nobody knows is left out."""
    routes = {name: route for name, route in settings.TOPOLOGY_ROUTES.items() if route.task == task}
    if not routes:
        return []
    if next(iter(routes.values())).carries == "subject":
        rows = fetch_all(_BY_SUBJECT, ([str(one) for one in ids], list(routes)))
    else:
        numbers = [int(one) for one in ids if str(one).isdigit() and int(one) < 2**63]
        rows = fetch_all(_BY_ID, (numbers, list(routes)))
    return [Owed(row[0], settings.TOPOLOGY.queue_of(routes[row[1]], row[2])) for row in rows]


def make_due(event_ids: Sequence[int], delay_seconds: float = 0.0) -> int:
    """Make events due again, once the delay is over; return how many. Harmless to work that was done meanwhile."""
    return len(fetch_all(_MAKE_DUE, (delay_seconds, list(event_ids))))
