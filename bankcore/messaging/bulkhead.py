"""A bulkhead inside a worker: slow work may hold only some of its threads.

A worker of several queues takes from each no more messages than that queue's share. What waits for others (deliveries)
has a share smaller than the pool, so some threads are always left for the rest.
"""

from collections.abc import Mapping
from typing import Any

from celery import Celery
from kombu import Consumer


def limit_queues(app: Celery, shares: Mapping[str, int], usual: int) -> None:
    """Let this process's consumer hold at most `shares[queue]` messages of a queue at a time, and `usual` of any other.

    RabbitMQ applies a prefetch to the consumers that are made after it was set, so it is set before each queue. Without
    AMQP (Valkey as the broker) there is one prefetch for all queues, and no bulkhead.
    """

    class SharingConsumer(Consumer):
        def _basic_consume(self, queue: Any, *args: Any, **options: Any) -> Any:
            channel: Any = self.channel
            channel.basic_qos(0, shares.get(queue.name, usual), False)
            return super()._basic_consume(queue, *args, **options)

    app.amqp.Consumer = SharingConsumer
