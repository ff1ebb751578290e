"""A Celery consumer that loses nothing: a message it cannot read goes to the dead letters, and never ends the worker.

Celery by itself acknowledges what it cannot decode and exits over some malformed headers.
"""

import logging
import math
import random
import time
from collections.abc import Callable
from typing import Any

from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown

from bankcore.messaging import envelope
from bankcore.messaging.broker import RETRY_SECONDS_MAX, RETRY_SECONDS_MIN, retry_intervals, rotated
from bankcore.messaging.envelope import Refused
from bankcore.messaging.heartbeats import Heartbeats
from bankcore.messaging.unpacking import keep_bytes

log = logging.getLogger(__name__)

HEARTBEATS_PER_INTERVAL = 2
# How long a message that came before waits for its company: once is usually a worker that was ended, again is not.
SUSPECT_SECONDS = 0.1
AGAIN_SUSPECT_SECONDS = 1.0
# Housekeeping that looks so old is left undone if the same was done in this process just now: of what piled up, one is
# enough. Far less than the shortest of beat's intervals, so that nothing is left undone by a clock that is wrong, here
# or where it was signed, and lets all of it look old.
STALE_SECONDS = 55.0
JUST_NOW_SECONDS = 2.0
# A connection that lasted so long was of use: what ends it starts no pause.
LASTED_SECONDS = 10.0
LOOK_SECONDS = 0.05


