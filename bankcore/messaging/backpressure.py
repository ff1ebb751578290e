"""The gate in front of intake: a transfer comes in only if it will be done within the promise (PROMISE_SECONDS).

The predicted wait is what waits, by what the stages were measured to work off. Both are read in the background a few
times a second; deciding costs no query, no lock on a row and no call to anybody. What cannot be measured is refused.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import ceil

from django.conf import settings
from django.db import close_old_connections

from bankcore import metrics
from bankcore.errors import BankError
from bankcore.messaging.drain import Drain, Reading
from bankcore.messaging.shares import Shares

log = logging.getLogger(__name__)

REFRESH_SECONDS = 0.25
IDLE_REFRESH_SECONDS = 2.0
IDLE_AFTER_SECONDS = 5.0
# A reading that takes long is taken less often, so that reading costs a connection at most one part in so many.
REFRESH_COST = 25
# Without a reading for this long nobody knows how long a transfer would wait.
GRACE_SECONDS = 6.0
RETRY_SECONDS = 0.5
UNMEASURED_RETRY_SECONDS = 5
OUTAGE_RETRY_SECONDS = 30
JITTER = 0.1
# Above this part of the promise the system is near its limit, and who has had more than their share stops at this part
# of what is borne else. It is less than BULK: whatever the others bring gets in before more of a flood does.
NEAR = 0.5
GREEDY = 0.55
PROBE_SECONDS = 5.0
# Of each kind of work one request in so long is not turned away by its kind alone. For shares have to know who asks.
LOOK_SECONDS = 1.0
# When nobody has asked for this long, the time for which an outage is bridged begins anew: nothing came to be moved.
QUIET_SECONDS = 60.0


class Priority(Enum):
    """Up to which part of the promise this kind of work is taken: what a person waits for goes last."""

    INTERACTIVE = 1.0
    BATCH = 0.8
    BULK = 0.6


BATCH_ROWS_MAX = 1000
# A body of this size holds more than so many rows, or rows so long that they cost as much.
BATCH_BYTES_USUAL = 256 * 1024


def priority_of(rows: int, body_bytes: int) -> Priority:
    """Say what kind of work a batch is; without its rows (0), what its size alone says."""
    return Priority.BATCH if rows <= BATCH_ROWS_MAX and body_bytes <= BATCH_BYTES_USUAL else Priority.BULK


class Overloaded(BankError):
    """More work waits than can be done within the promise; nothing was changed. Retry-After says when to come again."""

    code = "overloaded"
    title = "Too much work is waiting"
    detail = "Nothing was changed. Send the same request, with the same key, after the seconds that Retry-After says."
    http_status = 503
    retryable = True


@dataclass(frozen=True, slots=True)
class Measured:
    """What a probe reads, per stage: transfers that are in front of a new one there, and transfers done so far.

    `taken` is how many were taken in so far. `done_at` (monotonic) is when it was so many, if it is not now.
    `broker_is_away`: nothing can get on, and that is no news about how fast a stage is.
    """

    waiting: Mapping[str, int]
    done: Mapping[str, int]
    taken: int = 0
    done_at: float | None = None
    broker_is_away: bool = False


Probe = Callable[[], Measured]


@dataclass(frozen=True, slots=True)
class _View:
    """The last reading, made ready for deciding."""

    at: float
    # How many this process had admitted when the reading began: those after it are not in it.
    admitted: int
    ahead: Mapping[str, int]
    rate: Mapping[str, float]
    rate_alone: Mapping[str, float]
    stalled_since: float | None

    def open_in_seconds(self, since: int, bearable_seconds: float) -> float:
        """Predict when the wait is bearable again; 0 or less: it is. Who is turned away costs no work."""
        return max(
            (waiting + since - bearable_seconds * self.rate[stage]) / self.rate_alone[stage]
            for stage, waiting in self.ahead.items()
        )


@dataclass
class Gate:
    """One per process. `probe` is called from a thread of its own, never by who asks for admission."""

    probe: Probe | None = None
    shares: Shares = field(default_factory=Shares)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._drains: dict[str, Drain] = {}
        self._view: _View | None = None
        self._admitted = 0
        self._away_since: float | None = None
        self._probe_at = 0.0
        self._looked_at: dict[Priority, float] = {}
        # When somebody first asked, last asked, and first asked after a long quiet time.
        self._began_at: float | None = None
        self._asked_at = self._noise_began_at = 0.0

    # -- deciding ------------------------------------------------------------------------------------------------------

    def admit(self, client: str, rows: int, priority: Priority) -> None:
        """Let so many transfers of the client in and count them, or raise.

        Raises:
            Overloaded: they would wait longer than the promise, or nobody knows how long.
        """
        self.check(client, rows, priority)
        with self._lock:
            self._admitted += rows
        self.shares.count(client, rows)

    def check(self, client: str, rows: int, priority: Priority) -> None:
        """Raise Overloaded if so many transfers would not be let in now; counts nothing."""
        now = time.monotonic()
        if now - self._asked_at > QUIET_SECONDS:
            self._noise_began_at = now
        self._asked_at = now
        if self._began_at is None:
            self._began_at = now
            self._start()
        retry_seconds, decision = self._decide(client, rows, priority)
        if retry_seconds is None:
            return
        self.shares.count(client, 0)
        metrics.admission.labels(decision).inc(1)
        raise Overloaded(retry_after=retry_after(retry_seconds))

    def await_reading(self) -> None:
        """Wait for the first reading, GRACE_SECONDS at most. For a program that has just begun, and brings much."""
        self._start()
        until = time.monotonic() + GRACE_SECONDS
        while self._thread is not None and self._view is None and time.monotonic() < until:
            time.sleep(0.02)

    def turned_away(self, priority: Priority) -> int | None:
        """Say in how many seconds to come again if nobody with such work would be let in now; counts such a refusal.

        None also once in LOOK_SECONDS while it is so: then `check`, which knows the client, is to turn it away.
        """
        view, now = self._view, time.monotonic()
        if view is None:
            return None
        since = self._admitted - view.admitted
        if now - view.at > GRACE_SECONDS:
            seconds, decision = float(UNMEASURED_RETRY_SECONDS), "unmeasured"
        elif view.stalled_since is not None:
            full = max(view.ahead.values()) + since >= settings.BACKLOG_MAX
            seconds, decision = (OUTAGE_RETRY_SECONDS if full else 0.0), "overloaded"
        else:
            seconds, decision = view.open_in_seconds(since, settings.PROMISE_SECONDS * priority.value), "overloaded"
        if seconds <= 0:
            return None
        if now - self._looked_at.setdefault(priority, now) >= LOOK_SECONDS:
            self._looked_at[priority] = now
            return None
        self._asked_at = now
        metrics.admission.labels(decision).inc()
        return retry_after(seconds)

    def _decide(self, client: str, rows: int, priority: Priority) -> tuple[float | None, str]:
        now, view = time.monotonic(), self._view
        if view is None or now - view.at > GRACE_SECONDS:
            known_at = view.at if view is not None else self._began_at or now
            return (UNMEASURED_RETRY_SECONDS if now - known_at > GRACE_SECONDS else None), "unmeasured"
        since = self._admitted - view.admitted
        if view.stalled_since is not None:
            return self._decide_in_outage(view, since, rows, now), "overloaded"
        bearable = settings.PROMISE_SECONDS * priority.value
        if self.shares.is_greedy(client):
            bearable = max(bearable * GREEDY, settings.PROMISE_SECONDS * NEAR)
        seconds = view.open_in_seconds(since, bearable)
        return (None if seconds <= 0 else seconds), "overloaded"

    def _decide_in_outage(self, view: _View, since: int, rows: int, now: float) -> float | None:
        """A stage stands still: what is accepted is safe in the database, and waits. Take so much or for so long."""
        ahead = max(view.ahead.values()) + since
        if ahead + rows > settings.BACKLOG_MAX:
            return OUTAGE_RETRY_SECONDS
        if now - max(view.stalled_since or now, self._noise_began_at) <= settings.OUTAGE_ACCEPT_SECONDS:
            return None
        # Few transfers that stand still may be stuck by themselves: one more now and then shows whether others pass.
        if ahead < min(view.rate.values()) and now - self._probe_at > PROBE_SECONDS:
            self._probe_at = now
            return None
        return OUTAGE_RETRY_SECONDS

    # -- measuring -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep_reading, name="backpressure", daemon=True)
                self._thread.start()

    def _keep_reading(self) -> None:
        while True:
            began = time.monotonic()
            try:
                close_old_connections()
                self.refresh()
            except Exception as error:
                # Whatever it is, the gate closes by itself when the last reading has grown old. One that took too long
                # on a busy machine is made up for at once, so that two more fit into the grace.
                log.warning("the backlog cannot be read: %s: %s", type(error).__name__, error)
                time.sleep(RETRY_SECONDS)
                continue
            took = time.monotonic() - began
            idle = began - self._asked_at > IDLE_AFTER_SECONDS
            time.sleep(min(max(IDLE_REFRESH_SECONDS if idle else REFRESH_SECONDS, REFRESH_COST * took), 2.0))

    def refresh(self) -> None:
        """Take one reading and learn from it."""
        if self.probe is None:
            raise RuntimeError("Nobody has said how to read the backlog (backpressure.watch).")
        admitted = self._admitted
        measured = self.probe()
        now = time.monotonic()
        for stage, waiting in measured.waiting.items():
            drain = self._drains.setdefault(stage, Drain(settings.DRAIN_RATE_START, settings.INTAKE_COST))
            drain.observe(Reading(now, waiting, measured.done[stage], measured.done_at or now, measured.taken))
        # An outage that is known is not first taken for slowness until the stages have stood still for a while.
        self._away_since = (self._away_since or now) if measured.broker_is_away else None
        stands = [*(drain.stalled_since for drain in self._drains.values()), self._away_since]
        stalls = [since for since in stands if since is not None]
        self._view = _View(
            at=now,
            admitted=admitted,
            ahead=measured.waiting,
            rate={stage: drain.rate for stage, drain in self._drains.items()},
            rate_alone={stage: drain.rate_alone for stage, drain in self._drains.items()},
            stalled_since=min(stalls, default=None),
        )
        waits = {stage: d.wait_seconds(measured.waiting[stage]) for stage, d in self._drains.items()}
        self.shares.refresh(cluster_wide=max(waits.values()) > settings.PROMISE_SECONDS * NEAR / 2)
        for stage, drain in self._drains.items():
            metrics.predicted_wait.labels(stage).set(waits[stage])
            metrics.drain_rate.labels(stage).set(0.0 if drain.stalled_since is not None else drain.rate)


def retry_after(seconds: float) -> int:
    """Make whole seconds of it, at least one, and spread those who were turned away together over a little time.

    At most RETRY_AFTER_SECONDS_MAX: so far ahead nobody knows, and who waits longer than need be is lost to the bank.
    """
    spread = 1 + JITTER * random.random()  # noqa: S311 chance is all that is wanted here
    return max(1, ceil(min(seconds, settings.RETRY_AFTER_SECONDS_MAX / (1 + JITTER)) * spread))


gate = Gate()
admit, check, turned_away, await_reading = gate.admit, gate.check, gate.turned_away, gate.await_reading


def watch(probe: Probe) -> None:
    """Say how the backlog is read."""
    gate.probe = probe
