"""The envelope of a message: which version it is, and a signature that binds task, id, queue and body.

A message proves nothing about money: it carries ids, and amounts are read from rows. The signature keeps strangers from
making workers look, run other tasks, or run a task's callbacks; and it tells the desk who wrote what it finds.
Celery's own fields that run or drop something (callbacks, errbacks, chord, chain, eta, expires) are refused.
"""

import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from celery.app.amqp import AMQP
from django.conf import settings
from kombu import Producer
from kombu.pools import ProducerPool

from bankcore.messaging.unpacking import BYTES_MAX

VERSION = 1
VERSIONS_READ = frozenset({1})
VERSION_HEADER = "bankcore-version"
ISSUED_AT_HEADER = "bankcore-issued-at"
SIGNATURE_HEADER = "bankcore-signature"

# What Celery would run after, around or instead of the task.
RUNNING_FIELDS = ("callbacks", "errbacks", "chain", "chord")
# How the body of a message ends that asks for its task alone, as every one of ours does: no need to decode it to see.
NOTHING_MORE = b', {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
_KEPT_HEADERS = ("lang", "task", "id", "root_id", "argsrepr", "kwargsrepr", "origin", "compression")

NO_SHARED_KEY = (
    "Messages are signed, and this process has no key that others share: set SECRET_KEY (or MESSAGE_KEY) to the same"
    " value for every relay and worker."
)


class Refused(Exception):
    """A message that is not handled; `kind` is a few words to count by."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(detail or kind)
        self.kind = kind


# -- writing -----------------------------------------------------------------------------------------------------------


def sign(headers: dict[str, Any], *, queue: str, body: bytes) -> None:
    """Add version, moment and signature to the headers of a task message, for the bytes that go over the wire."""
    issued_at = int(time.time() * 1000)
    headers[VERSION_HEADER] = VERSION
    headers[ISSUED_AT_HEADER] = issued_at
    headers[SIGNATURE_HEADER] = _signature(settings.MESSAGE_KEYS[0], headers, queue, body)


def _signature(secret: str, headers: Mapping[str, Any], queue: str, body: bytes) -> str:
    key = hashlib.sha256(b"bankcore message signature\x00" + secret.encode()).digest()
    signed = [
        headers[VERSION_HEADER],
        str(headers.get("task")),
        str(headers.get("id")),
        queue,
        headers[ISSUED_AT_HEADER],
        hashlib.sha256(body).hexdigest(),
    ]
    return hmac.new(key, json.dumps(signed).encode(), hashlib.sha256).hexdigest()


class SigningProducer(Producer):
    """Signs every task message it publishes, after it was serialized and compressed."""

    def _publish(
        self,
        body: Any,
        priority: Any,
        content_type: Any,
        content_encoding: Any,
        headers: Any,
        *args: Any,
        **options: Any,
    ) -> Any:
        properties, routing_key, *rest = args
        if headers and "task" in headers:
            sign(headers, queue=routing_key, body=body if isinstance(body, bytes) else body.encode())
        return super()._publish(
            body, priority, content_type, content_encoding, headers, properties, routing_key, *rest, **options
        )


class SigningAMQP(AMQP):
    """Lets everything this application publishes (beat included) go through a SigningProducer."""

    Producer = SigningProducer

    @property
    def producer_pool(self) -> ProducerPool:
        pool = super().producer_pool
        pool.Producer = SigningProducer
        return pool


# -- reading -----------------------------------------------------------------------------------------------------------


def check(headers: Mapping[str, Any], *, queue: str, body: bytes) -> None:
    """See to it that a message is one of ours, unchanged, in its own queue and of a version that is known here.

    `body` is what came over the wire. During a deploy from a release that did not sign, MESSAGE_UNSIGNED_UNTIL lets
    messages pass that have no signature at all; what they carry is checked like everything else.

    Raises:
        Refused: it is not, and nothing in it may be believed.
    """
    if len(body) > BYTES_MAX:
        raise Refused("too large", f"It has {len(body):,} bytes; at most {BYTES_MAX:,} are read.")
    if is_celerys(headers.get("task")):
        raise Refused("unknown task", "Celery's own tasks run others; none of them is used here.")
    if headers.get("eta") is not None:
        raise Refused("eta", "Work that is due later is a row in the database here, and never a message.")
    if headers.get("expires") is not None:
        raise Refused("expires", "It would be dropped after a while, and messages here are not.")
    if VERSION_HEADER not in headers and SIGNATURE_HEADER not in headers:
        _check_unsigned()
        return
    if headers.get(VERSION_HEADER) not in VERSIONS_READ or isinstance(headers[VERSION_HEADER], bool):
        known = ", ".join(map(str, sorted(VERSIONS_READ)))
        raise Refused("unknown version", f"Version {headers.get(VERSION_HEADER)!r} is not among those known: {known}.")
    issued_at, signature = headers.get(ISSUED_AT_HEADER), headers.get(SIGNATURE_HEADER)
    if not isinstance(issued_at, int) or isinstance(issued_at, bool) or not isinstance(signature, str):
        raise Refused("forged", "Its signature or the moment it was signed is missing.")
    given = signature.encode("utf-8", "replace")
    expected = (_signature(secret, headers, queue, body).encode() for secret in settings.MESSAGE_KEYS)
    if not any(hmac.compare_digest(one, given) for one in expected):
        raise Refused("forged", "Its signature fits neither this task, id, queue and body nor a key that is known.")
    if time.time() - issued_at / 1000 > settings.MESSAGE_AGE_SECONDS_MAX:
        raise Refused("too old", f"It was signed at {datetime.fromtimestamp(issued_at / 1000, UTC).isoformat()}.")


def _check_unsigned() -> None:
    until = settings.MESSAGE_UNSIGNED_UNTIL
    if until is None or datetime.now(UTC) >= until:
        raise Refused("unsigned", "It has no signature.")


def check_call(call: Any) -> None:
    """See to it that a decoded body is a call of a task and asks Celery to run nothing else.

    Raises:
        Refused: it is not, or does.
    """
    match call:
        case [list(), dict(), dict() as embedded]:
            running = [field for field in embedded if embedded[field] and field in RUNNING_FIELDS]
            if running:
                raise Refused("carries work", f"It asks to run more than its task: {', '.join(running)}.")
        case _:
            raise Refused("no call", "Its body is not a call of a task.")


def is_celerys(task: Any) -> bool:
    return isinstance(task, str) and task.startswith("celery.")


def age_seconds(headers: Mapping[str, Any]) -> float:
    """Tell how long ago a message was signed; an unsigned one is new."""
    issued_at = headers.get(ISSUED_AT_HEADER)
    return time.time() - issued_at / 1000 if isinstance(issued_at, int) else 0.0


def kept_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of the headers what a task needs: whatever else was added on the way has no say."""
    return {name: headers[name] for name in _KEPT_HEADERS if name in headers}


def is_id_list(ids: Any) -> bool:
    """Tell whether this is what a task of an event takes: a list of ids, not too long."""
    if not isinstance(ids, list) or not 0 < len(ids) <= max(settings.MESSAGE_IDS_MAX, 500):
        return False
    return all(isinstance(i, str) or (isinstance(i, int) and not isinstance(i, bool)) for i in ids)
