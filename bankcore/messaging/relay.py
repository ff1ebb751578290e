"""The relay: carry committed events to the broker, in id order per queue, and mark them once the broker has them.

One relay is active (it holds an advisory lock); others stand by and take over when its database session ends, be it
that the relay died, was frozen, or hangs (messaging/lease.py).
"""

import logging
import random
import threading
import time
from collections import defaultdict
from collections.abc import Sequence

import psycopg
from django.conf import settings

from bankcore import metrics
from bankcore.columns import pack_all
from bankcore.database import open_session
from bankcore.messaging import outbox
from bankcore.messaging.broker import declare_topology, rotated
from bankcore.messaging.due import DueEvents, Row
from bankcore.messaging.gathering import Gathering
from bankcore.messaging.lease import Lease, Watch
from bankcore.messaging.publisher import Publisher, TaskMessage
from bankcore.messaging.reachability import Reachability
from bankcore.messaging.stretch import Numbering

log = logging.getLogger(__name__)

ACTIVE_LOCK = 7204
# Held alone while the relay sleeps: writers that see it taken send a NOTIFY (migration 0002_append_only_and_wake).
ASLEEP_LOCK = 7205
EVENTS_MAX = 8000
SLEEP_SECONDS_MAX = 1.0
STANDBY_SECONDS = 1.0
BUSY_SECONDS = 0.002
# While a queue refuses, looking again costs more: what waits for it is looked through.
BUSY_SECONDS_REFUSED = 0.05
REDECLARE_SECONDS = 1.0
# While a queue refuses, the connection is opened anew this often.
REOPEN_SECONDS = 5.0
BACKOFF_SECONDS_MAX = 5.0
# Between two tries to publish: from so long to so long.
RETRY_SECONDS = (0.2, 0.8)

# A worker can have the message, fail, and make the event due again before the broker's confirm is here: that next
# attempt is not what was published, so only the attempt that was read is marked.
_MARK = """
UPDATE messaging_event AS e SET published_at = clock_timestamp()
  FROM unnest(%b::bigint[], %b::int[]) AS sent(id, attempt)
 WHERE e.id = sent.id AND e.attempt = sent.attempt AND e.published_at IS NULL
"""


