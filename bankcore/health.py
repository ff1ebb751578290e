"""What machines ask the web process: is it alive, may it have traffic, and its numbers. Changes nothing."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from ipaddress import ip_address, ip_network
from typing import Any

import redis
from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection, transaction
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from accounts.chains import CHAINS
from bankcore.database import fetch_all
from bankcore.messaging import breaker
from bankcore.messaging.seals import lag

logger = logging.getLogger(__name__)

QUESTION_TIMEOUT_MS = 2_000
DATABASE_CACHE_SECONDS = 1.0
# A backlog above this is told as this number: the count stays cheap, and every alert has gone off long before.
COUNT_MAX = 1_000_000

STAGE_OF_STATUS = {
    "accepted": "risk",
    "approved": "posting",
    "in_review": "review",
    "parked": "parked",
    "scheduled": "scheduled",
}


def _limit_statements() -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL statement_timeout = {QUESTION_TIMEOUT_MS}")


@never_cache
@require_safe
def livez(request: HttpRequest) -> JsonResponse:
    """Say that this process answers; asks nothing of anyone else, so that an outage elsewhere restarts nothing."""
    return JsonResponse({"status": "ok"})


@never_cache
@require_safe
def readyz(request: HttpRequest) -> JsonResponse:
    """Say whether requests can be served: the database answers and has every migration of this release."""
    reasons = _reasons_not_ready()
    status = "unavailable" if reasons else "ok"
    return JsonResponse({"status": status, "reasons": reasons}, status=503 if reasons else 200)


def _reasons_not_ready() -> list[str]:
    try:
        with transaction.atomic():
            _limit_statements()
            applied = set(MigrationRecorder(connection).applied_migrations())
    except (DatabaseError, InterfaceError) as error:
        # The driver's words may name hosts and users: they belong in the log, not in the answer.
        logger.warning("not ready: %s", error)
        return ["database_unavailable"]
    return [f"migration_missing:{app}.{name}" for app, name in sorted(_migrations_of_this_release() - applied)]


@cache
def _migrations_of_this_release() -> frozenset[tuple[str, str]]:
    return frozenset(MigrationLoader(None).graph.nodes)


@never_cache
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Answer a Prometheus scrape: what the web processes count, and what the database knows."""
    if not _may_read_metrics(request):
        raise Http404
    text = generate_latest(_process_registry()) + generate_latest(_database_registry)
    return HttpResponse(text, content_type=CONTENT_TYPE_PLAIN_0_0_4)


def _may_read_metrics(request: HttpRequest) -> bool:
    # What a proxy forwards comes from somewhere else than the address it seems to come from.
    if "X-Forwarded-For" in request.headers or "Forwarded" in request.headers:
        return False
    try:
        client = ip_address(request.META.get("REMOTE_ADDR", ""))
    except ValueError:
        return False
    return any(client in ip_network(network, strict=False) for network in settings.METRICS_ALLOW_FROM)


def _process_registry() -> CollectorRegistry:
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return registry


