"""Doors for the maintenance worker."""

from celery import shared_task

from accounts.chains import CHAINS
from bankcore.messaging.seals import seal


# Acknowledged before it runs: what one call leaves undone, the next one does.
@shared_task(name="accounts.seal_rows", acks_late=False)
def seal_rows_task() -> None:
    seal(CHAINS)
