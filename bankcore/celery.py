"""The Celery application: how tasks travel. Queues are in topology.py, failure handling in messaging/tasks.py."""

import os
from typing import Any

from celery import Celery
from django.conf import settings
from kombu import Exchange, Queue

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bankcore.settings")

# What beat has done again and again on the maintenance queue: the task, and how often (seconds).
HOUSEKEEPING = {
    "transfers.sweep_stuck": 15.0,
    "messaging.apply_switches": 15.0,
    "accounts.seal_rows": 10.0,
    "notifications.redrive_webhooks": 60.0,
    "notifications.sweep_lost": 15.0,
    "transfers.prove_books": 60.0,
}

app = Celery("bankcore", amqp="bankcore.messaging.envelope:SigningAMQP")


def _configuration() -> dict[str, Any]:
    exchange = Exchange("bank", type="topic", durable=True)
    queues = [
        Queue(spec.name, exchange, routing_key=spec.name, queue_arguments=dict(spec.arguments))
        for spec in settings.TOPOLOGY.work_queues()
    ]
    return {
        "broker_url": settings.BROKER_URL,
        # A broker that is away is waited for; nothing in a worker gives up on it.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,
        # A worker that is frozen or cut off loses its partitions to the next one after two or three of these (seconds).
        "broker_heartbeat": 5,
        "broker_transport_options": {"confirm_publish": True, "read_timeout": 20, "write_timeout": 5}
        if settings.BROKER_URL.startswith("amqp")
        else {"visibility_timeout": 300},
        "task_queues": queues,
        "task_default_queue": "maintenance",
        "task_default_exchange": "bank",
        "task_default_exchange_type": "topic",
        "task_default_routing_key": "maintenance",
        "task_create_missing_queues": False,
        "task_default_queue_type": "quorum",
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_compression": None,
        # No result backend: the answer is the transfer's row.
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_acks_on_failure": False,
        "task_acks_on_timeout": False,
        "worker_prefetch_multiplier": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_send_task_events": False,
        "worker_disable_rate_limits": True,
        "worker_consumer": "bankcore.messaging.consumer:GuardedConsumer",
        "beat_schedule": {
            task: {"task": task, "schedule": seconds, "options": {"queue": "maintenance"}}
            for task, seconds in HOUSEKEEPING.items()
        },
    }


app.config_from_object(_configuration())
app.autodiscover_tasks()
