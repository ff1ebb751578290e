"""A Celery consumer that loses nothing: a message it cannot read goes to the dead letters, and never ends the worker.

Celery by itself acknowledges what it cannot decode and exits over some malformed headers.
"""

import logging
from collections.abc import Callable
from typing import Any

from celery.worker.consumer import Consumer

from bankcore.messaging.heartbeats import Heartbeats

log = logging.getLogger(__name__)

HEARTBEATS_PER_INTERVAL = 2


class GuardedConsumer(Consumer):
    class Blueprint(Consumer.Blueprint):
        # Celery's delayed delivery is never used (retries are rows that become due), and its set-up asks every broker
        # node in turn, for seconds each: a worker that has just lost one node would wait for it before working.
        default_steps = [step for step in Consumer.Blueprint.default_steps if not step.endswith(":DelayedDelivery")]

    # What every delivered message is handed to, from whichever channel it came.
    handle_task_message: Callable[[Any], Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        interval_seconds = self.app.conf.broker_heartbeat / HEARTBEATS_PER_INTERVAL
        self._heartbeats = Heartbeats(interval_seconds) if self.app.conf.broker_url.startswith("amqp") else None

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

        self.handle_task_message = guarded
        return guarded
