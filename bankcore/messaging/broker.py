"""Declare exchanges and queues. Declaring again is harmless; a different argument of an existing queue is an error."""

from typing import Any

from django.conf import settings
from kombu import Connection, Exchange, Queue


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
            queue(channel).declare()
            names.append(spec.name)
    return names


def _exchanges(channel: Any, lost_arguments: dict[str, str]) -> None:
    Exchange("bank.lost", type="fanout", durable=True)(channel).declare()
    # The work exchange has no alternate: the relay publishes `mandatory`, learns of a return and keeps the event due.
    Exchange("bank", type="topic", durable=True)(channel).declare()
    for name in ("bank.dead", "bank.events"):
        Exchange(name, type="topic", durable=True, arguments=lost_arguments)(channel).declare()
