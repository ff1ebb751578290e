"""What a given load would do to this installation: a simulation from rates that were measured on it.

Stages are tanks in a row: what arrives waits until the stage has worked off what came before, each at the rate that it
was measured to keep up while it had something to do. Stages that share a machine are measured sharing it, so the rates
hold for loads of the kind that was measured. A stage with a slower one in front is never seen at its limit, so how a
backlog divides between them is foreseen only roughly; `compose/bench_capacity.py` compares the rest with a real burst.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from bankcore.database import fetch_all
from bankcore.messaging.backpressure import Priority

STAGES = ("risk", "posting", "notifications")
STEP_SECONDS = 0.1
# How much of the past is looked at, newest first: a bound on the cost, not on what is right.
EVENTS_MAX = 1_000_000
# A second counts for a stage's rate only if this much stood in front of it all along.
BUSY_TRANSFERS_MIN = 200
# An id in a message: a UUID of 36 characters, quotes and a comma. Compression makes it less; replicas make it more.
ID_BYTES = 39
SIMULATED_SECONDS_MAX = 24 * 3600
# More than so many times the workers is no answer.
FACTOR_MAX = 1024

_SECONDS = """
SELECT extract(epoch FROM date_trunc('second', created_at))::bigint, type, count(*)
  FROM (SELECT created_at, type FROM messaging_event ORDER BY id DESC LIMIT %s) AS newest
 GROUP BY 1, 2
"""
_TOLD = """
SELECT extract(epoch FROM date_trunc('second', delivered_at))::bigint, count(*)
  FROM (SELECT delivered_at FROM notifications_notification ORDER BY id DESC LIMIT %s) AS newest
 WHERE delivered_at IS NOT NULL GROUP BY 1
"""
_BYTES = """
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::float8,
       max(c.reltuples) FILTER (WHERE c.relname = 'transfers_transfer')
  FROM pg_class AS c
 WHERE c.relname IN ('transfers_transfer', 'messaging_event', 'accounts_journalentry', 'accounts_journalline',
                     'notifications_notification')
"""


class Arrivals(NamedTuple):
    """From a moment on (seconds since the beginning), so many transfers arrive per second."""

    seconds: float
    per_second: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the simulation saw. Waiting is counted in transfers, time in seconds, sizes in bytes."""

    offered: float
    accepted: float
    refused: float
    # Accepted and not posted, at the worst moment; and what waited for each stage at its own worst.
    peak_backlog: float
    peak_waiting: Mapping[str, float]
    longest_wait_seconds: float
    drained_after_seconds: float | None
    broker_bytes: float
    database_bytes: float


def measured_rates() -> dict[str, float]:
    """Transfers per second of each stage while work stood in front of it, from the newest events.

    Reads at most EVENTS_MAX events and notifications. A stage that was never busy is left out: nobody knows its limit.
    """
    seconds: dict[str, dict[int, int]] = defaultdict(dict)
    for second, event_type, number in fetch_all(_SECONDS, (EVENTS_MAX,)):
        seconds[event_type][second] = number
    accepted, approved, posted = (seconds[f"transfer.{name}"] for name in ("accepted", "approved", "posted"))
    screened = _sum(approved, seconds["transfer.in_review"])
    rates = {"risk": _busy_rate(accepted, screened), "posting": _busy_rate(approved, posted)}
    told: dict[int, int] = dict(fetch_all(_TOLD, (EVENTS_MAX,)))
    total_posted = sum(posted.values())
    if told and total_posted:
        # Several messages tell of one transfer: the rate is in transfers, like the others.
        share = sum(told.values()) / total_posted
        told_transfers = {second: int(number / share) for second, number in told.items()}
        rates["notifications"] = _busy_rate(posted, told_transfers)
    return {stage: rate for stage, rate in rates.items() if rate is not None}


def _sum(*series: Mapping[int, int]) -> dict[int, int]:
    total: dict[int, int] = defaultdict(int)
    for one in series:
        for second, number in one.items():
            total[second] += number
    return total


def _busy_rate(came: Mapping[int, int], went: Mapping[int, int]) -> float | None:
    """The mean of what went in those seconds in which enough waited at both ends."""
    if not came or not went:
        return None
    # The past is cut off somewhere: what went before its cause came belongs to the time before.
    first, last = min(came), max(went)
    waiting, done = 0, list[int]()
    for second in range(first, last + 1):
        before = waiting
        waiting = max(waiting + came.get(second, 0) - went.get(second, 0), 0)
        if min(before, waiting) >= BUSY_TRANSFERS_MIN:
            done.append(went.get(second, 0))
    return sum(done) / len(done) if done and sum(done) else None