# `since` is when a transfer was accepted; a scheduled one is late from its day on, not from when it was asked for.
_BACKLOG = f"""
SELECT status, count(*), min(since)
  FROM (SELECT status, since FROM transfers_opentransfer LIMIT {COUNT_MAX}) AS waiting
 GROUP BY status
"""  # noqa: S608
# Within the lots that are due (messaging/due.py): what waits for next month is not looked at.
_OUTBOX = f"""
SELECT count(*), min(due_at)
  FROM (SELECT e.due_at
          FROM (SELECT unnest(range_agg(int8range(first_event, last_event + 1))) AS ids
                  FROM messaging_lot WHERE due_at <= statement_timestamp()) AS lot
         CROSS JOIN LATERAL (
               SELECT due_at FROM messaging_event
                WHERE id >= lower(lot.ids) AND id < upper(lot.ids) AND published_at IS NULL
                  AND due_at <= statement_timestamp()
                ORDER BY id) AS e
         LIMIT {COUNT_MAX}) AS owed
"""  # noqa: S608
_OPEN_DEAD_LETTERS = f"""
SELECT count(*), (SELECT created_at FROM messaging_deadletter WHERE state = 'open' ORDER BY id LIMIT 1)
  FROM (SELECT id FROM messaging_deadletter WHERE state = 'open' ORDER BY id LIMIT {COUNT_MAX}) AS letters
"""  # noqa: S608
_CLOSED_DEAD_LETTERS = f"""
SELECT state, count(*)
  FROM (SELECT state FROM messaging_deadletter WHERE state <> 'open' LIMIT {COUNT_MAX}) AS letters
 GROUP BY state
"""  # noqa: S608
# In-app messages are there at once. The sweep's position is a number of an event: the first behind it waits for it.
_TELLING = """
SELECT (SELECT created_at FROM notifications_notification WHERE state = 'pending' ORDER BY id LIMIT 1),
       (SELECT created_at FROM notifications_webhookdelivery WHERE state = 'pending' ORDER BY id LIMIT 1),
       (SELECT created_at FROM messaging_event
         WHERE id > coalesce((SELECT event FROM notifications_sweepposition), 0) ORDER BY id LIMIT 1)
"""
_PROOF = "SELECT extract(epoch FROM proved_at)::float8, violations FROM accounts_proof ORDER BY id DESC LIMIT 1"
_PROOFS_BY_KIND = """
(SELECT kind, seconds, extract(epoch FROM proved_at)::float8 FROM accounts_proof
  WHERE kind = 'full' ORDER BY id DESC LIMIT 1)
UNION ALL
(SELECT kind, seconds, extract(epoch FROM proved_at)::float8 FROM accounts_proof
  WHERE kind = 'increment' ORDER BY id DESC LIMIT 1)
"""


def _age(moment: Any) -> float:
    return max(0.0, time.time() - moment.timestamp()) if moment else 0.0


def _backlog() -> Iterator[Metric]:
    backlog = GaugeMetricFamily(
        "bankcore_backlog_transfers", "Transfers waiting for a stage (a million: or more).", labels=["stage"]
    )
    oldest = GaugeMetricFamily(
        "bankcore_oldest_seconds", "Age of the oldest transfer waiting; scheduled: how late it is.", labels=["stage"]
    )
    waiting = {status: (number, since) for status, number, since in fetch_all(_BACKLOG)}
    for status, stage in STAGE_OF_STATUS.items():
        number, since = waiting.get(status, (0, None))
        backlog.add_metric([stage], number)
        oldest.add_metric([stage], _age(since))
    yield backlog
    yield oldest


def _outbox() -> Iterator[Metric]:
    number, since = fetch_all(_OUTBOX)[0]
    yield GaugeMetricFamily("bankcore_outbox_events", "Due events the broker has not confirmed.", value=number)
    yield GaugeMetricFamily("bankcore_outbox_oldest_seconds", "How long the oldest of them is due.", value=_age(since))


def _dead_letters() -> Iterator[Metric]:
    number, since = fetch_all(_OPEN_DEAD_LETTERS)[0]
    numbers = {"replayed": 0, "discarded": 0, "open": number}
    numbers.update(fetch_all(_CLOSED_DEAD_LETTERS))
    family = GaugeMetricFamily("bankcore_dead_letters", "Dead letters by what became of them.", labels=["state"])
    for state, number in numbers.items():
        family.add_metric([state], number)
    yield family
    yield GaugeMetricFamily(
        "bankcore_dead_letters_oldest_seconds", "How long the oldest open dead letter waits.", value=_age(since)
    )


