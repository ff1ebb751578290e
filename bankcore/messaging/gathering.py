"""How long the relay lets events gather: not at all when few come, longer the more come.

Every message costs the broker a confirm and a stage a transaction, whether it carries one id or hundreds. So while
events stream, a short wait buys full messages; a lone transfer never waits for company.
"""

import time
from collections.abc import Callable

WINDOW_SECONDS = 0.2
# Up to this many events a second, about fifty transfers, nobody waits.
STREAM_EVENTS_PER_SECOND = 150
GATHER_SECONDS_MAX = 0.2
# The wait grows with the rate and reaches its maximum at this many events a second.
FULL_EVENTS_PER_SECOND = 3_000
# Where the machine is busy fewer come, and each message costs the same: so while events stream, the relay rests this
# many times as long as it took to deliver the last ones.
REST_TIMES = 3.0


class Gathering:
    """Measures the rate of events over short windows."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began, self._events, self._per_second = clock(), 0, 0.0

    def seconds_to_wait(self, events: int, took_seconds: float) -> float:
        """Count this many events as delivered now, and say how long to wait before looking for more.

        `took_seconds`: how long reading and delivering them took.
        """
        now = self._clock()
        if now - self._began >= WINDOW_SECONDS:
            self._per_second = self._events / (now - self._began)
            self._began, self._events = now, 0
        self._events += events
        if self._per_second < STREAM_EVENTS_PER_SECOND:
            return 0.0
        by_rate = GATHER_SECONDS_MAX * self._per_second / FULL_EVENTS_PER_SECOND
        return min(max(by_rate, REST_TIMES * took_seconds), GATHER_SECONDS_MAX)
