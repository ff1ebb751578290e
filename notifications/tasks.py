"""Doors for the notifications worker."""

from celery import shared_task
from django.conf import settings
from django.db import transaction

from bankcore.messaging import outbox
from bankcore.messaging.dead_letters import park_work
from bankcore.messaging.tasks import BatchTask
from notifications.delivery import deliver
from notifications.delivery import give_up as give_up_email
from notifications.dispatch import dispatch
from notifications.endpoints import forget_old_secrets
from notifications.sweep import sweep_lost
from notifications.webhooks import deliver_webhooks, redrive
from notifications.webhooks import give_up as give_up_webhook


def _park_dispatch(event_id: str, error: Exception, attempts: int) -> None:
    park_work(task="notifications.dispatch", subject=event_id, error=error, attempts=attempts)


@transaction.atomic
def _park_delivery(notification_id: str, error: Exception, attempts: int) -> None:
    # Failed and on view: a sweep must not take up again and again what cannot be done.
    give_up_email([int(notification_id)], f"{type(error).__name__}: {error}")
    park_work(task="notifications.deliver", subject=notification_id, error=error, attempts=attempts)


@transaction.atomic
def _park_webhook(delivery_id: str, error: Exception, attempts: int) -> None:
    give_up_webhook([int(delivery_id)], f"{type(error).__name__}: {error}")
    park_work(task="notifications.deliver_webhooks", subject=delivery_id, error=error, attempts=attempts)


class DispatchTask(BatchTask):
    abstract = True
    park = staticmethod(_park_dispatch)

    # Its messages carry the ids of events, and not of what the events are about.
    def attempts(self, only_id: str, /) -> int:
        return outbox.attempts_of(only_id)

    def defer(self, only_id: str, delay_seconds: float, /) -> bool:
        return outbox.defer_event(only_id, delay_seconds)


class DeliveryTask(BatchTask):
    abstract = True
    retry_types = ("notification.pending",)
    park = staticmethod(_park_delivery)


class WebhookTask(BatchTask):
    abstract = True
    retry_types = ("webhook.pending",)
    park = staticmethod(_park_webhook)


@shared_task(base=DispatchTask, name="notifications.dispatch")
def dispatch_task(event_ids: list[int]) -> None:
    dispatch(event_ids)


@shared_task(base=DeliveryTask, name="notifications.deliver")
def deliver_task(notification_ids: list[str]) -> None:
    deliver([int(notification_id) for notification_id in notification_ids])


@shared_task(base=WebhookTask, name="notifications.deliver_webhooks")
def deliver_webhooks_task(delivery_ids: list[str]) -> None:
    deliver_webhooks([int(delivery_id) for delivery_id in delivery_ids])


@shared_task(name="notifications.redrive_webhooks", acks_late=False)
def redrive_webhooks_task() -> None:
    forget_old_secrets()
    redrive(max(settings.STUCK_SECONDS, 60), number_max=5_000)


@shared_task(name="notifications.sweep_lost", acks_late=False)
def sweep_lost_task() -> None:
    sweep_lost()
