"""The dead-letter desk's intake: what could not be handled becomes a row that stays until somebody decides."""

import hashlib
import logging
import time
import traceback
from typing import Any

from celery import bootsteps
from django.conf import settings
from django.db import connection
from kombu import Consumer, Exchange, Queue

from bankcore.messaging.models import DeadLetter

log = logging.getLogger(__name__)

DETAIL_CHARACTERS_MAX = 20_000
RETRY_SECONDS = 2.0


def park_work(*, task: str, subject: str, error: Exception, attempts: int) -> DeadLetter:
    """Record work on `subject` that failed for good, with its traceback. Call inside the transaction that parks it."""
    detail = "".join(traceback.format_exception(error))[-DETAIL_CHARACTERS_MAX:]
    return DeadLetter.objects.create(
        task=task,
        subject=subject,
        cause=f"{type(error).__name__}: {error}".replace("\x00", "")[:200],
        detail=detail.replace("\x00", ""),
        attempts=attempts,
    )


def record_message(message: Any) -> DeadLetter:
    """Keep a message nobody could handle: its raw bytes, its headers, and what the broker says of its death."""
    headers = dict(message.headers or {})
    death = (headers.get("x-death") or [{}])[0]
    body = message.body if isinstance(message.body, bytes) else str(message.body).encode("utf-8", "replace")
    return DeadLetter.objects.create(
        task=str(headers.get("task", ""))[:128],
        queue=str(death.get("queue", headers.get("x-first-death-queue", "")))[:128],
        cause=f"undeliverable: {death.get('reason', headers.get('x-first-death-reason', 'unknown'))}"[:200],
        headers=_plain({**headers, "properties": message.properties, "content_type": message.content_type}),
        body=body,
        body_digest=hashlib.sha256(body).hexdigest(),
        attempts=int(headers.get("x-delivery-count", 0) or 0),
    )


def _plain(value: Any) -> Any:
    """Make a value storable as JSON in PostgreSQL, whatever came over the wire."""
    if isinstance(value, dict):
        return {str(k).replace("\x00", ""): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bool | int | type(None)):
        return value
    return str(value).encode("utf-8", "replace").decode().replace("\x00", "")


class DeadLetterStep(bootsteps.ConsumerStep):
    """Lets the maintenance worker read the dead-letter queue beside its tasks: each message becomes a row."""

    requires = ("celery.worker.consumer:Connection",)

    def get_consumers(self, channel: Any) -> list[Consumer]:
        arguments = {"x-queue-type": "quorum"} if settings.BROKER_URL.startswith("amqp") else {}
        queue = Queue(
            "dead_letters",
            Exchange("bank.dead", type="topic", no_declare=True),
            routing_key="dead_letters",
            queue_arguments=arguments,
            no_declare=True,
        )
        return [
            Consumer(
                channel,
                queues=[queue],
                on_message=self.take,
                # What cannot even be decompressed is kept as it came; without this it would end the worker.
                on_decode_error=lambda message, error: self.take(message),
                prefetch_count=20,
                auto_declare=False,
            )
        ]

    def take(self, message: Any) -> None:
        try:
            letter = record_message(message)
        except Exception:
            # Kept by the broker until the database can take it; the pause keeps this from being a busy loop.
            log.exception("cannot record a dead letter yet")
            connection.close()
            time.sleep(RETRY_SECONDS)
            message.requeue()
            return
        message.ack()
        log.error("dead letter %s from %s: %s", letter.pk, letter.queue, letter.cause)
