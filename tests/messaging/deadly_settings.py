"""The settings, a lower delivery limit, and a task that kills its worker: for one test."""

import os

from celery import shared_task

from bankcore import topology
from bankcore.settings import *  # noqa: F403

topology.DELIVERY_LIMIT = 3


@shared_task(name="tests.die")
def die(ids: list[str]) -> None:
    os._exit(1)
