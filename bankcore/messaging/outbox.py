"""Write events in the transaction that makes them true. The relay delivers them after the commit."""

from collections.abc import Sequence
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
   SET attempt = attempt + 1, published_at = NULL, due_at = statement_timestamp() + %s * interval '1 second'
 WHERE id = (SELECT max(id) FROM messaging_event WHERE subject = %s AND type = ANY(%s::text[]))
"""


def attempts(types: Sequence[str], subject: str) -> int:
    """Tell how often the newest event of these types about `subject` has been made due again."""
    sql = "SELECT attempt FROM messaging_event WHERE subject = %s AND type = ANY(%s::text[]) ORDER BY id DESC LIMIT 1"
    rows = fetch_all(sql, (subject, list(types)))
    return int(rows[0][0]) if rows else 0


def defer(types: Sequence[str], subject: str, delay_seconds: float) -> bool:
    """Make the newest event of these types about `subject` due again later: a retry that a broker wipe cannot lose."""
    return execute(_DEFER, (delay_seconds, subject, list(types))) == 1