class GuardedConsumer(Consumer):
    class Blueprint(Consumer.Blueprint):
        # Celery's delayed delivery is never used (retries are rows that become due), and its set-up asks every broker
        # node in turn, for seconds each: a worker that has just lost one node would wait for it before working.
        # Commands that come over the broker are questions, or ignored.
        default_steps = [
            "bankcore.messaging.remote_control:Questions" if step.endswith(":Control") else step
            for step in Consumer.Blueprint.default_steps
            if not step.endswith(":DelayedDelivery")
        ]

    # What every delivered message is handed to, from whichever channel it came.
    handle_task_message: Callable[[Any], Any]
    _take: Callable[[Any], Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        interval_seconds = self.app.conf.broker_heartbeat / HEARTBEATS_PER_INTERVAL
        self._suspects: list[Any] = []
        # Which node is tried first, and how often in a row a connection came to nothing or did not last.
        self._turn = self._failures = 0
        self._connected_at = 0.0
        self._done_at: dict[str, float] = {}
        self._heartbeats = Heartbeats(interval_seconds) if self.app.conf.broker_url.startswith("amqp") else None

    # -- the connection ------------------------------------------------------------------------------------------------

    def connect(self) -> Any:
        connection = super().connect()
        keep_bytes(connection.default_channel)
        self._connected_at = time.monotonic()
        return connection

    def connection_for_read(self, heartbeat: Any = None) -> Any:
        url = rotated(self.app.conf.broker_url, self._turn)
        return self.ensure_connected(self.app.connection_for_read(url=url, heartbeat=heartbeat))

    def ensure_connected(self, conn: Any) -> Any:
        """Try the nodes in turn until one is there; Celery itself waits 2, 4, 6, ... up to 30 s after each round."""

        def tell(error: Exception, interval_seconds: float) -> None:
            log.warning("%s: %s; next try in %.1f s", conn.as_uri(), error, interval_seconds)

        conn = conn.ensure_connection(
            tell, self.app.conf.broker_connection_max_retries, callback=maybe_shutdown, **retry_intervals()
        )
        self.first_connection_attempt = False
        return conn

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        super().on_connection_error_before_connected(exc)
        self._turn_away()

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        super().on_connection_error_after_connected(exc)
        self._turn_away()

    def _turn_away(self) -> None:
        """Go on with the next node: at once from one that served well, else after a pause that grows.

        A node can take connections and still be of no use, as when the leader of a queue is gone and not replaced yet.
        """
        if time.monotonic() - self._connected_at > LASTED_SECONDS:
            self._failures = 0
        self._failures += 1
        self._turn += 1
        ceiling_seconds = min(RETRY_SECONDS_MIN * 2 ** min(self._failures - 1, 10), RETRY_SECONDS_MAX)
        until = time.monotonic() + random.uniform(0.5, 1) * (ceiling_seconds if self._failures > 1 else 0.0)  # noqa: S311
        while (left := until - time.monotonic()) > 0:
            maybe_shutdown()
            time.sleep(min(left, LOOK_SECONDS))

    # -- messages ------------------------------------------------------------------------------------------------------

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        log.error("undecodable message on %s: %s", message.delivery_info.get("routing_key"), exc)
        message.reject_log_error(log, self.connection_errors)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        log.error("not a task message on %s", message.delivery_info.get("routing_key"))
        message.reject_log_error(log, self.connection_errors)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        handle = super().create_task_handler(*args, **kwargs)

        def guarded(message: Any) -> Any:
            try:
                self._check(message)
            except Refused as why:
                log.error("refused a message on %s: %s: %s", message.delivery_info.get("routing_key"), why.kind, why)
                return message.reject_log_error(log, self.connection_errors)
            except Exception:
                log.exception("unreadable message on %s", message.delivery_info.get("routing_key"))
                return message.reject_log_error(log, self.connection_errors)
            if message.delivery_info.get("routing_key") == "maintenance" and self._is_superseded(message):
                # Left to expire in the broker, it would be a dead letter.
                log.warning("%s is %.0f s old, and was done just now", message.headers.get("task"), message.age_seconds)
                return message.ack_log_error(log, self.connection_errors)
            if message.delivery_count:
                return self._suspect(message)
            return take(message)

        def take(message: Any) -> Any:
            try:
                if self._heartbeats is None:
                    return handle(message)
                with self._heartbeats.during_task(self.connection.connection):
                    return handle(message)
            except self.connection_errors:
                raise
            except Exception:
                # Malformed headers reach this far; for one bad message the worker does not stop.
                log.exception("malformed message on %s", message.delivery_info.get("routing_key"))
                return message.reject_log_error(log, self.connection_errors)
            finally:
                if message.delivery_info.get("routing_key") == "maintenance":
                    self._done_at[message.headers.get("task", "")] = time.monotonic()

        self._take = take
        self.handle_task_message = guarded
        return guarded

    def _is_superseded(self, message: Any) -> bool:
        """Tell whether it is one of many that piled up, of which the first was done just now."""
        done_seconds = time.monotonic() - self._done_at.get(message.headers.get("task", ""), -math.inf)
        return bool(message.age_seconds > STALE_SECONDS) and done_seconds < JUST_NOW_SECONDS

    def on_close(self) -> None:
        # They are back in their queues: the channel is gone.
        self._suspects.clear()
        super().on_close()

    def _suspect(self, message: Any) -> None:
        """Let a message that came before, and was not finished, wait for others of its kind to arrive.

        One that kills its worker takes those along that were sent to the worker with it, one from each queue, and the
        broker counts the death against all of them. Up and down the queues in turn, each of these is handled before
        the culprit soon, long before it is taken for one.
        """
        if not self._suspects:
            seconds = SUSPECT_SECONDS if message.delivery_count == 1 else AGAIN_SUSPECT_SECONDS
            self.timer.call_after(seconds, self._handle_suspects)
        self._suspects.append(message)

    def _handle_suspects(self) -> None:
        if not self._suspects:
            return
        down = max(message.delivery_count for message in self._suspects) % 2 == 1
        self._suspects.sort(key=lambda message: message.delivery_info.get("routing_key", ""), reverse=down)
        message = self._suspects.pop(0)
        # One at a time, with a turn of the loop between: what is done is acknowledged before the next ends the process.
        self.timer.call_after(SUSPECT_SECONDS, self._handle_suspects)
        self._take(message)

    def _check(self, message: Any) -> None:
        headers = message.headers
        envelope.check(headers, queue=message.delivery_info.get("routing_key", ""), body=message.as_it_came)
        if not isinstance(message.body, bytes) or not message.body.endswith(envelope.NOTHING_MORE):
            envelope.check_call(message.decode())
        count = headers.get("x-delivery-count", 0)
        message.delivery_count = count if isinstance(count, int) else 0
        message.age_seconds = envelope.age_seconds(headers)
        message.headers = envelope.kept_headers(headers)
