"""`manage.py` with a lower delivery limit and a task that kills its worker: for one test."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bankcore.settings")

from celery import shared_task
from django.core.management import execute_from_command_line

# Importing the package reads the settings and configures Celery: the limit has to be lower by then.
import bankcore.topology as topology
from bankcore.celery import app

topology.DELIVERY_LIMIT = 4
for queue in app.conf.task_queues:
    queue.queue_arguments["x-delivery-limit"] = 4


@shared_task(name="tests.die")
def die(ids: list[str]) -> None:
    os._exit(1)


execute_from_command_line(sys.argv)
