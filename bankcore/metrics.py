"""Every metric of the stack that a process counts itself; what the database knows is read by `bankcore.health`.

Web runs in several processes and shares PROMETHEUS_MULTIPROC_DIR; each relay and worker is one process and serves its
own numbers on METRICS_PORT, a worker its state as well. Prometheus adds them up.
"""

import json
import logging
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from django.conf import settings
from prometheus_client import Counter, Gauge, Histogram, start_http_server

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_SIZES = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 10000)

transfers = Counter("bankcore_transfers", "Transfers that reached a status.", ["status", "reason"])


class StageHistogram(Histogram):
    """Observes a whole batch: its members have mostly come with the same few batches of the stage before."""

    def observe_since(self, moments: Iterable[datetime], now: datetime) -> None:
        """Observe how long ago each of the moments was."""
        self._raise_if_not_observable()
        for moment, number in Tally(moments).items():
            seconds = (now - moment).total_seconds()
            self._sum.inc(seconds * number)
            self._buckets[bisect_left(self._upper_bounds, seconds)].inc(number)


stage_seconds = StageHistogram(
    "bankcore_stage_seconds",
    "How long a stage took, waiting included (accept: the request).",
    ["stage"],
    buckets=_SECONDS,
)
batch_size = Histogram(
    "bankcore_batch_size", "Transfers a stage handled in one transaction.", ["stage"], buckets=_SIZES
)
admission = Counter("bankcore_admission", "Answers at the door.", ["decision"])
rate_limits_alone = Gauge(
    "bankcore_rate_limits_alone",
    "1 while a process keeps rate limits by itself, as Redis is away.",
    multiprocess_mode="livemax",
)
front_refusals = Counter("bankcore_front_refusals", "Requests answered before they reached a thread.", ["code"])
predicted_wait = Gauge(
    "bankcore_predicted_wait_seconds",
    "How long a transfer that comes now would wait for a stage.",
    ["stage"],
    multiprocess_mode="livemax",
)
drain_rate = Gauge(
    "bankcore_drain_rate_transfers",
    "Transfers a second that a stage was measured to work off; 0: it stands still.",
    ["stage"],
    multiprocess_mode="livemin",
)
retries = Counter("bankcore_retries", "Work tried again.", ["stage", "cause"])
notifications = Counter("bankcore_notifications", "Notifications by what became of them.", ["channel", "outcome"])
breaker_refusals = Counter("bankcore_breaker_refusals", "Calls that a breaker did not let through.", ["breaker"])
breaker_fallbacks = Counter("bankcore_breaker_fallbacks", "Steps of a breaker taken alone, as Redis was away.")
published = Counter("bankcore_published_events", "Events the broker has confirmed.", ["family"])
# Web shares one folder among its processes: only those alive count. Workers have one process each.
paused = Gauge(
    "bankcore_worker_paused",
    "Whether work of this stage waits in place for infrastructure.",
    ["stage", "cause"],
    multiprocess_mode="livesum",
)
paused_seconds = Counter(
    "bankcore_worker_paused_seconds", "How long work has waited in place for infrastructure.", ["stage", "cause"]
)
stood_in = Counter(
    "bankcore_stood_in_messages", "Messages a worker handled for a partition that is another's share.", ["queue"]
)
control_ignored = Counter(
    "bankcore_control_messages_ignored", "Messages to workers' remote control that were ignored.", ["cause"]
)
unroutable = Counter(
    "bankcore_unroutable_messages", "Messages the broker returned because no queue wanted them.", ["queue"]
)


def count_transfers(outcomes: Iterable[tuple[str, str]]) -> None:
    """Count (status, reason) pairs of one batch."""
    for (status, reason), number in Tally(outcomes).items():
        transfers.labels(status, reason).inc(number)


def serve(state: Callable[[], Any] | None = None) -> None:
    """Serve this process's metrics on METRICS_PORT of the loopback or METRICS_ADDRESS; 0 serves none.

    `state` is served as JSON under /state, from a thread of the server's own.
    """
    if settings.METRICS_PORT:
        server, _ = start_http_server(settings.METRICS_PORT, addr=settings.METRICS_ADDRESS)
        if state is not None:
            server.set_app(_with_state(server.get_app(), state))
        logging.getLogger(__name__).info("metrics on %s:%s", settings.METRICS_ADDRESS, settings.METRICS_PORT)


def _with_state(pages: Any, state: Callable[[], Any]) -> Any:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/state":
            answer: Iterable[bytes] = pages(environ, start_response)
            return answer
        start_response("200 OK", [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
        return [json.dumps(state()).encode()]

    return application
