"""Read a message that nobody could handle: which task it asked for, with which ids, or why that will never be known.

Reads what this project's publisher writes (a JSON call of a task with one list of ids, perhaps compressed), nothing
else; a message proves nothing, so what is found here is only ever used to look at the database again.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from backports import zstd
from django.conf import settings

from bankcore.messaging.unpacking import UNREADABLE_HEADER

# Far above 500 ids. What is compressed may not grow beyond it either.
BODY_BYTES_MAX = 256 * 1024
SUBJECT_CHARACTERS_MAX = 64
BIGINT_MAX = 2**63 - 1


class Reading(NamedTuple):
    task: str = ""
    ids: tuple[str | int, ...] = ()
    why_not: str = ""


class _Unreadable(Exception):
    pass


def read(headers: Mapping[str, Any], body: bytes) -> Reading:
    """Say what the message asked for; `why_not` is the reason why it cannot be told."""
    try:
        task = _task(headers)
        return Reading(task, _ids(_call(headers, body)))
    except _Unreadable as why:
        return Reading(why_not=str(why))


def _task(headers: Mapping[str, Any]) -> str:
    if UNREADABLE_HEADER in headers:
        raise _Unreadable("Its headers or properties cannot be read.")
    task = headers.get("task")
    if not isinstance(task, str) or not task:
        raise _Unreadable("Its headers name no task.")
    if task not in {route.task for route in settings.TOPOLOGY_ROUTES.values()}:
        raise _Unreadable(f"No event asks for the task {task[:128]!r}: there is nothing in the database to send again.")
    return task


def _call(headers: Mapping[str, Any], body: bytes) -> Any:
    if headers.get("content_type") != "application/json":
        raise _Unreadable(f"Its content type is {str(headers.get('content_type'))[:80]!r}, not JSON.")
    if len(body) > BODY_BYTES_MAX:
        raise _Unreadable(f"Its body has {len(body):,} bytes; at most {BODY_BYTES_MAX:,} are read.")
    try:
        return json.loads(_decompressed(headers.get("compression"), body).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _Unreadable(f"Its body is not JSON in UTF-8: {error}"[:300]) from error


def _decompressed(compression: Any, body: bytes) -> bytes:
    if not compression:
        return body
    try:
        if compression == "application/zstd":
            plain = zstd.ZstdDecompressor().decompress(body, max_length=BODY_BYTES_MAX + 1)
        elif compression == "application/x-gzip":
            plain = zlib.decompressobj().decompress(body, BODY_BYTES_MAX + 1)
        else:
            raise _Unreadable(f"Its compression {str(compression)[:80]!r} is none that is used here.")
    except (zstd.ZstdError, zlib.error) as error:
        # Letters of the first release were kept decompressed, under headers that still say otherwise.
        if body[:1] == b"[":
            return body
        raise _Unreadable(f"Its body cannot be decompressed: {error}"[:300]) from error
    if len(plain) > BODY_BYTES_MAX:
        raise _Unreadable(f"Decompressed, its body has more than {BODY_BYTES_MAX:,} bytes.")
    return plain


def _ids(call: Any) -> tuple[str | int, ...]:
    match call:
        case [[[*ids]], *_] if ids:
            pass
        case _:
            raise _Unreadable("Its body is not a call of a task with one list of ids.")
    for one in ids:
        if not _is_id(one):
            raise _Unreadable(f"Among its ids is {str(one)[:80]!r}, which is none.")
    return tuple(ids)


def _is_id(value: Any) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= SUBJECT_CHARACTERS_MAX and value.isascii() and value.isprintable()
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= BIGINT_MAX
