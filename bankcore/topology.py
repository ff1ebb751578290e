"""Who hears of what: event types, the tasks that handle them, and the queues in between. Pure data; imports no app."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from zlib import crc32

WORK_EXCHANGE = "bank"
EVENTS_EXCHANGE = "bank.events"
DEAD_EXCHANGE = "bank.dead"
LOST_EXCHANGE = "bank.lost"
DEAD_QUEUE = "dead_letters"
LOST_QUEUE = "lost_and_found"
# Breakers that are shown and exported before their first call; those of webhook endpoints come as they are used.
BREAKERS = ("email", "risk")
RELAY_WAKE_CHANNEL = "bankcore_outbox"

# A message that killed its worker this often goes to the dead letters. Deploys count as well, hence not lower.
DELIVERY_LIMIT = 10
DESK_DELIVERY_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True)
class Route:
    """Where one event type goes. `carries` says which id the task is called with."""

    family: Literal["risk", "posting", "notifications", "deliveries"]
    task: str
    partitioned: bool
    carries: Literal["subject", "event"]

    @property
    def retried_alone(self) -> bool:
        """Whether what failed before has a message of its own: if it kills its worker, it kills nothing but itself.

        Not deliveries, which fail by the thousand while a recipient is away, and are in no order.
        """
        return self.family != "deliveries"


_RISK = Route(family="risk", task="transfers.check_risk", partitioned=True, carries="subject")
_POSTING = Route(family="posting", task="transfers.post_transfers", partitioned=True, carries="subject")
_NOTIFY = Route(family="notifications", task="notifications.dispatch", partitioned=False, carries="event")
_DELIVER = Route(family="deliveries", task="notifications.deliver", partitioned=False, carries="subject")

_DELIVER_WEBHOOKS = Route(
    family="deliveries", task="notifications.deliver_webhooks", partitioned=False, carries="subject"
)

ROUTES: Mapping[str, Route] = {
    "transfer.accepted": _RISK,
    "transfer.approved": _POSTING,
    "transfer.in_review": _NOTIFY,
    "transfer.posted": _NOTIFY,
    "transfer.rejected": _NOTIFY,
    "transfer.cancelled": _NOTIFY,
    "transfer.parked": _NOTIFY,
    "notification.pending": _DELIVER,
    "webhook.pending": _DELIVER_WEBHOOKS,
}


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """One queue, named like its routing key: a single word, so that no key is the dotted end of another."""

    name: str
    exchange: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Topology:
    """Routes and queues for a given number of partitions."""

    partitions: int

    def queue_of(self, route: Route, partition_key: str) -> str:
        """Name the queue for an event: stable across processes and releases (CRC-32 of the debit account's id)."""
        if not route.partitioned:
            return route.family
        return f"{route.family}-{crc32(partition_key.encode()) % self.partitions}"

    def family_queues(self, family: str, index: int = 0, of: int = 1) -> list[str]:
        """List the queues of a worker role; worker `index` of `of` takes every `of`-th partition."""
        if family in ("risk", "posting"):
            return [f"{family}-{p}" for p in range(self.partitions) if p % of == index]
        return [family]

    def role_queues(self, role: str, index: int = 0, of: int = 1) -> list[str]:
        """List what a worker of this role takes from."""
        more = ["deliveries"] if role == "notifications" else []
        return [*self.family_queues(role, index, of), *more]

    def work_queues(self) -> Sequence[QueueSpec]:
        names = [
            *self.family_queues("risk"),
            *self.family_queues("posting"),
            "notifications",
            "deliveries",
            "maintenance",
        ]
        return [QueueSpec(name=name, exchange=WORK_EXCHANGE, arguments=_work_arguments(name)) for name in names]

    def desk_queues(self) -> Sequence[QueueSpec]:
        """Queues of last resort: undeliverable messages, and messages that no queue wanted."""
        # As often as it takes: a broker's own limit (20 from RabbitMQ 4 on) would drop what waits for the database.
        quorum = {"x-queue-type": "quorum", "x-delivery-limit": DESK_DELIVERY_LIMIT}
        return [
            QueueSpec(name=DEAD_QUEUE, exchange=DEAD_EXCHANGE, arguments=quorum),
            QueueSpec(name=LOST_QUEUE, exchange=LOST_EXCHANGE, arguments=quorum),
        ]


def _work_arguments(name: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": DEAD_EXCHANGE,
        "x-dead-letter-routing-key": DEAD_QUEUE,
        # At-least-once dead lettering keeps a message until the dead-letter queue has it; it needs reject-publish.
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-delivery-limit": DELIVERY_LIMIT,
    }
    if name.startswith(("risk-", "posting-")):
        arguments["x-single-active-consumer"] = True
    return arguments
