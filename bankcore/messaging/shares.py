"""Who has had how much of what was admitted lately, over the whole cluster: so that one client cannot starve others.

Counted in Redis while the system is near its limit, in this process alone otherwise and while Redis is away.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Mapping

import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

log = logging.getLogger(__name__)

# Two of them are longer than most are told to wait who were turned away: they count as asking until they come again.
BUCKET_SECONDS = 15
REDIS_TIMEOUT_SECONDS = 0.2
REDIS_RETRY_SECONDS = 5.0
# A share is exceeded by more than this before it has an effect: shares of equals always differ a little.
TOLERANCE = 1.1
_KEY = "bankcore:admitted:{}"


class Shares:
    """Admitted transfers per client in this bucket of time and the one before."""

    def __init__(self) -> None:
        # Held for both counts: those who are admitted count while the gate's thread reads.
        self._lock = threading.Lock()
        # bucket -> client -> transfers admitted; a client that only asked stands there with 0.
        self._local: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._unsent: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._greedy: frozenset[str] = frozenset()
        self._redis: redis.Redis | None = None
        self._retry_at = 0.0

    def count(self, client: str, transfers: int) -> None:
        """Note that so many transfers of the client were admitted; 0: that it asked and was turned away."""
        bucket = int(time.time()) // BUCKET_SECONDS
        with self._lock:
            self._local[bucket][client] += transfers
            self._unsent[bucket][client] += transfers

    def is_greedy(self, client: str) -> bool:
        """Say whether the client has had more than its weighted share while others asked as well."""
        return client in self._greedy

    def refresh(self, *, cluster_wide: bool) -> None:
        """Work out anew who is above their share. Asks Redis only if `cluster_wide`."""
        now = int(time.time()) // BUCKET_SECONDS
        with self._lock:
            for kept in (self._local, self._unsent):
                for bucket in [b for b in kept if b < now - 1]:
                    del kept[bucket]
        buckets = (now - 1, now)
        counts = self._counts_of_cluster(buckets) if cluster_wide and time.monotonic() >= self._retry_at else None
        if counts is None:
            with self._lock:
                counts = _sum([self._local.get(bucket, {}) for bucket in buckets])
        self._greedy = greedy(counts, settings.CLIENT_WEIGHTS)

    def _counts_of_cluster(self, buckets: tuple[int, int]) -> dict[str, int] | None:
        with self._lock:
            unsent, self._unsent = self._unsent, defaultdict(lambda: defaultdict(int))
        try:
            if self._redis is None:
                self._redis = redis.Redis.from_url(
                    settings.REDIS_URL,
                    socket_timeout=REDIS_TIMEOUT_SECONDS,
                    socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
                    decode_responses=True,
                    retry=Retry(NoBackoff(), 0),
                )
            pipeline = self._redis.pipeline(transaction=False)
            for bucket in buckets:
                for client, number in unsent.get(bucket, {}).items():
                    pipeline.hincrby(_KEY.format(bucket), client, number)
                pipeline.expire(_KEY.format(bucket), 4 * BUCKET_SECONDS)
            for bucket in buckets:
                pipeline.hgetall(_KEY.format(bucket))
            return _sum(pipeline.execute()[-len(buckets) :])
        except redis.RedisError as error:
            log.warning("shares of clients are counted per process, as Redis is away: %s", error)
            self._retry_at = time.monotonic() + REDIS_RETRY_SECONDS
            # What Redis may have taken before it failed counts twice, for two buckets at most.
            with self._lock:
                for bucket, numbers in unsent.items():
                    for client, number in numbers.items():
                        self._unsent[bucket][client] += number
            return None


def _sum(counts: list[Mapping[str, int | str]]) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for bucket in counts:
        for client, number in bucket.items():
            total[client] += int(number)
    return total


def greedy(counts: Mapping[str, int], weights: Mapping[str, int]) -> frozenset[str]:
    """Name the clients above their share: weight / weights of all who asked (1 each, if `weights` says no other)."""
    admitted, weight = sum(counts.values()), sum(weights.get(client, 1) for client in counts)
    if len(counts) < 2 or not admitted:
        return frozenset()
    return frozenset(
        client for client, number in counts.items() if number / admitted > weights.get(client, 1) / weight * TOLERANCE
    )