def _telling() -> Iterator[Metric]:
    email, webhook, unswept = fetch_all(_TELLING)[0]
    family = GaugeMetricFamily(
        "bankcore_notifications_oldest_seconds", "Age of the oldest notification that is pending.", labels=["channel"]
    )
    family.add_metric(["email"], _age(email))
    family.add_metric(["webhook"], _age(webhook))
    yield family
    yield GaugeMetricFamily(
        "bankcore_notifications_sweep_lag_seconds",
        "Age of the oldest event that the sweep for lost notifications has not looked at.",
        value=_age(unswept),
    )


def _clock() -> Iterator[Metric]:
    ((database_seconds,),) = fetch_all("SELECT extract(epoch FROM clock_timestamp())::float8")
    ahead_seconds = time.time() - database_seconds
    yield GaugeMetricFamily(
        "bankcore_clock_ahead_seconds", "How far this host's clock is ahead of the database's.", value=ahead_seconds
    )


def _books() -> Iterator[Metric]:
    for proved_at, violations in fetch_all(_PROOF):
        family = GaugeMetricFamily("bankcore_books_violations", "What the last proof found wrong.", labels=["check"])
        for check, number in violations.items():
            family.add_metric([check], number)
        yield family
        yield GaugeMetricFamily(
            "bankcore_books_proved_timestamp_seconds", "When the last proof ended.", value=proved_at
        )
    took = GaugeMetricFamily("bankcore_books_proof_seconds", "How long the last proof took.", labels=["kind"])
    for kind, seconds, proved_at in fetch_all(_PROOFS_BY_KIND):
        took.add_metric([kind], seconds)
        if kind == "full":
            yield GaugeMetricFamily(
                "bankcore_books_full_proved_timestamp_seconds", "When the last full proof ended.", value=proved_at
            )
    yield took


def _seals() -> Iterator[Metric]:
    seconds = GaugeMetricFamily(
        "bankcore_seal_lag_seconds", "How long rows may have waited to be sealed.", labels=["chain"]
    )
    ids = GaugeMetricFamily("bankcore_seal_lag_rows", "Ids above the last sealed row.", labels=["chain"])
    for chain in CHAINS:
        behind = lag(chain)
        seconds.add_metric([chain.table], behind.seconds)
        ids.add_metric([chain.table], behind.ids)
    yield seconds
    yield ids


class DatabaseCollector(Collector):
    """What the database knows, asked at most once in DATABASE_CACHE_SECONDS however many scrape."""

    questions: tuple[Callable[[], Iterable[Metric]], ...] = (
        _backlog,
        _outbox,
        _dead_letters,
        _telling,
        _clock,
        _books,
        _seals,
    )

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._families: list[Metric] = []

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            if time.monotonic() - self._read_at >= DATABASE_CACHE_SECONDS:
                self._families = self._read()
                self._read_at = time.monotonic()
            return self._families

    def _read(self) -> list[Metric]:
        """Ask each question in a transaction of its own: one that fails is left out, the others still answer."""
        families: list[Metric] = []
        for question in self.questions:
            try:
                with transaction.atomic():
                    _limit_statements()
                    families += question()
            except (DatabaseError, InterfaceError) as error:
                logger.warning("metrics%s: the database did not answer: %s", question.__name__, error)
                if not connection.is_usable():
                    break
        return families


class BreakerCollector(Collector):
    """What all workers share in Redis. Of the many breakers of endpoints, only those that are not closed are told."""

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("bankcore_breaker_state", "0 closed, 1 half open, 2 open.", labels=["breaker"])
        try:
            conditions = breaker.conditions(settings.BREAKERS)
        except (redis.RedisError, OSError) as error:
            logger.warning("metrics: Redis did not answer: %s", error)
            return
        for condition in conditions:
            if condition.name in settings.BREAKERS or condition.effective != "closed":
                family.add_metric([condition.name], breaker.LEVELS[condition.effective])
        yield family


_database_registry = CollectorRegistry()
_database_registry.register(DatabaseCollector())
_database_registry.register(BreakerCollector())
