"""Doors for the workers: each task is one call. Failure handling is messaging/tasks.py."""

from uuid import UUID

from celery import shared_task

from bankcore.messaging.switches import apply_switches
from bankcore.messaging.tasks import BatchTask
from transfers.books import prove_increment
from transfers.parking import park_transfer
from transfers.posting import post_transfers
from transfers.risk.screening import check_risk
from transfers.sweep import sweep_stuck


def _park_unscreened(transfer_id: str, error: Exception, attempts: int) -> None:
    park_transfer(UUID(transfer_id), task="transfers.check_risk", error=error, attempts=attempts)


def _park_unposted(transfer_id: str, error: Exception, attempts: int) -> None:
    park_transfer(UUID(transfer_id), task="transfers.post_transfers", error=error, attempts=attempts)


class ScreeningTask(BatchTask):
    abstract = True
    in_order = True
    retry_types = ("transfer.accepted",)
    park = staticmethod(_park_unscreened)


class PostingTask(BatchTask):
    abstract = True
    in_order = True
    retry_types = ("transfer.approved",)
    park = staticmethod(_park_unposted)


@shared_task(base=ScreeningTask, name="transfers.check_risk")
def check_risk_task(transfer_ids: list[str]) -> None:
    check_risk([UUID(transfer_id) for transfer_id in transfer_ids])


@shared_task(base=PostingTask, name="transfers.post_transfers")
def post_transfers_task(transfer_ids: list[str]) -> None:
    post_transfers([UUID(transfer_id) for transfer_id in transfer_ids])


@shared_task(name="messaging.apply_switches", acks_late=False)
def apply_switches_task() -> None:
    apply_switches()


@shared_task(name="transfers.sweep_stuck", acks_late=False)
def sweep_stuck_task() -> None:
    sweep_stuck()


# Acknowledged before it runs: a proof that failed is made up for by the next one, and is no dead letter.
@shared_task(name="transfers.prove_books", acks_late=False)
def prove_books_task() -> None:
    prove_increment()
