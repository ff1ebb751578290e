"""Measures a running bankcore from the outside: through its REST API and, read-only, in its database.

Every rate counts transfers that were posted, on the database's clock, and the figures say what they leave out.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import datetime
from random import Random
from typing import Any
from uuid import uuid4

import psycopg

from compose import bench_burst
from compose.bench_burst import Burst
from compose.bench_profile import Profile
from compose.bench_report import BATCH_ROWS
from compose.client import Connection, Load, Target, drive, percentile
from compose.stack_commands import Seeded

ACCEPTED = 202
READ_ONLY = "-c default_transaction_read_only=on"
CLIENTS = 32
BATCH_CLIENTS = 2
LARGE_BATCH_ROWS, LARGE_BATCHES = 10_000, 3
BURST_BODIES = 60
BATCH_SECONDS_MAX = 180.0
AMOUNT_MINOR_MAX = 100
LOOK_SECONDS = 0.1
IDLE_LOOK_SECONDS = 0.002
DRAIN_SECONDS_MAX = 300.0
QUIET_LOOKS = 15

# Each part is answered from an index: looking must not slow down what is looked at.
_UNDERWAY = "SELECT EXISTS (SELECT FROM transfers_opentransfer WHERE status IN ('accepted', 'approved'))"
_TO_DO = """
SELECT EXISTS (SELECT FROM messaging_owed),
       EXISTS (SELECT FROM notifications_notification WHERE state = 'pending'),
       (SELECT coalesce(max(id), 0) FROM notifications_notification)
"""
_POSTED_SINCE = """
SELECT count(*) FILTER (WHERE status = 'posted'), count(*), extract(epoch FROM max(posted_at) - %(since)s)::float
  FROM transfers_transfer
 WHERE created_at >= %(since)s
"""
_NOTIFIED_SINCE = """
SELECT (SELECT count(*) FROM transfers_transfer WHERE created_at >= %(since)s),
       extract(epoch FROM greatest(
           (SELECT max(published_at) FROM messaging_event WHERE created_at >= %(since)s),
           (SELECT max(delivered_at) FROM notifications_notification WHERE created_at >= %(since)s)) - %(since)s)::float
"""
# Seen by another connection, so committed; both moments on the database's clock.
_AGE_IF_POSTED = """
SELECT extract(epoch FROM clock_timestamp() - created_at)::float
  FROM transfers_transfer WHERE id = %s::uuid AND status = 'posted'
