"""The partitions of the other workers of a role: taken over when one of them dies, given back when it returns.

A partition's queue has a single active consumer: the first to subscribe is active, the rest stand by, and the broker
activates the next one the moment the active one's connection ends. A worker therefore subscribes its own partitions at
once and those of the others some seconds later, on a channel apart.

A worker that stands in does so for a turn. It ends the turn by closing that channel between two tasks, and queues up
again behind whoever waits: the owner, if it is back, is active then and keeps its partition. Closing the channel and
not cancelling the consumer is what keeps the order: the broker puts unacknowledged messages back at the front of the
queue before it activates the next consumer.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any, ClassVar

from celery import bootsteps
from kombu import Consumer

from bankcore import metrics
from bankcore.messaging.unpacking import keep_bytes

log = logging.getLogger(__name__)

# Owners that start together are subscribed by then, so that nobody stands in without need.
SUBSCRIBE_SECONDS = 3.0
TURN_SECONDS = 2.0
LOOK_SECONDS = 0.25


class Standby(bootsteps.StartStopStep):
    """Stand by for `queues`; make one with `standby_for`. For the solo pool only.

    Everything in here runs in the worker's only thread, between two tasks: nothing is in execution when a turn ends.
    """

    requires = ("celery.worker.consumer:Tasks",)

    queues: ClassVar[Sequence[str]] = ()

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._forget()

    def _forget(self) -> None:
        self.channel: Any = None
        self.in_hand: list[Any] = []
        self.handled: set[str] = set()
        self.next_at = 0.0
        self.timer_entry: Any = None

    def start(self, parent: Any) -> None:
        self._forget()
        self.next_at = time.monotonic() + SUBSCRIBE_SECONDS
        self.timer_entry = parent.timer.call_repeatedly(LOOK_SECONDS, self._look, (parent,))

    def stop(self, parent: Any) -> None:
        """The connection is gone or about to be closed, and the channel with it."""
        if self.timer_entry is not None:
            parent.timer.cancel(self.timer_entry)
        self._forget()

    def _look(self, parent: Any) -> None:
        if time.monotonic() < self.next_at or not parent.connection:
            return
        try:
            if self.channel is None:
                self._subscribe(parent)
            elif self.in_hand and all(message.acknowledged for message in self.in_hand):
                # A turn in which nothing was handled goes on, so that no message is put back time and again: the broker
                # counts that towards its delivery limit. So it does while one still waits its turn among the suspects
                # (messaging/consumer.py): that one would be put back, and handled here all the same.
                self._end_turn(parent)
        except parent.channel_errors as error:
            log.warning("cannot stand by for %s yet: %s", ", ".join(self.queues), error)
            # What this channel delivered is back in its queue, and will never be acknowledged on it.
            self.channel, self.in_hand, self.handled = None, [], set()
            self.next_at = time.monotonic() + SUBSCRIBE_SECONDS

    def _subscribe(self, parent: Any) -> None:
        queues = parent.app.amqp.queues
        self.channel = parent.connection.channel()
        keep_bytes(self.channel)
        # One message from each queue, as for the worker's own.
        self.channel.basic_qos(0, 1, False)
        consumer = Consumer(
            self.channel,
            # Bound copies carry their channel: this one's, not that of the worker's own partitions.
            queues=[queues[name](self.channel) for name in self.queues],
            on_message=lambda message: self._handle(parent, message),
            on_decode_error=parent.on_decode_error,
            accept=parent.app.conf.accept_content,
            auto_declare=False,
        )
        self.next_at = time.monotonic() + TURN_SECONDS
        consumer.consume()
        log.info("standing by for %s", ", ".join(self.queues))

    def _handle(self, parent: Any, message: Any) -> None:
        queue = message.delivery_info["routing_key"]
        if queue not in self.handled:
            log.warning("standing in for %s", queue)
        self.handled.add(queue)
        metrics.stood_in.labels(queue).inc()
        self.in_hand = [*(one for one in self.in_hand if not one.acknowledged), message]
        parent.handle_task_message(message)

    def _end_turn(self, parent: Any) -> None:
        channel, self.channel, self.handled, self.in_hand = self.channel, None, set(), []
        channel.close()
        # Behind whoever waits: the owner if it is back, or nobody, and then nothing was lost but a moment.
        self._subscribe(parent)


def standby_for(queues: Sequence[str]) -> type[Standby]:
    """Make the step for a worker of the solo pool that stands by for these queues."""
    return type("Standby", (Standby,), {"queues": tuple(queues), "name": "Standby"})
