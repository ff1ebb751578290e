"""What the world hears of a transfer: the events' names, and the facts behind them for whoever tells people."""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import repeat
from typing import NamedTuple
from uuid import UUID

from bankcore.database import fetch_all
from bankcore.messaging.outbox import NewEvent
from transfers.states import Change, Claimed, MovedMeanwhile, Status

ACCEPTED = "transfer.accepted"
APPROVED = "transfer.approved"


def of_change(
    claimed: Claimed, change: Change, *, actor: str = "", notes: Sequence[str] = (), due_at: datetime | None = None
) -> NewEvent:
    """Make the event that tells a change of status: `transfer.<status>`."""
    return NewEvent(
        type=f"transfer.{change.status}",
        partition_key=str(claimed.debit_account),
        subject=str(claimed.id),
        data=_data(change.reason, notes),
        due_at=due_at,
        request_id=claimed.request_id,
        actor=actor,
    )


def _data(reason: str, notes: Sequence[str]) -> dict[str, object]:
    data: dict[str, object] = {}
    if reason:
        data["reason"] = reason
    if notes:
        data["notes"] = list(notes)
    return data


def of_changes(claimed: Sequence[Claimed], changes: Sequence[Change]) -> list[NewEvent]:
    return [of_change(c, change) for c, change in zip(claimed, changes, strict=True)]


# The same as states.move and outbox.record, in one statement: what the events say is in the rows that are written.
_MOVE_AND_TELL = """
WITH moved AS (
    UPDATE transfers_transfer AS t
       SET status = c.status, status_reason = c.reason, updated_at = statement_timestamp(),
           posted_at = CASE WHEN c.status = 'posted' THEN statement_timestamp() END
      FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::text[], %b::text[])
           WITH ORDINALITY AS c(id, was, status, reason, data, place)
     WHERE t.id = c.id AND t.status = c.was
    RETURNING t.id, t.debit_account_id, t.request_id, c.status, c.data, c.place
), told AS (
    INSERT INTO messaging_event (type, partition_key, subject, data, request_id, created_at, due_at)
    SELECT 'transfer.' || status, debit_account_id::text, id::text, data::jsonb, request_id,
           statement_timestamp(), statement_timestamp()
      FROM moved ORDER BY place
)
SELECT count(*) FROM moved
"""


def move_and_tell(claimed: Sequence[Claimed], changes: Sequence[Change], notes: Sequence[Sequence[str]] = ()) -> None:
    """Write the next status of claimed transfers (same order, same length) and the events that tell it, in that order.

    Raises:
        MovedMeanwhile: not every transfer was still in the status it was claimed in.
    """
    columns = (
        [c.id for c in changes],
        [c.status for c in claimed],
        [c.status.value for c in changes],
        [c.reason for c in changes],
        [
            json.dumps(_data(change.reason, why)) if change.reason or why else "{}"
            for change, why in zip(changes, notes or repeat(()), strict=False)
        ],
    )
    ((moved,),) = fetch_all(_MOVE_AND_TELL, columns)
    if moved != len(claimed):
        raise MovedMeanwhile(f"{moved} of {len(claimed)} transfers were moved")


class TransferFact(NamedTuple):
    """One event with the people it concerns."""

    event_id: int
    type: str
    reason: str
    transfer: UUID
    status: Status
    amount_minor: int
    currency: str
    reference: str
    debit_customer: UUID | None
    credit_customer: UUID | None
    debit_account: UUID
    credit_account: UUID
    happened_at: datetime


_FACTS = """
SELECT e.id, e.type, coalesce(e.data->>'reason', ''), t.id, t.status, t.amount_minor, t.currency, t.reference,
       d.customer_id, c.customer_id, t.debit_account_id, t.credit_account_id, e.created_at
  FROM messaging_event e
  JOIN transfers_transfer t ON t.id = e.subject::uuid
  JOIN accounts_account d ON d.id = t.debit_account_id
  JOIN accounts_account c ON c.id = t.credit_account_id
 WHERE e.id = ANY(%b::bigint[])
 ORDER BY e.id
"""


def load_facts(event_ids: Iterable[int]) -> list[TransferFact]:
    """Load transfer events with the customers on both sides, one statement for all."""
    return [TransferFact._make(row) for row in fetch_all(_FACTS, (list(event_ids),))]