"""


class StillUnderwayError(Exception):
    """Transfers did not come to their end in time, or not to the end that was measured."""


class Bankcore:
    """One stack under measurement."""

    def __init__(self, stack: Mapping[str, Any], seeded: Seeded, random: Random) -> None:
        self._target = Target(stack["api"], (("Authorization", f"Bearer {seeded.token}"),))
        self._accounts = [account.encode() for account in seeded.accounts]
        self._currency = seeded.currency.encode()
        self._random = random
        # Never drawn from the seed: a repeated run must not repeat the keys of an earlier one.
        run = uuid4().hex
        self._keys = (f"bench-{run}-{number}" for number in itertools.count())
        # The first is web's, which posts nothing.
        self._metrics: list[str] = stack["metrics"][1:]
        self._database = psycopg.connect(stack["database_url"], autocommit=True, options=READ_ONLY)
        self._profile = Profile(stack)
        self.profiles: dict[str, dict[str, float]] = {}

    def close(self) -> None:
        self._database.close()

    def warm_up(self, seconds: float) -> None:
        drive(self._target, self._singles(hot=False), clients=CLIENTS, seconds=seconds, wanted=ACCEPTED)
        self._await_quiet()

    def measure_singles(self, *, seconds: float) -> dict[str, float | None]:
        """Push single transfers as hard as 32 clients can, on uniform accounts."""
        load, posted_per_second = self._push(seconds=seconds, hot=False)
        return {
            "single_accept_tps": load.per_second,
            "single_tps": posted_per_second,
            "accept_loaded_p50_ms": load.percentile_ms(50),
            "accept_loaded_p99_ms": load.percentile_ms(99),
        }

    def measure_hot_singles(self, *, seconds: float) -> dict[str, float | None]:
        """The same when every transfer credits one account."""
        return {"single_hot_tps": self._push(seconds=seconds, hot=True)[1]}

    def measure_accept(self, *, seconds: float, per_second: float) -> dict[str, float | None]:
        """Latency of the 202 on a fixed timetable."""
        load = drive(
            self._target, self._singles(hot=False), clients=CLIENTS, seconds=seconds, wanted=ACCEPTED,
            per_second=per_second,
        )  # fmt: skip
        self._await_quiet()
        return {"accept_p50_ms": load.percentile_ms(50), "accept_p99_ms": load.percentile_ms(99)}

    def measure_batches(self, *, transfers: int) -> dict[str, float | None]:
        """Send batches as fast as they are taken, and wait until the last of their transfers was posted."""
        bodies = [self._batch(BATCH_ROWS) for _ in range(transfers // BATCH_ROWS)]
        self._profile.start()
        since = self._now()
        load = drive(
            self._target, iter(bodies), clients=BATCH_CLIENTS, seconds=BATCH_SECONDS_MAX, wanted=ACCEPTED
        )  # fmt: skip
        per_second = self._posted_per_second(since, expected=load.done * BATCH_ROWS)
        self.profiles["batches"] = self._profile.shares()
        self._await_quiet()
        accepted, seconds = self._one(_NOTIFIED_SINCE, {"since": since})
        return {
            "end_to_end_tps": per_second,
            "notified_tps": accepted / seconds,
            "batch_accept_ms": load.percentile_ms(50),
        }

    def measure_large_batches(self) -> dict[str, float | None]:
        """The time to the 202 of the largest batch there may be, one after the other into an idle system."""
        times = list[float]()
        for _ in range(LARGE_BATCHES):
            body = self._batch(LARGE_BATCH_ROWS)
            load = drive(self._target, iter([body]), clients=1, seconds=BATCH_SECONDS_MAX, wanted=ACCEPTED)
            times += load.latencies
            self._await_quiet()
        return {"batch_10000_accept_ms": percentile(times, 50, scale=1000.0)}

    def measure_burst(self, *, sustained: float, seconds: float) -> tuple[dict[str, float | None], Burst]:
        """Offer ten times the sustained rate, and hold every answer against what became of its transfers."""
        since = self._now()
        bodies = [self._rows(bench_burst.ROWS) for _ in range(BURST_BODIES)]
        self._profile.start()
        posted_before = self._posted_by_metrics()
        burst = bench_burst.run(
            self._target,
            (self._post_batch(self._random.choice(bodies)) for _ in itertools.count()),
            lambda: self._batch(bench_burst.BULK_ROWS),
            per_second=sustained * bench_burst.TIMES,
            seconds=seconds,
            posted=lambda: self._posted_by_metrics() - posted_before,
        )
        self._await_ended()
        self.profiles["burst"] = self._profile.shares()
        posted, created, took = self._one(_POSTED_SINCE, {"since": since})
        self._await_quiet()
        return {
            "burst_offered_tps": burst.sent_rows / seconds,
            "burst_errors": float(burst.errors),
            "burst_lost": float(max(created, burst.accepted_rows) - posted),
            "burst_accept_p99_ms": burst.accept_ms(99),
            "burst_drain_share": posted / took / sustained if took else None,
            "burst_retry_after_off": burst.retry_after_off,
        }, burst

    def measure_idle(self, *, transfers: int) -> dict[str, float | None]:
        """One transfer at a time through an idle system, at irregular moments."""
        ages = asyncio.run(self._send_one_by_one(transfers))
        return {
            "accept_to_posted_p50_ms": percentile(ages, 50, scale=1000.0),
            "accept_to_posted_p99_ms": percentile(ages, 99, scale=1000.0),
        }

    async def _send_one_by_one(self, transfers: int) -> list[float]:
        connection, ages = Connection(self._target), []
        for request in itertools.islice(self._singles(hot=False), transfers):
            # Irregular, so that no period of the system's own can line up with it.
            await asyncio.sleep(self._random.uniform(0.05, 0.15))
            answer = await connection.send(request)
            if answer.status != ACCEPTED:
                raise StillUnderwayError(f"a single transfer was answered {answer.status}: {answer.body[:300]!r}")
            ages.append(await self._age_when_posted(json.loads(answer.body)["id"]))
        connection.close()
        return ages

    async def _age_when_posted(self, transfer_id: str) -> float:
        deadline = time.monotonic() + DRAIN_SECONDS_MAX
        while time.monotonic() < deadline:
            row = self._database.execute(_AGE_IF_POSTED, (transfer_id,), prepare=True).fetchone()
            if row is not None:
                return float(row[0])
            await asyncio.sleep(IDLE_LOOK_SECONDS)
        raise StillUnderwayError(f"transfer {transfer_id} was not posted")

    def _push(self, *, seconds: float, hot: bool) -> tuple[Load, float]:
        self._profile.start()
        since = self._now()
        load = drive(self._target, self._singles(hot=hot), clients=CLIENTS, seconds=seconds, wanted=ACCEPTED)
        per_second = self._posted_per_second(since, expected=load.done)
        self.profiles["singles to a hot account" if hot else "singles"] = self._profile.shares()
        self._await_quiet()
        return load, per_second

    def _posted_per_second(self, since: datetime, *, expected: int) -> float:
        self._await_ended()
        posted, created, seconds = self._one(_POSTED_SINCE, {"since": since})
        # More may exist than the clients know of: an answer can miss the deadline that its transfer made.
        if posted != created or posted < expected or not posted:
            raise StillUnderwayError(f"{expected} accepted, {created} exist, {posted} posted")
        return float(posted / seconds)

    def _await_ended(self) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS_MAX
        while self._one(_UNDERWAY)[0]:
            if time.monotonic() > deadline:
                raise StillUnderwayError(f"transfers were underway after {DRAIN_SECONDS_MAX:.0f} seconds")
            time.sleep(LOOK_SECONDS)

    def _await_quiet(self) -> None:
        """Wait until the outbox and the notifications have come to rest too: the next figure starts from idle."""
        deadline, quiet, last = time.monotonic() + DRAIN_SECONDS_MAX, 0, 0
        while quiet < QUIET_LOOKS:
            if time.monotonic() > deadline:
                raise StillUnderwayError(f"the system was not at rest after {DRAIN_SECONDS_MAX:.0f} seconds")
            (underway,), (outbox, pending, newest) = self._one(_UNDERWAY), self._one(_TO_DO)
            quiet = quiet + 1 if newest == last and not (underway or outbox or pending) else 0
            last = newest
            time.sleep(LOOK_SECONDS)

    def _posted_by_metrics(self) -> int:
        """What the workers say they have posted: counting rows ten times a second would be a load of its own."""
        total = 0.0
        for address in self._metrics:
            with urllib.request.urlopen(address, timeout=5) as answer:  # noqa: S310 the address is our own stack's
                lines = answer.read().decode().splitlines()
            counters = (line for line in lines if line.startswith("bankcore_transfers_total{"))
            total += sum(float(line.rpartition(" ")[2]) for line in counters if 'status="posted"' in line)
        return int(total)

    def _now(self) -> datetime:
        now: datetime = self._one("SELECT clock_timestamp()")[0]
        return now

    def _one(self, query: str, parameters: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
        row = self._database.execute(query, parameters).fetchone()
        return tuple(row) if row else ()

    def _singles(self, *, hot: bool) -> Iterator[bytes]:
        while True:
            key = (("Idempotency-Key", next(self._keys)),)
            yield self._target.post("/api/v1/transfers", self._transfer(hot=hot), key)

    def _batch(self, rows: int) -> bytes:
        return self._post_batch(self._rows(rows))

    def _rows(self, rows: int) -> bytes:
        return b'{"atomic":false,"transfers":[%s]}' % b",".join(self._transfer(hot=False) for _ in range(rows))

    def _post_batch(self, body: bytes) -> bytes:
        return self._target.post("/api/v1/batches", body, (("Idempotency-Key", next(self._keys)),))

    def _transfer(self, *, hot: bool) -> bytes:
        if hot:
            debit, credit = self._random.choice(self._accounts[1:]), self._accounts[0]
        else:
            debit, credit = self._random.sample(self._accounts, 2)
        amount_minor = self._random.randrange(1, AMOUNT_MINOR_MAX)
        body = b'{"debit_account":"%s","credit_account":"%s","amount_minor":%d,"currency":"%s"}'
        return body % (debit, credit, amount_minor, self._currency)
