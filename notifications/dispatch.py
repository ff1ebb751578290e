"""Turn events into notifications: one per event, recipient and channel, however often the event is delivered."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from bankcore import metrics
from bankcore.database import fetch_all
from bankcore.messaging import outbox
from bankcore.messaging.outbox import NewEvent
from bankcore.money import format_minor
from notifications.models import Channel
from notifications.webhooks import draft_deliveries
from transfers.events import TransferFact, load_facts

PENDING = "notification.pending"
_WORDS = {
    "transfer.posted": "was made",
    "transfer.rejected": "was refused",
    "transfer.cancelled": "was cancelled",
    "transfer.in_review": "is being reviewed",
    "transfer.parked": "is delayed",
}
# The receiving side hears of money that came, and of nothing else.
RECEIVER_TYPES = frozenset({"transfer.posted"})


class Draft(NamedTuple):
    """A notification to be, column by column; cheaper than a model's instance, of which a batch would need hundreds."""

    event: int
    recipient: UUID
    channel: str
    address: str
    transfer: UUID
    title: str
    text: str


@transaction.atomic
def dispatch(event_ids: Iterable[int]) -> int:
    """Write the notifications of these events and make those due that go out by other means; return how many are new.

    In-app notifications are delivered by being there. Safe to repeat: the unique constraint keeps one of each.
    """
    facts = load_facts(event_ids)
    concerned = [_concerned(fact) for fact in facts]
    hooks = draft_deliveries(facts, concerned)
    wishes = _wishes({customer for customers in concerned for customer in customers})
    new = [
        _compose(fact, wish, paying=wish[0] == fact.debit_customer)
        for fact, customers in zip(facts, concerned, strict=True)
        for customer in customers
        for wish in wishes.get(customer, ())
    ]
    if not new and not hooks:
        return 0
    created = _insert(new) if new else []
    told = [_pending(n_id, recipient) for n_id, recipient, channel in created if channel != Channel.IN_APP]
    outbox.record([*told, *hooks])
    in_app = sum(channel == Channel.IN_APP for _, _, channel in created)
    transaction.on_commit(lambda: metrics.notifications.labels(Channel.IN_APP, "delivered").inc(in_app))
    return len(created) + len(hooks)


def _concerned(fact: TransferFact) -> list[UUID]:
    """Name the customers who may hear of it, the one who pays first, each once."""
    pays, receives = fact.debit_customer, fact.credit_customer
    sides = [] if pays is None else [pays]
    if receives is not None and fact.type in RECEIVER_TYPES and receives != pays:
        sides.append(receives)
    return sides


# Customer, channel, address.
_Wish = tuple[UUID, str, str]
# One look into the index for each, whatever the planner believes of the array.
_WISHES = """
SELECT s.customer, s.channel, s.address
  FROM unnest(%b::uuid[]) AS c(id)
 CROSS JOIN LATERAL (SELECT * FROM notifications_subscription WHERE customer = c.id ORDER BY id DESC OFFSET 0) AS s
"""


def _wishes(customers: Iterable[UUID]) -> dict[UUID, list[_Wish]]:
    wishes: dict[UUID, list[_Wish]] = {}
    for row in fetch_all(_WISHES, (list(customers),)):
        wishes.setdefault(row[0], []).append((row[0], row[1], row[2]))
    return wishes


def _compose(fact: TransferFact, wish: _Wish, *, paying: bool) -> Draft:
    amount = format_minor(fact.amount_minor, fact.currency)
    what = f"Your transfer of {amount} {_WORDS.get(fact.type, 'changed')}" if paying else f"You received {amount}"
    why = f"\nReason: {fact.reason.replace('_', ' ')}." if fact.reason else ""
    for_what = f"\nReference: {fact.reference}" if fact.reference else ""
    text = f"{what}.{why}{for_what}\nTransfer: {fact.transfer}"
    return Draft(fact.event_id, *wish, fact.transfer, f"{what}.", text)


_INSERT = """
INSERT INTO notifications_notification
       (event, recipient, channel, address, transfer, title, text, state, delivered_at)
SELECT event, recipient, channel, address, transfer, title, text,
       CASE channel WHEN 'in_app' THEN 'delivered' ELSE 'pending' END,
       CASE channel WHEN 'in_app' THEN %b::timestamptz END
  FROM unnest(%b::bigint[], %b::uuid[], %b::text[], %b::text[], %b::uuid[], %b::text[], %b::text[])
       AS n(event, recipient, channel, address, transfer, title, text)
    ON CONFLICT (event, recipient, channel) DO NOTHING
RETURNING id, recipient, channel
"""


def _insert(new: Sequence[Draft]) -> list[tuple[int, UUID, str]]:
    columns = [list(column) for column in zip(*new, strict=True)]
    return [(row[0], row[1], row[2]) for row in fetch_all(_INSERT, [timezone.now(), *columns])]


def _pending(notification_id: int, recipient: UUID) -> NewEvent:
    return NewEvent(type=PENDING, partition_key=str(recipient), subject=str(notification_id))
