"""Doors for the notifications worker."""

from celery import shared_task

from bankcore.messaging.dead_letters import park_work
from bankcore.messaging.tasks import BatchTask
from notifications.delivery import deliver
from notifications.dispatch import dispatch


def _park_dispatch(event_id: str, error: Exception, attempts: int) -> None:
    park_work(task="notifications.dispatch", subject=event_id, error=error, attempts=attempts)


def _park_delivery(notification_id: str, error: Exception, attempts: int) -> None:
    park_work(task="notifications.deliver", subject=notification_id, error=error, attempts=attempts)


class DispatchTask(BatchTask):
    abstract = True
    park = staticmethod(_park_dispatch)


class DeliveryTask(BatchTask):
    abstract = True
    retry_types = ("notification.pending",)
    park = staticmethod(_park_delivery)


@shared_task(base=DispatchTask, name="notifications.dispatch")
def dispatch_task(event_ids: list[int]) -> None:
    dispatch(event_ids)


@shared_task(base=DeliveryTask, name="notifications.deliver")
def deliver_task(notification_ids: list[str]) -> None:
    deliver([int(notification_id) for notification_id in notification_ids])
