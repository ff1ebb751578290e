"""Every kind of message that nobody can handle, as it goes over the wire, and the cause the desk is to name."""

import json
import struct
import time
from typing import Any
from uuid import uuid4

from amqp.basic_message import Message
from backports import zstd
from django.test import override_settings

from bankcore.messaging import envelope

QUEUE = "posting-0"
TASK = "transfers.post_transfers"
NOTHING = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
ZSTD = "application/zstd"
PICKLE = {"content_type": "application/x-python-serialize"}
JSON = {"content_type": "application/json", "content_encoding": "utf-8"}


# Bits of the flags in front of a message's properties.
HEADERS, MESSAGE_ID = 1 << 13, 1 << 7


class RawMessage(Message):
    """A message whose properties are these bytes."""

    def __init__(self, body: bytes, properties: bytes) -> None:
        super().__init__(body)
        self.raw = properties

    def _serialize_properties(self) -> bytes:
        return self.raw


def table(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def nested(levels: int) -> bytes:
    content = b""
    for _ in range(levels):
        content = b"\x01aF" + table(content)
    return content


UNREADABLE = {
    "an id in Latin-1": struct.pack(">H", MESSAGE_ID) + b"\x04\xe4\xff\xfe\xfc",
    "tables in tables": struct.pack(">H", HEADERS) + table(nested(3_000)),
    "tables to the end of the frame": struct.pack(">H", HEADERS) + table(nested(15_000)),
    "a moment in milliseconds": struct.pack(">H", HEADERS) + table(b"\x01aT" + struct.pack(">Q", 1_700_000_000_000)),
    "a moment beyond every calendar": struct.pack(">H", HEADERS) + table(b"\x01aT" + struct.pack(">Q", 2**63 + 5)),
}


def task_headers(task: Any = TASK, **changes: Any) -> dict[str, Any]:
    task_id = str(uuid4())
    return {"lang": "py", "task": task, "id": task_id, "root_id": task_id, "retries": 0, "eta": None, **changes}


def call(*args: Any, kwargs: Any = None, embedded: Any = None) -> bytes:
    return json.dumps([list(args), kwargs or {}, {**NOTHING, **(embedded or {})}]).encode()


def signed(body: bytes, headers: dict[str, Any] | None = None, queue: str = QUEUE, **after: Any) -> dict[str, Any]:
    """Headers with a signature that fits; `after` is changed when it is there."""
    headers = headers if headers is not None else task_headers()
    envelope.sign(headers, queue=queue, body=body)
    return headers | after


def kinds() -> dict[str, tuple[bytes, dict[str, Any], dict[str, Any], str]]:
    """What each is: its body, headers, properties, and the cause."""
    mark = str(uuid4())
    good = call([mark])
    packed = zstd.compress(good)
    zeros = zstd.compress(b'[["' + b"0" * 200_000_000 + b'"]]')
    secretive = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 15})
    hidden = secretive.compress(b'[["' + b"0" * 50_000_000) + secretive.flush()
    old = task_headers()
    envelope.sign(old, queue=QUEUE, body=good)
    old[envelope.ISSUED_AT_HEADER] = int((time.time() - 30 * 86_400) * 1000)
    old[envelope.SIGNATURE_HEADER] = envelope._signature(_key(), old, QUEUE, good)
    next_version = task_headers()
    next_version |= {envelope.VERSION_HEADER: 2, envelope.ISSUED_AT_HEADER: int(time.time() * 1000)}
    next_version[envelope.SIGNATURE_HEADER] = envelope._signature(_key(), next_version, QUEUE, good)
    with override_settings(MESSAGE_KEYS=["somebody else's key, long enough to be one"]):
        strangers = signed(good)
    found = {
        "no JSON": (b"{nonsense " + mark.encode(), task_headers(), JSON, "no JSON"),
        "cut off": (good[:-9], task_headers(), JSON, "no JSON"),
        "no UTF-8": (b"\xff\xfe\x00" + mark.encode(), task_headers(), JSON, "no JSON"),
        "empty": (b"", task_headers(), JSON, "no JSON"),
        "deeply nested": (b"[" * 100_000, task_headers(), JSON, "no JSON"),
        "pickle": (b"\x80\x04N.", task_headers(), PICKLE, "wrong content type"),
        "yaml": (b"mark: 1", task_headers(), {"content_type": "application/x-yaml"}, "wrong content type"),
        "a poem": (b"hello", task_headers(), {"content_type": "text/x-poem"}, "wrong content type"),
        "unknown encoding": (good, task_headers(), JSON | {"content_encoding": "utf-99"}, "unsigned"),
        "unknown compression": (good, task_headers(compression="application/x-nope"), JSON, "unknown compression"),
        "gzip": (good, task_headers(compression="application/x-gzip"), JSON, "unknown compression"),
        "bzip2": (good, task_headers(compression="application/x-bz2"), JSON, "unknown compression"),
        "lzma": (good, task_headers(compression="application/x-lzma"), JSON, "unknown compression"),
        "broken compression": (b"not zstd", task_headers(compression=ZSTD), JSON, "broken compression"),
        "cut compression": (packed[:-5], task_headers(compression=ZSTD), JSON, "broken compression"),
        "a bomb": (zeros, signed(zeros, task_headers(compression=ZSTD)), JSON, "decompression bomb"),
        "a bomb that does not say so": (hidden, task_headers(compression=ZSTD), JSON, "decompression bomb"),
        "no headers": (good, {}, JSON, "no task named"),
        "a number": (b"7", signed(b"7"), JSON, "no call"),
        "a text": (b'"text"', signed(b'"text"'), JSON, "no call"),
        "null": (b"null", signed(b"null"), JSON, "no call"),
        "an object": (b"{}", signed(b"{}"), JSON, "no call"),
        "one list too few": (b"[[]]", signed(b"[[]]"), JSON, "no call"),
        "arguments that are none": (b"[7, 7, 7]", signed(b"[7, 7, 7]"), JSON, "no call"),
        "unknown task": (good, signed(good, task_headers("transfers.nonsense")), JSON, "unknown task"),
        "a task of Celery's": (good, signed(good, task_headers("celery.chunks")), JSON, "unknown task"),
        "a task that is no text": (good, task_headers(7), JSON, "no task named"),
        "no id": (good, {"task": TASK}, JSON, "no id"),
        "an eta of nonsense": (good, task_headers(eta="soon"), JSON, "eta"),
        "an eta in the year 9999": (good, signed(good, task_headers(eta="9999-12-31T00:00:00+00:00")), JSON, "eta"),
        "expired": (good, signed(good, expires="2020-01-01T00:00:00+00:00"), JSON, "expires"),
        "unsigned": (good, task_headers(), JSON, "unsigned"),
        "half signed": (good, signed(good, **{envelope.ISSUED_AT_HEADER: None}), JSON, "forged"),
        "signed by a stranger": (good, strangers, JSON, "forged"),
        "signed for another task": (good, signed(good, task="transfers.check_risk"), JSON, "forged"),
        "signed for another id": (good, signed(good, id=str(uuid4())), JSON, "forged"),
        "signed for another queue": (good, signed(good, queue="posting-1"), JSON, "forged"),
        "signed for another body": (good, signed(call(["1"])), JSON, "forged"),
        "of the next version": (good, next_version, JSON, "unknown version"),
        "a month old": (good, old, JSON, "too old"),
    }
    for field in envelope.RUNNING_FIELDS:
        body = call([mark], embedded={field: [{"task": "transfers.prove_books", "args": [], "kwargs": {}}]})
        found[f"with {field}"] = (body, signed(body), JSON, "carries work")
    for name, body in {
        "no list of ids": call("x"),
        "no arguments": call(),
        "no ids": call([]),
        "too many ids": call(["1"] * 600),
        "ids of the wrong type": call([1.5, None]),
        "an amount besides": call([mark], kwargs={"amount_minor": 1}),
    }.items():
        found[name] = (body, signed(body), JSON, "wrong arguments")
    large = call(["1" * 300_000])
    found["too large"] = (large, signed(large), JSON, "too large")
    return found


def _key() -> str:
    from django.conf import settings

    return str(settings.MESSAGE_KEYS[0])
