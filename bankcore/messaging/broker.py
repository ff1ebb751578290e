"""Declare exchanges and queues. Declaring again is harmless; a different argument of an existing queue is an error."""

from typing import Any

from amqp.exceptions import PreconditionFailed
from django.conf import settings
from kombu import Connection, Exchange, Queue


class QueueDiffers(Exception):
    """A queue is there with other arguments than this release wants, and RabbitMQ changes none in place."""

    def __init__(self, queue: str, detail: str) -> None:
        super().__init__(
            f"The queue {queue} exists with other arguments ({detail}). RabbitMQ changes none in place:"
            " stop workers and relays, delete the queue, declare the topology again, and start them."
            " What a work queue held is sent again by the sweep; let dead_letters drain first."
        )


def declare_topology() -> list[str]:
    """Declare every exchange and queue of the topology on the broker and return the names of the queues."""
    topology = settings.TOPOLOGY
    with Connection(settings.BROKER_URL, connect_timeout=5) as connection:
        connection.ensure_connection(max_retries=10, interval_start=0.2, interval_step=0.3)
        channel: Any = connection.default_channel
        amqp = settings.BROKER_URL.startswith("amqp")
        _exchanges(channel, lost_arguments={"alternate-exchange": "bank.lost"} if amqp else {})
        # The desk's queues come first: a work queue dead-letters into them from its first message on.
        names = []
        for spec in [*topology.desk_queues(), *topology.work_queues()]:
            kind = "fanout" if spec.exchange == "bank.lost" else "topic"
            exchange = Exchange(spec.exchange, type=kind, durable=True, no_declare=True)
            queue = Queue(
                spec.name, exchange, routing_key=spec.name, queue_arguments=dict(spec.arguments) if amqp else {}
            )
            try:
                queue(channel).declare()
            except PreconditionFailed as error:
                raise QueueDiffers(spec.name, str(error)) from error
            names.append(spec.name)
    return names


def _exchanges(channel: Any, lost_arguments: dict[str, str]) -> None:
    Exchange("bank.lost", type="fanout", durable=True)(channel).declare()
    # The work exchange has no alternate: the relay publishes `mandatory`, learns of a return and keeps the event due.
    Exchange("bank", type="topic", durable=True)(channel).declare()
    for name in ("bank.dead", "bank.events"):
        Exchange(name, type="topic", durable=True, arguments=lost_arguments)(channel).declare()
