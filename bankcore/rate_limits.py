"""How much one client may ask for in a time, over all processes; counted in Redis by the library `limits`.

A process takes small leases from the cluster's count and spends them by itself, so that most requests ask nobody. What
it does not spend in time is lost to the client: so a lease is as large as the use before it, and losses have a budget.
While Redis is away each process holds its clients to the limit by itself.
"""

import logging
import threading
import time
from dataclasses import dataclass
from math import ceil
from typing import Any

from django.conf import settings
from limits import RateLimitItem
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from bankcore import metrics
from bankcore.errors import BankError

log = logging.getLogger(__name__)

# A lease is at most this part of the limit, and is given back to nobody when its time is up.
LEASE_PART = 200
LEASE_SECONDS = 1.0
LEASE_START = 10
# A process may lose one for so many that it used.
USED_FOR_ONE_LOST = 10
LEASES_MAX = 10_000
REDIS_TIMEOUT_SECONDS = 0.25
REDIS_RETRY_SECONDS = 5.0


class RateLimited(BankError):
    """The client has used up what it may ask for in this time; nothing was changed. Retry-After says when to go on."""

    code = "rate_limited"
    title = "Too many requests"
    detail = "Nothing was changed. Go on after the seconds that Retry-After says; RateLimit tells what is left."
    http_status = 429
    retryable = True


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a client stands with one limit, as far as this process knows."""

    name: str
    limit: RateLimitItem
    remaining: int
    reset_seconds: int
    retry_seconds: float | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Say so as draft-ietf-httpapi-ratelimit-headers-10 has it.

        There `t` is the time until the quota resets, and beside Retry-After it should name the same moment.
        """
        reset_seconds = self.reset_seconds if self.retry_after is None else self.retry_after
        return {
            "RateLimit-Policy": f'"{self.name}";q={self.limit.amount};w={self.limit.get_expiry()}',
            "RateLimit": f'"{self.name}";r={self.remaining};t={reset_seconds}',
        }

    @property
    def retry_after(self) -> int | None:
        """Whole seconds until there is room for what was refused; None if nothing was."""
        return None if self.retry_seconds is None else max(1, ceil(self.retry_seconds))

    def enforce(self) -> None:
        """Raise RateLimited if the client has to wait."""
        if self.retry_after is not None:
            metrics.admission.labels("rate_limited").inc()
            raise RateLimited(retry_after=self.retry_after)


@dataclass(slots=True)
class _Lease:
    """What a process holds of a client's limit, and how it used what it held before."""

    # How many it may still lose.
    spare: float
    left: int = 0
    size: int = 0
    began: float = 0.0
    until: float = 0.0
    # How the count stood when it was last heard of, less what was spent since; good until then.
    remaining: int = 0
    reset_seconds: int = 1
    heard_until: float = 0.0
    # Nobody is asked again before the first of these moments; the other is when one more fits again.
    refused_until: float = 0.0
    room_at: float = 0.0

    def next_size(self, cost: int, size_max: int, now: float) -> int:
        """Return how many to take, so that half of its time is enough to spend it at the pace of the last one."""
        if not self.size:
            wanted = LEASE_START
        else:
            pace = (self.size - self.left) / max(now - self.began, 1e-9)
            wanted = int(min(pace * LEASE_SECONDS / 2, 2 * self.size))
        # What is still there may be lost as well.
        at_stake = self.left if self.until > now else 0
        return max(cost, min(wanted, size_max, cost + int(self.spare) - at_stake))

    def renew(self, taken: int, cost: int, size_max: int, now: float, seconds: float) -> None:
        """Go on with `taken`, of which `cost` is spent, and what is left of the time before."""
        used = self.size - self.left
        # Another thread may have taken one at the same time: both are there to be spent.
        kept = self.left if self.until > now else 0
        self.spare = min(size_max, self.spare + used / USED_FOR_ONE_LOST - (self.left - kept))
        self.size, self.left = kept + taken, kept + taken - cost
        self.began, self.until = now, now + seconds

    def hear(
        self, limit: RateLimitItem, window: tuple[int, float, int, float], now: float, retry_seconds: float | None
    ) -> None:
        """Note how the count stands, and if one more does not fit, when it will."""
        self.remaining = max(0, int(limit.amount - _used(limit, window))) + (self.left if self.until > now else 0)
        self.reset_seconds = max(1, ceil(window[3] - limit.get_expiry()) if window[2] else limit.get_expiry())
        self.heard_until = now + min(LEASE_SECONDS, limit.get_expiry())
        self.room_at = now + (retry_seconds or 0.0)
        self.refused_until = min(self.room_at, now + LEASE_SECONDS)


