"""The clients' own record of a run: append-only lines of JSON, the only evidence that the verdict believes.

Each attempt of an operation writes `invoke` before it leaves and then one of three: `ok` (the bank said yes), `fail`
(it said no, for good) or `info` (nobody knows: cut off, timed out, told to come back). A client that is killed leaves
an `invoke` without an end, and perhaps half a line: both are read as "nobody knows".
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OUTCOMES = ("ok", "fail", "info")


class History:
    """One writer's file. A line is one write, so that lines of several processes never mix."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        # After a writer that died in the middle of a line.
        if os.fstat(self._file).st_size and not path.read_bytes().endswith(b"\n"):
            os.write(self._file, b"\n")

    def write(self, event: str, **facts: Any) -> None:
        line = {"t": time.monotonic(), "event": event, **facts}
        os.write(self._file, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


def digest(body: bytes) -> str:
    """Name an answer by its content, so that two answers can be compared without keeping them."""
    return hashlib.sha256(body).hexdigest()[:16]


@dataclass
class Operation:
    """One request with everything that came back for it, over all its attempts."""

    name: str
    kind: str
    purpose: str
    path: str
    key: str
    body: Any
    # The statuses that this operation may end with; any other is a bad answer.
    expected: list[int]
    began: float
    # When the first definite answer came; None while nobody knows.
    ended: float | None = None
    outcome: str = "info"
    status: int = 0
    answer: dict[str, Any] = field(default_factory=dict)
    # One (status, digest) per definite answer: a repetition must get the same.
    answers: list[tuple[int, str]] = field(default_factory=list)
    attempts: int = 0

    @property
    def accepted(self) -> bool:
        return self.outcome == "ok"

    @property
    def unknown(self) -> bool:
        return self.outcome == "info"


@dataclass
class Record:
    """A whole run as its clients saw it."""

    operations: dict[str, Operation] = field(default_factory=dict)
    # {"rich": [...], "poor": [...], "hot": [...]} account ids, and each account's opening balance.
    groups: dict[str, list[str]] = field(default_factory=dict)
    opening_minor: dict[str, int] = field(default_factory=dict)
    review_amount_minor: int = 0
    # Every answer of 5xx or 429 and everything else that a client did not expect: (operation, what).
    complaints: list[tuple[str, str]] = field(default_factory=list)
    torn_lines: int = 0


def read(folder: Path) -> Record:
    """Read every history file of a run's folder; half a line is counted and left out."""
    record = Record()
    for line in _lines(folder, record):
        _take(record, line)
    return record


def _lines(folder: Path, record: Record) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("history*.jsonl")):
        with path.open("rb") as lines:
            for raw in lines:
                try:
                    line = json.loads(raw)
                except ValueError:
                    record.torn_lines += 1
                    continue
                if isinstance(line, dict) and "event" in line:
                    yield line


def _take(record: Record, line: dict[str, Any]) -> None:
    event = line["event"]
    if event == "accounts":
        record.groups.setdefault(line["group"], []).extend(line["accounts"])
        record.opening_minor.update(dict.fromkeys(line["accounts"], line["opening_minor"]))
        record.review_amount_minor = line.get("review_amount_minor", record.review_amount_minor)
    elif event == "complaint":
        record.complaints.append((line["op"], line["what"]))
    elif event == "invoke":
        operation = record.operations.get(line["op"])
        if operation is None:
            operation = record.operations[line["op"]] = Operation(
                name=line["op"],
                kind=line["kind"],
                purpose=line.get("purpose", ""),
                path=line["path"],
                key=line.get("key", ""),
                body=line.get("body"),
                expected=line.get("expected", []),
                began=line["t"],
            )
        operation.attempts += 1
    elif event in OUTCOMES and line["op"] in record.operations:
        _settle(record.operations[line["op"]], line)


def _settle(operation: Operation, line: dict[str, Any]) -> None:
    if line["event"] == "info":
        return
    operation.answers.append((line["status"], line.get("digest", "")))
    if operation.ended is None:
        operation.ended = line["t"]
        operation.outcome = line["event"]
        operation.status = line["status"]
        operation.answer = line.get("answer") or {}


def problem_of(status: int, content_type: str, body: bytes, retry_after: str | None) -> str | None:
    """Say what is wrong with an answer of 429 or 5xx, which must be an honest, machine-readable "not now"."""
    if status != 429 and status < 500:
        return None
    if not content_type.startswith("application/problem+json"):
        return f"{status} is no problem+json but {content_type or 'without a type'}: {body[:120]!r}"
    try:
        retryable = json.loads(body).get("retryable")
    except (ValueError, AttributeError):
        return f"{status} has a body that is no problem: {body[:120]!r}"
    if not isinstance(retryable, bool):
        return f"{status} does not say whether it is retryable"
    if status in (429, 503) and not (retryable and retry_after):
        return f"{status} without retryable and Retry-After"
    if status not in (429, 503):
        return f"{status}: {body[:200]!r}"
    return None
