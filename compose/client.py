"""A load driver for HTTP/1.1 that costs next to nothing, because it shares the machine with what it measures.

Requests are built as bytes beforehand and sent over kept-alive connections, one at a time on each. It measures and
counts; it knows nothing about money and judges nothing. Meant for loopback only.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

ANSWER_TIMEOUT_SECONDS = 60.0
ATTEMPTS_MAX = 50
RETRY_AFTER_SECONDS_MAX = 30.0
TRY_LATER = frozenset({429, 503})


@dataclass(frozen=True)
class Target:
    """Where requests go: a base address such as http://127.0.0.1:8000, and the headers that every request carries."""

    address: str
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def host(self) -> str:
        return urlsplit(self.address).hostname or "127.0.0.1"

    @property
    def port(self) -> int:
        return urlsplit(self.address).port or 80

    def post(
        self, path: str, body: bytes, headers: Sequence[tuple[str, str]] = (), content_type: str = "application/json"
    ) -> bytes:
        return self._request("POST", path, body, (("Content-Type", content_type), *headers))

    def get(self, path: str, headers: Sequence[tuple[str, str]] = ()) -> bytes:
        return self._request("GET", path, b"", headers)

    def _request(self, method: str, path: str, body: bytes, headers: Sequence[tuple[str, str]]) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}:{self.port}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (*self.headers, *headers)]
        return "\r\n".join((*lines, "", "")).encode() + body


@dataclass(frozen=True)
class Answer:
    """One response: the status, the header block as it came, the body."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: str) -> str | None:
        wanted = name.lower().encode() + b":"
        for line in self.head.split(b"\r\n")[1:]:
            if line.lower().startswith(wanted):
                return line[len(wanted) :].strip().decode()
        return None

    @property
    def retry_after_seconds(self) -> float:
        value = self.header("Retry-After") or ""
        return min(float(value), RETRY_AFTER_SECONDS_MAX) if value.isdigit() else 1.0


class Connection(asyncio.Protocol):
    """One kept-alive connection, opened again when the server has closed it."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answer] | None = None
        self._received = bytearray()

    async def send(self, request: bytes) -> Answer:
        """Send one request and wait for its answer. Raises ConnectionError or TimeoutError."""
        loop = asyncio.get_running_loop()
        if self._transport is None or self._transport.is_closing():
            where = self._target.host, self._target.port
            self._transport, _ = await loop.create_connection(lambda: self, *where)
        self._received.clear()
        self._waiting = loop.create_future()
        timer = loop.call_later(ANSWER_TIMEOUT_SECONDS, self._give_up)
        self._transport.write(request)
        try:
            return await self._waiting
        finally:
            timer.cancel()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._received += data
        answer = parse_answer(self._received)
        if answer is not None and self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(ConnectionResetError("the server closed the connection before it answered"))

    def _give_up(self) -> None:
        self._fail(TimeoutError(f"no answer within {ANSWER_TIMEOUT_SECONDS:.0f} seconds"))
        # A late answer must not be taken for the answer to the next request.
        self.close()

    def _fail(self, error: Exception) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)


def parse_answer(received: bytes | bytearray) -> Answer | None:
    """The answer that these bytes are, or None while some of it has not come yet."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(received[:end])
    folded, start = head.lower(), end + 4
    if b"transfer-encoding: chunked" in folded:
        body = _join_chunks(bytes(received[start:]))
    else:
        _, found, rest = folded.partition(b"content-length:")
        length = int(rest.split(b"\r\n", 1)[0]) if found else 0
        body = bytes(received[start : start + length]) if len(received) >= start + length else None
    return None if body is None else Answer(status=int(head[9:12]), head=head, body=body)


def _join_chunks(received: bytes) -> bytes | None:
    body, position = bytearray(), 0
    while (line_end := received.find(b"\r\n", position)) >= 0:
        size = int(received[position:line_end].split(b";")[0], 16)
        position = line_end + 2
        if size == 0:
            return bytes(body) if received.find(b"\r\n", position) >= 0 else None
        body += received[position : position + size]
        position += size + 2
    return None


@dataclass
class Load:
    """What came of a load. Latencies are those of wanted answers, in seconds; `turned_away` counts 429 and 503."""

    wanted: int
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    broken: int = 0

    @property
    def done(self) -> int:
        return len(self.latencies)

    @property
    def per_second(self) -> float:
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def turned_away(self) -> int:
        return sum(self.statuses[status] for status in TRY_LATER)

    def percentile_ms(self, percent: float) -> float | None:
        return percentile(self.latencies, percent, scale=1000.0)


def percentile(values: Sequence[float], percent: float, *, scale: float = 1.0) -> float | None:
    """The smallest value that `percent` of all values do not exceed (nearest rank); None without values."""
    if not values:
        return None
    rank = math.ceil(percent / 100.0 * len(values))
    return sorted(values)[max(rank, 1) - 1] * scale


def drive(
    target: Target,
    requests: Iterator[bytes],
    *,
    clients: int,
    seconds: float,
    wanted: int,
    per_second: float | None = None,
) -> Load:
    """Send requests from so many clients at once until they run out or the time is up.

    Without `per_second` each client sends its next request as soon as it has an answer. With it, requests leave on a
    fixed timetable and latency counts from the planned moment, so that a stalled server cannot hide its own queue.
    A 429 or 503 is obeyed: the same request goes out again after its Retry-After. On a timetable that wait is latency,
    too; else it counts from the last attempt.
    """
    return asyncio.run(_drive(target, requests, clients=clients, seconds=seconds, wanted=wanted, per_second=per_second))


async def _drive(
    target: Target, requests: Iterator[bytes], *, clients: int, seconds: float, wanted: int, per_second: float | None
) -> Load:
    load = Load(wanted=wanted)
    started = time.perf_counter()
    timetable = _timetable(started, per_second)
    lane = _Lane(
        load=load, requests=requests, timetable=timetable, deadline=started + seconds, is_planned=per_second is not None
    )
    await asyncio.gather(*(lane.run(Connection(target)) for _ in range(clients)))
    load.seconds = time.perf_counter() - started
    return load


def _timetable(started: float, per_second: float | None) -> Iterator[float | None]:
    if per_second is None:
        while True:
            yield None
    number = 0
    while True:
        yield started + number / per_second
        number += 1


@dataclass
class _Lane:
    load: Load
    requests: Iterator[bytes]
    timetable: Iterator[float | None]
    deadline: float
    is_planned: bool

    async def run(self, connection: Connection) -> None:
        try:
            while (planned := next(self.timetable) or time.perf_counter()) < self.deadline:
                if (request := next(self.requests, None)) is None:
                    return
                if (ahead := planned - time.perf_counter()) > 0:
                    await asyncio.sleep(ahead)
                await self._settle(connection, request, planned)
        finally:
            connection.close()

    async def _settle(self, connection: Connection, request: bytes, began: float) -> None:
        """Repeat one request until the server takes it or refuses it for good, or the time is up."""
        for _ in range(ATTEMPTS_MAX):
            try:
                answer = await connection.send(request)
            except (ConnectionError, TimeoutError):
                self.load.broken += 1
                pause = 0.1
            else:
                self.load.statuses[answer.status] += 1
                if answer.status == self.load.wanted:
                    self.load.latencies.append(time.perf_counter() - began)
                if answer.status not in TRY_LATER:
                    return
                pause = answer.retry_after_seconds
            if time.perf_counter() + pause >= self.deadline:
                return
            await asyncio.sleep(pause)
            if not self.is_planned:
                began = time.perf_counter()
