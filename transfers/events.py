"""What the world hears of a transfer: the events' names, and the facts behind them for whoever tells people."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from bankcore.database import fetch_all
from bankcore.messaging.outbox import NewEvent
from transfers.states import Change, Claimed, Status

ACCEPTED = "transfer.accepted"
APPROVED = "transfer.approved"


def of_change(
    claimed: Claimed, change: Change, *, actor: str = "", notes: Sequence[str] = (), due_at: datetime | None = None
) -> NewEvent:
    """Make the event that tells a change of status: `transfer.<status>`."""
    data: dict[str, object] = {}
    if change.reason:
        data["reason"] = change.reason
    if notes:
        data["notes"] = list(notes)
    return NewEvent(
        type=f"transfer.{change.status}",
        partition_key=str(claimed.debit_account),
        subject=str(claimed.id),
        data=data,
        due_at=due_at,
        request_id=claimed.request_id,
        actor=actor,
    )


def of_changes(claimed: Sequence[Claimed], changes: Sequence[Change]) -> list[NewEvent]:
    return [of_change(c, change) for c, change in zip(claimed, changes, strict=True)]


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


_FACTS = """
SELECT e.id, e.type, coalesce(e.data->>'reason', ''), t.id, t.status, t.amount_minor, t.currency, t.reference,
       d.customer_id, c.customer_id
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
