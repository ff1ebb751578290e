"""Run a Celery worker for one role."""

import os
import socket
from argparse import ArgumentParser
from typing import Any

from celery import current_app
from celery.signals import worker_ready
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from bankcore import metrics
from bankcore.garbage import collect_rarely
from bankcore.messaging import envelope, pause
from bankcore.messaging.beat import Beat
from bankcore.messaging.bulkhead import limit_queues
from bankcore.messaging.dead_letters import DeadLetterStep
from bankcore.messaging.standby import standby_for
from bankcore.niceness import yield_processors

NOTIFICATION_THREADS = 6
SHARES = {"deliveries": 3}
ROLES = {
    # One process takes a partition's batches one after another, so solo: no pool between the queue and the work.
    # The number is what Celery takes the prefetch from, and would else be that of the processors: one message of each
    # queue, so that one that comes back is handled before those behind it.
    "risk": ["--pool", "solo", "--concurrency", "1"],
    "posting": ["--pool", "solo", "--concurrency", "1"],
    # Deliveries wait for others: threads, of which they may hold only some (SHARES).
    "notifications": ["--pool", "threads", "--concurrency", str(NOTIFICATION_THREADS)],
    # Beat lives in these workers (messaging/beat.py).
    "maintenance": ["--pool", "solo"],
}


# Telling people and housekeeping leave the processor to those who move money, where they share one.
YIELDING_ROLES = ("notifications", "maintenance")


class Command(BaseCommand):
    help = "Run a Celery worker for ROLE, with the queues, pool and prefetch that the role needs."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("role", choices=sorted(ROLES))
        parser.add_argument("--index", type=int, default=0, metavar="I", help="which share of the partitions (from 0)")
        parser.add_argument("--of", type=int, default=1, metavar="N", help="how many workers share the partitions")

    def handle(self, *, role: str, index: int, of: int, **options: Any) -> None:
        if not settings.MESSAGE_KEY_IS_SHARED:
            raise CommandError(envelope.NO_SHARED_KEY)
        if not 0 <= index < of:
            raise CommandError(f"--index counts from 0 and stays below --of: {index} of {of} is no share.")
        queues = settings.TOPOLOGY.role_queues(role, index, of)
        if not queues:
            raise CommandError(f"{settings.PARTITIONS} partitions leave nothing for worker {index} of {of}.")
        if role == "maintenance":
            current_app.steps["consumer"].add(DeadLetterStep)
            current_app.steps["worker"].add(Beat)
        else:
            # Each thread keeps its database connection from task to task; messaging.tasks drops it when it breaks.
            current_app.conf["CELERY_DB_REUSE_MAX"] = 1_000_000_000
        others = [name for name in settings.TOPOLOGY.family_queues(role) if name not in queues]
        if others:
            current_app.steps["consumer"].add(standby_for(others))
        if role == "notifications" and settings.BROKER_URL.startswith("amqp"):
            limit_queues(current_app, SHARES, usual=NOTIFICATION_THREADS)
        if role in YIELDING_ROLES:
            yield_processors()
        worker_ready.connect(lambda **_: metrics.serve(pause.state), weak=False)
        worker_ready.connect(lambda **_: collect_rarely(), weak=False)
        name = f"{role}.{index}.{os.getpid()}@{socket.gethostname()}"
        quiet = ["--without-gossip", "--without-mingle", "--loglevel", settings.LOG_LEVEL]
        current_app.worker_main(["worker", "--queues", ",".join(queues), "--hostname", name, *quiet, *ROLES[role]])
