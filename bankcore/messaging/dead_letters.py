"""The dead-letter desk's intake: what could not be handled becomes a row that stays until somebody decides."""

import hashlib
import logging
import math
import time
import traceback
from typing import Any

from celery import bootsteps
from django.conf import settings
from django.db import connection, transaction
from django.db.models import QuerySet
from django.db.models.functions import Now
from kombu import Consumer, Exchange, Queue

from bankcore.messaging import autopsy, deadly, undelivered
from bankcore.messaging.models import DeadLetter, DeskRequest
from bankcore.messaging.pause import is_asked_to_stop, is_infrastructure
from bankcore.messaging.unpacking import keep_bytes

log = logging.getLogger(__name__)

DETAIL_CHARACTERS_MAX = 20_000
RETRY_SECONDS = 2.0


def park_work(*, task: str, subject: str, error: Exception, attempts: int) -> DeadLetter:
    """Record work on `subject` that failed for good, with its traceback. Call inside the transaction that parks it."""
    detail = "".join(traceback.format_exception(error))[-DETAIL_CHARACTERS_MAX:]
    # To count by: PostgreSQL adds lines that name the place, which is in the detail.
    cause = next(iter(_text(f"{type(error).__name__}: {error}").splitlines()))
    return DeadLetter.objects.create(
        task=task,
        subject=subject,
        cause=cause[:200],
        detail=_text(detail),
        attempts=attempts,
    )


def record_message(message: Any) -> DeadLetter:
    """Keep a message nobody could handle: its bytes as they came, its headers, and the broker's word on its death.

    Whatever a stranger wrote into it, it is kept: headers that the database cannot hold are left out, which it says.
    """
    body = _bytes_as_they_came(message)
    try:
        with transaction.atomic():
            return DeadLetter.objects.create(**_facts(message, body), **_kept(body))
    except Exception as error:
        if is_infrastructure(error):
            raise
        log.exception("the headers of a dead letter cannot be kept")
        return DeadLetter.objects.create(
            cause="undeliverable: unreadable headers",
            detail=f"Its headers cannot be kept: {_text(error)}"[:DETAIL_CHARACTERS_MAX],
            **_kept(body),
        )


def _is_recorded(message: Any) -> bool:
    """Tell whether this very message, at this very death, has its letter: who wrote that died before it could say so.

    Only what the broker delivers again is looked for, among all letters. Its delivery count is the desk's own by now.
    """
    message_id, deaths = message.properties.get("message_id"), (message.headers or {}).get("x-death")
    if not message_id or not message.delivery_info.get("redelivered"):
        return False
    told = {"properties": {"message_id": message_id}, **({"x-death": deaths} if deaths else {})}
    digest = hashlib.sha256(_bytes_as_they_came(message)).hexdigest()
    return DeadLetter.objects.filter(body_digest=digest, headers__contains=_plain(told)).exists()


def _kept(body: bytes) -> dict[str, Any]:
    return {"body": body, "body_digest": hashlib.sha256(body).hexdigest()}


def _facts(message: Any, body: bytes) -> dict[str, Any]:
    headers = dict(message.headers or {})
    deaths = headers.get("x-death")
    death = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}
    envelope = {"properties": message.properties, "content_type": message.content_type}
    kept = _plain({**headers, **envelope, "content_encoding": message.content_encoding})
    cause = autopsy.cause(headers, content_type=message.content_type, body=body)
    return {
        "task": _text(headers.get("task", ""))[:128],
        "queue": _text(death.get("queue", headers.get("x-first-death-queue", "")))[:128],
        "cause": _text(f"undeliverable: {cause}")[:200],
        "detail": _text(undelivered.read(kept, body).why_not),
        "headers": kept,
        "attempts": _whole(headers.get("x-delivery-count")),
    }


def close_about(subject: str, *, state: str, resolution: str, user_id: int | None = None) -> int:
    """Resolve every open letter about `subject`, with what was asked of the desk about them; return how many.

    Call inside the transaction that ended the subject's wait, after locking the subject.
    """
    return close(DeadLetter.objects.filter(subject=subject), state=state, resolution=resolution, user_id=user_id)


def close(letters: "QuerySet[DeadLetter]", *, state: str, resolution: str, user_id: int | None) -> int:
    """Resolve those of the letters that are open: each is resolved once, whoever comes at the same time."""
    keys = list(letters.filter(state=DeadLetter.State.OPEN).order_by("pk").values_list("pk", flat=True))
    if not keys:
        return 0
    closed = DeadLetter.objects.filter(pk__in=keys, state=DeadLetter.State.OPEN).update(
        state=state, resolution=resolution[:500], resolved_by=user_id, resolved_at=Now()
    )
    DeskRequest.objects.filter(letter__in=keys, decision="").update(
        decision=DeskRequest.Decision.VOID, decided_by=user_id, decided_at=Now()
    )
    return closed


def _bytes_as_they_came(message: Any) -> bytes:
    body = getattr(message, "as_it_came", message.body)
    return bytes(body) if isinstance(body, bytes | memoryview) else str(body).encode("utf-8", "replace")


def _whole(value: Any) -> int:
    return min(value, 2**31 - 1) if isinstance(value, int) and value > 0 else 0


def _plain(value: Any) -> Any:
    """Make a value storable as JSON in PostgreSQL, whatever came over the wire."""
    if isinstance(value, dict):
        return {_text(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bool | int | type(None)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return _text(value)


def _text(value: Any) -> str:
    """Make text of a value that PostgreSQL can keep: without NUL, and without halves of characters."""
    return str(value).encode("utf-8", "replace").decode().replace("\x00", "")


class DeadLetterStep(bootsteps.ConsumerStep):
    """Lets the maintenance worker read the dead-letter queue beside its tasks: each message becomes a row."""

    requires = ("celery.worker.consumer:Connection",)

    def get_consumers(self, channel: Any) -> list[Consumer]:
        keep_bytes(channel)
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
            if _is_recorded(message):
                message.ack()
                return
            with transaction.atomic():
                letter = record_message(message)
                if letter.cause.endswith(autopsy.KILLED):
                    body, kind = _bytes_as_they_came(message), message.content_type
                    deadly.isolate(dict(message.headers or {}), queue=letter.queue, body=body, content_type=kind)
        except Exception:
            log.exception("cannot record a dead letter yet")
            connection.close()
            # The broker keeps it until the database can take it. A worker that is to stop does not ask for it again:
            # it would get it again at once, and never come to an end.
            if not is_asked_to_stop():
                time.sleep(RETRY_SECONDS)
                message.requeue()
            return
        message.ack()
        log.error("dead letter %s from %s: %s", letter.pk, letter.queue, letter.cause)
