"""Publish task messages and learn which of them the broker has taken. It refuses to guess: unconfirmed is not sent."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from celery import current_app
from kombu import Connection, Exchange

from bankcore import metrics
from bankcore.messaging.broker import nodes
from bankcore.messaging.envelope import SigningProducer
from bankcore.messaging.stretch import Place

log = logging.getLogger(__name__)

CONFIRM_SECONDS_MAX = 10.0
# A wave is sent in milliseconds; one that takes this long was sent by a process that was frozen in the middle of it.
SEND_SECONDS_MAX = 2.0
CONNECT_SECONDS_MAX = 3.0
COMPRESS_BYTES_MIN = 2048
_IDS_BYTES = 39  # One quoted UUID and its comma.


@dataclass(slots=True)
class TaskMessage:
    """A call of `task` with a list of ids, bound for `queue`; `event_ids` are the events it delivers.

    With a `place` its own id says which message came before it (messaging/stretch.py).
    """

    queue: str
    task: str
    ids: list[str | int]
    event_ids: list[int] = field(default_factory=list)
    place: Place | None = None


class Publisher:
    """One connection to the broker. On RabbitMQ each wave is pipelined and then confirmed or returned."""

    def __init__(self, broker_url: str, exchange: str) -> None:
        amqp = broker_url.startswith("amqp")
        options = {"read_timeout": CONFIRM_SECONDS_MAX, "write_timeout": 5} if amqp else {}
        self.connection = Connection(
            broker_url, connect_timeout=CONNECT_SECONDS_MAX, heartbeat=0, transport_options=options
        )
        # Each node once. One that takes the connection and says nothing costs what connecting may take.
        self.connection.ensure_connection(max_retries=nodes(broker_url) - 1)
        self.channel: Any = self.connection.channel()
        self.producer = SigningProducer(
            self.channel, exchange=Exchange(exchange, type="topic", no_declare=True), auto_declare=False
        )
        self.confirms = amqp
        self._pending: dict[int, TaskMessage] = {}
        self._tag = 0
        self._failed: list[TaskMessage] = []
        self._returned: set[str] = set()
        # Queues that nobody has declared; whoever declares them empties it.
        self.unroutable: set[str] = set()
        self._keys: dict[int, str] = {}
        if amqp:
            self.channel.confirm_select()
            self.channel.events["basic_ack"].add(self._on_ack)
            self.channel.events["basic_nack"].add(self._on_nack)
            self.channel.events["basic_return"].add(self._on_return)

    def publish(self, messages: Sequence[TaskMessage]) -> list[TaskMessage]:
        """Publish a wave and return the messages that the broker took; the others are to be sent again.

        Raises:
            OSError, amqp or kombu errors: the connection is gone or the broker did not confirm in time; nothing may be
            taken as sent, and this publisher is to be closed.
        """
        self._failed.clear()
        self._returned.clear()
        deadline = time.monotonic() + SEND_SECONDS_MAX
        for message in messages:
            if time.monotonic() > deadline:
                raise TimeoutError("stopped in the middle of a wave: another relay may be active")
            self._send(message)
        if self.confirms:
            self._await_confirms()
        failed = {id(message) for message in self._failed}
        return [message for message in messages if id(message) not in failed]

    def close(self) -> None:
        # A polite close waits for the broker, which may be what is ill.
        self.connection.collect(socket_timeout=0.5)

    def _send(self, message: TaskMessage) -> None:
        task_id = str(message.place or uuid4())
        many = len(message.ids) * _IDS_BYTES > COMPRESS_BYTES_MIN
        call = current_app.amqp.as_task_v2(
            task_id,
            message.task,
            args=(list(message.ids),),
            kwargs={},
            argsrepr=f"({len(message.ids)} ids)",
            kwargsrepr="{}",
        )
        self._tag += 1
        self._pending[self._tag] = message
        self._keys[self._tag] = task_id
        self.producer.publish(
            call.body,
            routing_key=message.queue,
            serializer="json",
            compression="zstd" if many else None,
            headers=call.headers,
            delivery_mode=2,
            mandatory=self.confirms,
            retry=False,
            message_id=task_id,
            **call.properties,
        )

    def _await_confirms(self) -> None:
        deadline = time.monotonic() + CONFIRM_SECONDS_MAX
        while self._pending:
            self.connection.drain_events(timeout=max(deadline - time.monotonic(), 0.001))

    def _on_ack(self, delivery_tag: int, multiple: bool) -> None:
        for tag in self._settled(delivery_tag, multiple):
            # A returned message is confirmed as well: no queue wanted it, so it was not sent.
            if self._keys.pop(tag, "") in self._returned:
                self._failed.append(self._pending[tag])
            self._pending.pop(tag, None)

    def _on_nack(self, delivery_tag: int, multiple: bool) -> None:
        for tag in self._settled(delivery_tag, multiple):
            self._keys.pop(tag, None)
            self._failed.append(self._pending.pop(tag))

    def _on_return(self, error: Any, exchange: str, routing_key: str, message: Any) -> None:
        self._returned.add(message.properties.get("message_id", ""))
        self.unroutable.add(routing_key)
        metrics.unroutable.labels(routing_key).inc()
        log.error("no queue takes messages for %s on exchange %s: is the topology declared?", routing_key, exchange)

    def _settled(self, delivery_tag: int, multiple: bool) -> list[int]:
        if multiple:
            return [tag for tag in self._pending if tag <= delivery_tag]
        return [delivery_tag] if delivery_tag in self._pending else []
