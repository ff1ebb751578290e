"""Write events in the transaction that makes them true. The relay delivers them after the commit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from bankcore.database import execute, fetch_all


@dataclass(frozen=True, slots=True)
class NewEvent:
    """A fact about `subject`. Events of one `partition_key` are delivered in the order written, once they are due."""

    type: str
    partition_key: str
    subject: str
    data: dict[str, Any] = field(default_factory=dict)
    due_at: datetime | None = None
    request_id: str = ""
    actor: str = ""


_RECORD = """
INSERT INTO messaging_event (type, partition_key, subject, data, due_at, request_id, actor, created_at)
SELECT type, partition_key, subject, data, coalesce(due_at, statement_timestamp()), request_id, actor,
       statement_timestamp()
  FROM unnest(%b::text[], %b::text[], %b::text[], %b::jsonb[], %b::timestamptz[], %b::text[], %b::text[])
       AS e(type, partition_key, subject, data, due_at, request_id, actor)
"""


def record(events: Sequence[NewEvent]) -> None:
    """Append events in one statement, in order. Call inside the transaction of the change they tell."""
    if not events:
        return
    columns = (
        [e.type for e in events],
        [e.partition_key for e in events],
        [e.subject for e in events],
        [Jsonb(e.data) for e in events],
        [e.due_at for e in events],
        [e.request_id for e in events],
        [e.actor for e in events],
    )
    execute(_RECORD, columns)


_DEFER = """
UPDATE messaging_event
   SET attempt = CASE WHEN attempt < 0 THEN -attempt ELSE attempt + 1 END, published_at = NULL,
       due_at = statement_timestamp() + %s * interval '1 second'
 WHERE id = (SELECT max(id) FROM messaging_event WHERE subject = %s AND type = ANY(%s::text[]))
"""


# The relay marks an event as published only while `attempt` is what it read, so every change of plan has to change
# it. Postponing turns n into -n - 1 and back, which is the same number of attempts.
_POSTPONE = """
UPDATE messaging_event
   SET attempt = -attempt - 1, published_at = NULL,
       due_at = statement_timestamp() + %b * (1 + random() * 0.25) * interval '1 second'
 WHERE id IN (SELECT max(id) FROM messaging_event
               WHERE subject = ANY(%b::text[]) AND type = ANY(%b::text[]) GROUP BY subject)
"""


def postpone(types: Sequence[str], subjects: Sequence[str], delay_seconds: float) -> int:
    """Make the newest event of these types about each subject due later, without counting it as an attempt.

    For work that was not tried, because what it needs is away. One statement; the delay is spread by a quarter.
    """
    return execute(_POSTPONE, (float(delay_seconds), list(subjects), list(types))) if subjects else 0


_POSTPONE_EACH = """
UPDATE messaging_event AS e
   SET attempt = -e.attempt - 1, published_at = NULL,
       due_at = date_trunc('second', statement_timestamp() + (p.delay + 1) * interval '1 second')
  FROM (SELECT (SELECT max(id) FROM messaging_event WHERE subject = d.subject AND type = ANY(%b::text[])) AS id, d.delay
          FROM unnest(%b::text[], %b::float8[]) AS d(subject, delay)) AS p
 WHERE e.id = p.id
"""


def postpone_each(types: Sequence[str], delays: Mapping[str, float]) -> int:
    """As `postpone`, with a delay in seconds for each subject, and on a whole second, so that many travel together."""
    return execute(_POSTPONE_EACH, (list(types), list(delays), list(delays.values()))) if delays else 0


def attempts(types: Sequence[str], subject: str) -> int:
    """Tell how often the newest event of these types about `subject` has been made due again."""
    sql = "SELECT attempt FROM messaging_event WHERE subject = %s AND type = ANY(%s::text[]) ORDER BY id DESC LIMIT 1"
    rows = fetch_all(sql, (subject, list(types)))
    return counted(int(rows[0][0])) if rows else 0


def counted(attempt: int) -> int:
    """Read the number of attempts from an event's column, whose sign only tells that it was postponed."""
    return attempt if attempt >= 0 else -attempt - 1


def defer(types: Sequence[str], subject: str, delay_seconds: float) -> bool:
    """Make the newest event of these types about `subject` due again later: a retry that a broker wipe cannot lose."""
    return execute(_DEFER, (delay_seconds, subject, list(types))) == 1


# -- for tasks that take the ids of events -----------------------------------------------------------------------------

_DEFER_EVENT = """
UPDATE messaging_event
   SET attempt = CASE WHEN attempt < 0 THEN -attempt ELSE attempt + 1 END, published_at = NULL,
       due_at = statement_timestamp() + %s * interval '1 second'
 WHERE id = %s
"""


def attempts_of(event_id: str) -> int:
    """Tell how often the event itself has been made due again; 0 of an id that no event can have."""
    rows = fetch_all("SELECT attempt FROM messaging_event WHERE id = %s", (int(event_id),)) if _is_id(event_id) else []
    return counted(int(rows[0][0])) if rows else 0


def defer_event(event_id: str, delay_seconds: float) -> bool:
    """Make the event itself due again later; False if there is none."""
    return _is_id(event_id) and execute(_DEFER_EVENT, (delay_seconds, int(event_id))) == 1


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) < 2**63