def bytes_per_transfer() -> float | None:
    """What a transfer takes in the database, indexes, events and journal included; None while there are too few."""
    total, transfers = fetch_all(_BYTES)[0]
    return float(total / transfers) if transfers and transfers >= 1000 else None


def forecast(
    arrivals: Sequence[Arrivals],
    *,
    until_seconds: float,
    rates: Mapping[str, float],
    promise_seconds: float | None,
    priority: Priority = Priority.INTERACTIVE,
    transfer_bytes: float = 0.0,
    drain: bool = True,
) -> Forecast:
    """Simulate the arrivals (sorted by time) until `until_seconds`, and on until all is drained, unless told not to.

    With `promise_seconds` intake refuses what would wait longer than the part of it up to which work of this priority
    is taken, as bankcore.messaging.backpressure does.
    `drained_after_seconds` counts from the beginning; it is None if the work would not be done in a day.
    """
    stages = [stage for stage in STAGES if stage in rates]
    waiting = dict.fromkeys(stages, 0.0)
    peak, offered, accepted, longest, step = dict(waiting), 0.0, 0.0, 0.0, 0
    backlog, per_second = 0.0, _rate_of_steps(arrivals)
    money = [stage for stage in stages if stage != "notifications"]
    last_step, endless = round(until_seconds / STEP_SECONDS), round(SIMULATED_SECONDS_MAX / STEP_SECONDS)
    bearable = inf if promise_seconds is None else promise_seconds * priority.value
    while step < endless and (step < last_step or (drain and any(n >= 0.5 for n in waiting.values()))):
        coming = next(per_second) * STEP_SECONDS if step < last_step else 0.0
        wait = _wait_seconds(waiting, rates, money)
        taken = coming if wait <= bearable else 0.0
        offered, accepted, flow = offered + coming, accepted + taken, taken
        for stage in stages:
            waiting[stage] += flow
            flow = min(waiting[stage], rates[stage] * STEP_SECONDS)
            waiting[stage] -= flow
            peak[stage] = max(peak[stage], waiting[stage])
        longest = max(longest, _wait_seconds(waiting, rates, money))
        backlog = max(backlog, sum(waiting[stage] for stage in money))
        step += 1
    return Forecast(
        offered=offered,
        accepted=accepted,
        refused=offered - accepted,
        peak_backlog=backlog,
        peak_waiting=peak,
        longest_wait_seconds=longest,
        drained_after_seconds=None if any(n >= 0.5 for n in waiting.values()) else round(step * STEP_SECONDS, 1),
        broker_bytes=sum(peak.values()) * ID_BYTES,
        database_bytes=accepted * transfer_bytes,
    )


def _wait_seconds(waiting: Mapping[str, float], rates: Mapping[str, float], stages: Iterable[str]) -> float:
    """A newcomer passes one stage after the other: everything in front of the slowest of them is in front of it."""
    ahead, longest = 0.0, 0.0
    for stage in stages:
        ahead += waiting[stage]
        longest = max(longest, ahead / rates[stage])
    return longest


def _rate_of_steps(arrivals: Iterable[Arrivals]) -> Iterator[float]:
    """Yield how many arrive per second at the beginning of each step, without end."""
    step, current = 0, 0.0
    for one in arrivals:
        while step * STEP_SECONDS < one.seconds:
            yield current
            step += 1
        current = one.per_second
    while True:
        yield current


def factor_needed(
    arrivals: Sequence[Arrivals],
    *,
    until_seconds: float,
    rates: Mapping[str, float],
    promise_seconds: float,
    priority: Priority = Priority.INTERACTIVE,
) -> float | None:
    """By how much every rate has to grow so that intake would refuse nothing of this priority.

    None if FACTOR_MAX times the rates do not suffice.
    """
    low, high = 0.0, 1.0

    def keeps(factor: float) -> bool:
        faster = {stage: rate * factor for stage, rate in rates.items()}
        seen = forecast(arrivals, until_seconds=until_seconds, rates=faster, promise_seconds=None, drain=False)
        # Once nothing arrives any more, no wait becomes longer.
        return seen.longest_wait_seconds <= promise_seconds * priority.value

    while not keeps(high):
        if high >= FACTOR_MAX:
            return None
        low, high = high, high * 2
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return high
