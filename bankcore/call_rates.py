"""How often the systems of others are called, by all workers together; counted in Redis by the library `limits`.

While Redis is away each process keeps to the rate by itself, which multiplies it by the number of processes.
"""

import logging
import time
from functools import cache

import limits
from django.conf import settings
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from redis.exceptions import RedisError

from bankcore.rate_limits import REDIS_RETRY_SECONDS, redis_storage

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.05


def take_turn(name: str, rate: str) -> bool:
    """Use up one call to `name` if the rate, such as 50/second, allows one more now; without a rate always."""
    return not rate or _counter(settings.REDIS_URL).hit(name, _parsed(rate))


def wait_for_turn(name: str, rate: str, seconds_max: float) -> bool:
    """Wait in place until the rate allows one more call, and use it up; say whether it did within the time."""
    deadline = time.monotonic() + seconds_max
    while not take_turn(name, rate):
        if time.monotonic() >= deadline:
            return False
        time.sleep(PAUSE_SECONDS)
    return True


class _Counter:
    """One per process."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._cluster: FixedWindowRateLimiter | None = None
        self._alone = FixedWindowRateLimiter(MemoryStorage())
        self._away_until = 0.0

    def hit(self, name: str, rate: limits.RateLimitItem) -> bool:
        if time.monotonic() >= self._away_until:
            try:
                if self._cluster is None:
                    self._cluster = FixedWindowRateLimiter(redis_storage(self._redis_url))
                return self._cluster.hit(rate, name)
            except RedisError as error:
                self._away_until = time.monotonic() + REDIS_RETRY_SECONDS
                log.warning("rates of calls are kept by this process alone, as Redis is away: %s", error)
        return self._alone.hit(rate, name)


_counter = cache(_Counter)
_parsed = cache(limits.parse)
