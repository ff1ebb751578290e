"""A burst: ten times what can be worked off, for a while, and what becomes of every request of it.

Batches, because one machine cannot send ten times as many single requests as it can serve. Each request is sent once,
on a fixed timetable; a refusal is an answer and is not repeated, so the load stays ten times too much to the end. Where
slow answers hold up every client at once the timetable slips: what was really sent is counted.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from compose.bench_report import NEVER
from compose.client import TRY_LATER, Answer, Connection, Target, percentile

ACCEPTED = 202
TIMES = 10
ROWS = 500
BULK_ROWS = 2_000
CLIENTS = 96
SAMPLE_SECONDS = 0.5
ASK_AGAIN_SECONDS = 0.25
ASK_AGAIN_SECONDS_MAX = 60.0
JUST_NOW_SECONDS = 1.0


class Sample(NamedTuple):
    """One look at the system: seconds since the burst began, transfers accepted and posted so far."""

    seconds: float
    accepted: int
    posted: int


@dataclass
class Told:
    """A refusal's Retry-After, and what became of it: seconds from the refusal until the same kind was taken.

    Without `real_seconds` it was never taken, although it was asked for ASK_AGAIN_SECONDS_MAX.
    """

    at: float
    seconds: float
    real_seconds: float | None = None

    @property
    def off(self) -> float:
        """How far it was from what really happened, as a share; NEVER if it did not happen.

        Retry-After has whole seconds: what is within one second is right.
        """
        if self.real_seconds is None:
            return NEVER
        apart = abs(self.seconds - self.real_seconds)
        return 0.0 if apart <= 1.0 else apart / self.real_seconds


@dataclass
class Burst:
    """Every answer of a burst, and of asking after it. `latencies` are those of the burst alone.

    A latency is (seconds since the beginning, seconds from the sending until the 202).
    """

    statuses: Counter[int] = field(default_factory=Counter)
    sent_rows: int = 0
    accepted_rows: int = 0
    latencies: list[tuple[float, float]] = field(default_factory=list)
    # The last refusal of the burst, and the first ones after it, by kind.
    last_told: Told | None = None
    told: dict[str, Told] = field(default_factory=dict)
    without_retry_after: int = 0
    broken: int = 0
    late: float = 0.0
    samples: list[Sample] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """Answers that are neither 202 nor 429 or 503 with a Retry-After, and connections that broke."""
        wrong = sum(n for status, n in self.statuses.items() if status != ACCEPTED and status not in TRY_LATER)
        return wrong + self.without_retry_after + self.broken

    def accept_ms(self, percent: float) -> float | None:
        return percentile([took for _, took in self.latencies], percent, scale=1000.0)

    @property
    def retry_after_off(self) -> float | None:
        """The worst of the kinds: how far Retry-After was from the moment at which such a request was taken."""
        return max((told.off for told in self.told.values()), default=None)

    def count(self, answer: Answer, rows: int) -> Told | None:
        """Count one answer to so many transfers, and return what a refusal told."""
        self.statuses[answer.status] += 1
        if answer.status == ACCEPTED:
            self.accepted_rows += rows
        elif answer.status in TRY_LATER:
            if (said := _retry_after(answer)) is not None:
                return Told(time.perf_counter(), said)
            self.without_retry_after += 1
        return None


def run(
    target: Target,
    batches: Iterator[bytes],
    bulk: Callable[[], bytes],
    *,
    per_second: float,
    seconds: float,
    posted: Callable[[], int],
) -> Burst:
    """Send so many transfers per second for so long, then ask with one batch and one file until each is taken.

    `posted` returns how many transfers were posted since the burst began.
    """
    return asyncio.run(_run(target, batches, bulk, per_second, seconds, posted))


async def _run(
    target: Target,
    batches: Iterator[bytes],
    bulk: Callable[[], bytes],
    per_second: float,
    seconds: float,
    posted: Callable[[], int],
) -> Burst:
    burst, began = Burst(), time.perf_counter()
    timetable = (began + number * ROWS / per_second for number in itertools.count())
    watching = asyncio.create_task(_watch(burst, began, posted))
    lanes = (_lane(burst, target, batches, timetable, began, began + seconds) for _ in range(CLIENTS))
    await asyncio.gather(*lanes)
    await asyncio.gather(
        _ask_until_taken(burst, target, "batch", lambda: next(batches), ROWS),
        _ask_until_taken(burst, target, "file", bulk, BULK_ROWS),
    )
    watching.cancel()
    return burst


async def _lane(
    burst: Burst, target: Target, batches: Iterator[bytes], timetable: Iterator[float], began: float, deadline: float
) -> None:
    connection = Connection(target)
    while (planned := next(timetable)) < deadline:
        if (ahead := planned - time.perf_counter()) > 0:
            await asyncio.sleep(ahead)
        else:
            burst.late = max(burst.late, -ahead)
        if time.perf_counter() >= deadline:
            break
        await _send_once(burst, connection, next(batches), began)
    connection.close()


async def _send_once(burst: Burst, connection: Connection, request: bytes, began: float) -> None:
    sent = time.perf_counter()
    burst.sent_rows += ROWS
    try:
        answer = await connection.send(request)
    except (ConnectionError, TimeoutError, OSError):
        burst.broken += 1
        return
    burst.last_told = burst.count(answer, ROWS) or burst.last_told
    if answer.status == ACCEPTED:
        burst.latencies.append((sent - began, time.perf_counter() - sent))


async def _ask_until_taken(burst: Burst, target: Target, kind: str, request: Callable[[], bytes], rows: int) -> None:
    """Hold the Retry-After of a refusal against the moment at which the same kind of request is taken (202).

    Of batches that is the burst's last refusal, if it has just come: one batch more may be taken at once.
    """
    connection, began = Connection(target), time.perf_counter()
    if kind == "batch" and burst.last_told is not None and began - burst.last_told.at < JUST_NOW_SECONDS:
        burst.told[kind] = burst.last_told
    while time.perf_counter() - began < ASK_AGAIN_SECONDS_MAX:
        try:
            answer = await connection.send(request())
        except (ConnectionError, TimeoutError, OSError):
            burst.broken += 1
            break
        told = burst.count(answer, rows)
        if answer.status == ACCEPTED and kind in burst.told:
            burst.told[kind].real_seconds = time.perf_counter() - burst.told[kind].at
        if answer.status not in TRY_LATER:
            break
        if told is not None:
            burst.told.setdefault(kind, told)
        await asyncio.sleep(ASK_AGAIN_SECONDS)
    connection.close()


async def _watch(burst: Burst, began: float, posted: Callable[[], int]) -> None:
    while True:
        so_far = await asyncio.to_thread(posted)
        burst.samples.append(Sample(time.perf_counter() - began, burst.accepted_rows, so_far))
        await asyncio.sleep(SAMPLE_SECONDS)


def _retry_after(answer: Answer) -> float | None:
    value = answer.header("Retry-After") or ""
    return float(value) if value.isdigit() and int(value) >= 1 else None