class Relay:
    """Run until `stop` is set. Survives the loss of the broker and of the database by reconnecting with backoff."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self.publisher: Publisher | None = None
        self._turn = 0
        self._reopened_at = 0.0
        self.gathering = Gathering()
        self.due = DueEvents(EVENTS_MAX)
        self.lease: Lease | None = None
        self.reachability = Reachability()
        self._numbering = Numbering()
        self._redeclare_at = 0.0

    def run(self) -> None:
        backoff = 0.1
        while not self.stop.is_set():
            try:
                with open_session("bankcore relay") as database:
                    self.lease, self.reachability = Lease(database), Reachability()
                    if not self._become_active(database):
                        return
                    self._numbering = Numbering()
                    log.info("relay is active")
                    with self.lease.kept():
                        while not self.stop.is_set():
                            self.lease.extend()
                            self.step(database)
                            backoff = 0.1
            except psycopg.Error as error:
                self.lease = None
                log.warning("database is away, trying again in %.1f s: %s", backoff, error)
                self.stop.wait(backoff)
                backoff = min(backoff * 2, BACKOFF_SECONDS_MAX)
        self._drop_publisher()

    def step(self, database: psycopg.Connection) -> None:
        """Deliver what is due, or sleep until something may be."""
        began = time.monotonic()
        rows = self.due.read(database)
        if not rows:
            self.due.forget_done(database)
            self._sleep(database)
            return
        try:
            unsent = self.deliver(database, rows)
            self.reachability.tell(database, away=False)
            if not unsent:
                self.due.forget_done(database)
        except psycopg.Error:
            raise
        except Exception as error:
            # Whatever the broker did, nothing unconfirmed was marked: a new connection sends it again.
            log.warning("broker is away or refuses, trying again: %s: %s", type(error).__name__, error)
            was_connected = self.publisher is not None
            self._drop_publisher()
            self.reachability.tell(database, away=not (was_connected and self._can_connect()))
            metrics.retries.labels("relay", type(error).__name__).inc()
            self.stop.wait(random.uniform(*RETRY_SECONDS))  # noqa: S311  Jitter, not a secret.
            return
        if unsent:
            metrics.retries.labels("relay", "not_taken").inc()
            self._redeclare(self._publisher().unroutable)
            self._reopen()
        elif (pause := self.gathering.seconds_to_wait(len(rows), time.monotonic() - began)) and len(rows) < EVENTS_MAX:
            self.stop.wait(pause)

    def deliver(self, database: psycopg.Connection, rows: Sequence[Row]) -> int:
        """Publish the events and mark what the broker confirmed; return how many events it did not take.

        Each wave holds at most one message per queue, and a queue that refused one gets nothing more this time: so a
        failure cannot let later events of a partition overtake earlier ones.
        """
        attempts = {row.id: row.attempt for row in rows}
        # Events that no queue hears of (account.opened) are delivered by being there.
        routes = settings.TOPOLOGY_ROUTES
        self._mark(database, [row.id for row in rows if row.type not in routes], attempts)
        lanes = _lanes(rows)
        waves = max((len(lane) for lane in lanes.values()), default=0)
        refused: set[str] = set()
        unsent = 0
        for number in range(waves):
            wave = [lane[number] for queue, lane in lanes.items() if len(lane) > number and queue not in refused]
            if not wave:
                break
            if self.lease is not None:
                self.lease.confirm()
            for message in wave:
                message.place = self._numbering.next(message.queue)
            taken = self._publisher().publish(wave)
            for message in taken:
                if message.place is not None:
                    self._numbering.take(message.queue, message.place)
            self._mark(database, [event_id for message in taken for event_id in message.event_ids], attempts)
            for message in taken:
                metrics.published.labels(message.queue.partition("-")[0]).inc(len(message.event_ids))
            taken_queues = {message.queue for message in taken}
            for message in wave:
                if message.queue in taken_queues:
                    self.due.accept(message.queue)
                else:
                    refused.add(message.queue)
                    self.due.refuse(message.queue)
                    unsent += len(message.event_ids)
        return unsent

    def _mark(self, database: psycopg.Connection, event_ids: Sequence[int], attempts: dict[int, int]) -> None:
        if event_ids:
            database.execute(_MARK, pack_all((list(event_ids), [attempts[i] for i in event_ids])), prepare=True)

    def _reopen(self) -> None:
        """Leave a channel to which a queue was full, now and then.

        The broker keeps for each channel that a quorum queue was full, until it drains; but not when its limit is
        lifted (seen with RabbitMQ 3.10: the queue stood empty, and this channel's messages were refused).
        """
        if time.monotonic() - self._reopened_at > REOPEN_SECONDS:
            self._reopened_at = time.monotonic()
            self._drop_publisher()

    def _publisher(self) -> Publisher:
        if self.publisher is None:
            # If this does not come to anything, or does not last, the next one begins with another node.
            self._turn += 1
            self.publisher = Publisher(rotated(settings.BROKER_URL, self._turn - 1), "bank")
        return self.publisher

    def _can_connect(self) -> bool:
        try:
            self._publisher()
        except Exception as error:
            log.warning("no node of the broker takes the connection: %s: %s", type(error).__name__, error)
            return False
        return True

    def _drop_publisher(self) -> None:
        if self.publisher is not None:
            self.publisher.close()
            self.publisher = None

    def _redeclare(self, unroutable: set[str]) -> None:
        if not unroutable or time.monotonic() < self._redeclare_at:
            return
        unroutable.clear()
        self._redeclare_at = time.monotonic() + REDECLARE_SECONDS
        try:
            declare_topology()
        except Exception as error:
            log.warning("cannot declare the topology: %s", error)

    def _become_active(self, database: psycopg.Connection) -> bool:
        announced = False
        watch = Watch(ACTIVE_LOCK)
        while not self.stop.is_set():
            if _scalar(database, "SELECT pg_try_advisory_lock(%s)", ACTIVE_LOCK):
                database.execute("LISTEN bankcore_outbox")
                return True
            if not announced:
                log.info("another relay is active, standing by")
                announced = True
            watch.look(database)
            self.stop.wait(STANDBY_SECONDS)
        return False

    def _sleep(self, database: psycopg.Connection) -> None:
        if not _scalar(database, "SELECT pg_try_advisory_lock(%s)", ASLEEP_LOCK):
            # Someone is between writing an event and committing it, and will not notify: look again very soon.
            self.stop.wait(BUSY_SECONDS if self.due.wait_seconds() is None else BUSY_SECONDS_REFUSED)
            return
        try:
            if not self.due.read(database):
                seconds = min(SLEEP_SECONDS_MAX, self.due.wait_seconds() or SLEEP_SECONDS_MAX)
                for _ in database.notifies(timeout=seconds, stop_after=1):
                    break
        finally:
            database.execute("SELECT pg_advisory_unlock(%s)", (ASLEEP_LOCK,))


def _lanes(rows: Sequence[Row]) -> dict[str, list[TaskMessage]]:
    """Sort events into messages of at most MESSAGE_IDS_MAX ids, per queue, in id order.

    What has failed before travels alone, deliveries excepted.
    """
    queue_of, routes, ids_max = settings.TOPOLOGY.queue_of, settings.TOPOLOGY_ROUTES, settings.MESSAGE_IDS_MAX
    lanes: dict[str, list[TaskMessage]] = defaultdict(list)
    room: dict[str, int] = {}
    for row in rows:
        route = routes.get(row.type)
        if route is None:
            continue
        queue = queue_of(route, row.partition_key)
        lane = lanes[queue]
        last = lane[-1] if lane else None
        alone = route.retried_alone and outbox.counted(row.attempt) > 0
        if last is None or alone or len(last.ids) >= room[queue] or last.task != route.task:
            last = TaskMessage(queue=queue, task=route.task, ids=[], event_ids=[])
            lane.append(last)
            room[queue] = 1 if alone else ids_max
        last.ids.append(row.subject if route.carries == "subject" else row.id)
        last.event_ids.append(row.id)
    return lanes


def _scalar(database: psycopg.Connection, sql: str, *parameters: object) -> object:
    row = database.execute(sql, parameters).fetchone()
    return row[0] if row else None
