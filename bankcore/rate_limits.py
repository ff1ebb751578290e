"""How much one client may ask for in a time, over all processes; counted in Redis by the library `limits`.

A process takes small leases from the cluster's count and spends them by itself, so that most requests ask nobody. While
Redis is away each process holds its clients to the limit by itself.
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
    left: int
    until: float
    remaining: int
    reset_seconds: int
    # Nobody is asked again before the first of these moments; the other is when one more fits again.
    refused_until: float = 0.0
    room_at: float = 0.0


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
        limit = limit_of(name, identity)
        cost = min(cost, limit.amount)
        now = time.monotonic()
        with self._lock:
            lease = self._leases.get((name, identity))
            if lease is not None and lease.until > now and lease.left >= cost:
                lease.left -= cost
                lease.remaining -= cost
                return Standing(name, limit, max(0, lease.remaining), lease.reset_seconds)
            # A batch needs room for more than the one that was refused: how long for, only the count knows.
            if lease is not None and lease.refused_until > now and cost <= 1:
                return Standing(name, limit, 0, lease.reset_seconds, retry_seconds=lease.room_at - now)
        return self._take_lease(name, limit, identity, cost, now)

    def look(self, name: str, identity: str) -> Standing:
        """Say where the client stands, and that it has to wait if nothing is left; use up nothing."""
        limit = limit_of(name, identity)
        now = time.monotonic()
        with self._lock:
            lease = self._leases.get((name, identity))
            if lease is not None and lease.until > now and lease.remaining > 0:
                return Standing(name, limit, lease.remaining, lease.reset_seconds)
            if lease is not None and lease.refused_until > now:
                return Standing(name, limit, 0, lease.reset_seconds, retry_seconds=lease.room_at - now)
        return self._take_lease(name, limit, identity, 0, now)

    def _take_lease(self, name: str, limit: RateLimitItem, identity: str, cost: int, now: float) -> Standing:
        """With a cost of 0 take none, and only note how the count stands."""
        sizes = (max(cost, limit.amount // LEASE_PART), cost) if cost else ()
        taken, window = self._ask(limit, f"{name}:{identity}", sizes)
        remaining = max(0, int(limit.amount - _used(limit, window)))
        reset_seconds = max(1, ceil(window[3] - limit.get_expiry()) if window[2] else limit.get_expiry())
        retry_seconds = None if taken else _until_room(limit, window, max(1, cost))
        if not cost:
            retry_seconds = retry_seconds or None
        lease = _Lease(
            left=max(0, taken - cost),
            until=now + min(LEASE_SECONDS, limit.get_expiry()),
            remaining=remaining + max(0, taken - cost),
            reset_seconds=reset_seconds,
        )
        # A large batch that has no room says nothing about a single transfer.
        if retry_seconds is not None and cost <= 1:
            lease.room_at = now + retry_seconds
            lease.refused_until = min(lease.room_at, now + LEASE_SECONDS)
        with self._lock:
            if len(self._leases) >= LEASES_MAX:
                self._leases.clear()
            # Another thread may have taken one at the same time: both are there to be spent.
            other = self._leases.get((name, identity))
            if other is not None and other.until > now:
                lease.left += other.left
            self._leases[name, identity] = lease
        return Standing(name, limit, lease.remaining, reset_seconds, retry_seconds)

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