class RateLimits:
    """One per process."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._lock = threading.Lock()
        self._leases: dict[tuple[str, str], _Lease] = {}
        self._cluster: SlidingWindowCounterRateLimiter | None = None
        self._alone = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._away_until = 0.0
        self._is_away = False

    def take(self, name: str, identity: str, cost: int = 1) -> Standing:
        """Use up `cost` of the client's limit of this name; more than the whole limit counts as the whole of it."""
        if cost < 1:
            return self.look(name, identity)
        limit = limit_of(name, identity)
        cost = min(cost, limit.amount)
        size_max = limit.amount // LEASE_PART
        now = time.monotonic()
        with self._lock:
            lease = self._lease(name, identity, size_max)
            if lease.until > now and lease.left >= cost:
                lease.left -= cost
                lease.remaining -= cost
                return Standing(name, limit, max(0, lease.remaining), lease.reset_seconds)
            # A batch needs room for more than the one that was refused: how long for, only the count knows.
            if lease.refused_until > now and cost <= 1:
                return Standing(name, limit, 0, lease.reset_seconds, retry_seconds=lease.room_at - now)
            size = lease.next_size(cost, size_max, now)
            # Threads that ask at the same time put at stake together what may be lost, not each.
            lease.spare -= size - cost
        taken, window = self._ask(limit, f"{name}:{identity}", (size, cost))
        retry_seconds = None if taken else _until_room(limit, window, cost)
        with self._lock:
            lease.spare += size - cost
            if taken:
                lease.renew(taken, cost, size_max, now, min(LEASE_SECONDS, limit.get_expiry()))
            # A large batch that has no room says nothing about a single transfer.
            lease.hear(limit, window, now, retry_seconds if cost <= 1 else None)
            return Standing(name, limit, lease.remaining, lease.reset_seconds, retry_seconds)

    def look(self, name: str, identity: str) -> Standing:
        """Say where the client stands, and that it has to wait if nothing is left; use up nothing."""
        limit = limit_of(name, identity)
        now = time.monotonic()
        with self._lock:
            lease = self._lease(name, identity, limit.amount // LEASE_PART)
            if lease.heard_until > now and lease.remaining > 0:
                return Standing(name, limit, lease.remaining, lease.reset_seconds)
            if lease.refused_until > now:
                return Standing(name, limit, 0, lease.reset_seconds, retry_seconds=lease.room_at - now)
        _, window = self._ask(limit, f"{name}:{identity}", ())
        retry_seconds = _until_room(limit, window, 1) or None
        with self._lock:
            lease.hear(limit, window, now, retry_seconds)
            return Standing(name, limit, lease.remaining, lease.reset_seconds, retry_seconds)

    def _lease(self, name: str, identity: str, size_max: int) -> _Lease:
        lease = self._leases.get((name, identity))
        if lease is None:
            if len(self._leases) >= LEASES_MAX:
                self._leases.clear()
            lease = self._leases[name, identity] = _Lease(spare=min(LEASE_START, size_max))
        return lease

    def _ask(self, limit: RateLimitItem, key: str, sizes: tuple[int, ...]) -> tuple[int, tuple[int, float, int, float]]:
        """Take a lease of the first of `sizes` that is left; return what was taken and how the count stands."""
        if time.monotonic() >= self._away_until:
            try:
                if self._cluster is None:
                    self._cluster = SlidingWindowCounterRateLimiter(redis_storage(self._redis_url))
                answer = _hit(self._cluster, limit, key, sizes)
            except RedisError as error:
                self._away_until = time.monotonic() + REDIS_RETRY_SECONDS
                if not self._is_away:
                    log.warning("rate limits are kept per process, as Redis is away: %s", error)
                self._note(away=True)
            else:
                self._note(away=False)
                return answer
        return _hit(self._alone, limit, key, sizes)

    def _note(self, *, away: bool) -> None:
        if self._is_away and not away:
            log.info("rate limits are kept over all processes again")
        self._is_away = away
        metrics.rate_limits_alone.set(int(away))


def redis_storage(redis_url: str) -> RedisStorage:
    """Make a connection to where all processes count together; it raises RedisError soon when Redis is away."""
    # One try: a client that waits for its transfer does not wait for a counter.
    options: dict[str, Any] = {
        "socket_timeout": REDIS_TIMEOUT_SECONDS,
        "socket_connect_timeout": REDIS_TIMEOUT_SECONDS,
        "retry": Retry(NoBackoff(), 0),
    }
    return RedisStorage(redis_url, key_prefix="bankcore:limits", **options)


def _hit(
    limiter: SlidingWindowCounterRateLimiter, limit: RateLimitItem, key: str, sizes: tuple[int, ...]
) -> tuple[int, tuple[int, float, int, float]]:
    taken = next((n for n in dict.fromkeys(sizes) if limiter.hit(limit, key, cost=n)), 0)
    storage: Any = limiter.storage
    return taken, storage.get_sliding_window(limit.key_for(key), limit.get_expiry())


def _used(limit: RateLimitItem, window: tuple[int, float, int, float]) -> float:
    previous, previous_seconds, current, _ = window
    return previous * previous_seconds / limit.get_expiry() + current


def _until_room(limit: RateLimitItem, window: tuple[int, float, int, float], cost: int) -> float:
    """Seconds until `cost` fits again: the window before fades evenly; after it, the current one does."""
    previous, previous_seconds, current, current_seconds = window
    seconds = limit.get_expiry()
    excess = _used(limit, window) + cost - limit.amount
    if excess <= 0:
        return 0.0
    if excess <= previous * previous_seconds / seconds:
        return excess * seconds / previous
    over = current + cost - limit.amount
    return max(0.0, current_seconds - seconds) + (over * seconds / current if over > 0 and current else 0.0)


def limit_of(name: str, identity: str) -> RateLimitItem:
    """Return the client's own limit if it has one (RATE_LIMIT_CLIENTS), else the one for everybody."""
    own: RateLimitItem | None = settings.RATE_LIMIT_CLIENTS.get(identity) if name == "transfers" else None
    return own if own is not None else settings.RATE_LIMITS[name]


_of_process: dict[str, RateLimits] = {}


def take(name: str, identity: str, cost: int = 1) -> Standing:
    """Use up `cost` of what `identity` may ask for under the limit `name` (settings.RATE_LIMITS)."""
    return _limits().take(name, identity, cost)


def look(name: str, identity: str) -> Standing:
    """Say where `identity` stands under the limit `name`, and use up nothing."""
    return _limits().look(name, identity)


def _limits() -> RateLimits:
    url = settings.REDIS_URL
    if url not in _of_process:
        _of_process[url] = RateLimits(url)
    return _of_process[url]
