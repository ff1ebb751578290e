"""Where the broker's nodes are tried, and what is declared on them.

Declaring again is harmless; a different argument of an existing queue is an error.
"""

import random
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


# A round over all nodes that failed is followed by a wait, of about so long in the beginning and at most so long.
RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 0.2, 2.0


def nodes(broker_url: str) -> int:
    """Count the nodes that a BROKER_URL names, with semicolons in between."""
    return len(broker_url.split(";"))


def rotated(broker_url: str, turn: int) -> str:
    """Begin the list with another node: the one that `turn` rounds through the list come to."""
    urls = broker_url.split(";")
    first = turn % len(urls)
    return ";".join([*urls[first:], *urls[:first]])


def retry_intervals() -> dict[str, float]:
    """How long kombu's `ensure_connection` waits after each round over all nodes, drawn anew for each caller.

    A broker that is back is found within RETRY_SECONDS_MAX, and not by everybody in the same moment.
    """
    start, step = RETRY_SECONDS_MIN * random.uniform(0.5, 1.5), random.uniform(0.1, 0.4)  # noqa: S311  Jitter, no secret.
    longest = RETRY_SECONDS_MAX * random.uniform(0.5, 1.0)  # noqa: S311
    return {"interval_start": start, "interval_step": step, "interval_max": longest}


def declare_topology() -> list[str]:
    """Declare every exchange and queue of the topology on the broker and return the names of the queues."""
    topology = settings.TOPOLOGY
    with Connection(settings.BROKER_URL, connect_timeout=5) as connection:
        connection.ensure_connection(max_retries=10 * nodes(settings.BROKER_URL), **retry_intervals())
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
