"""Send the notifications that leave the house. A failure is tried again later and then shown, never forgotten."""

import logging
from collections.abc import Sequence

from django.db import transaction
from django.utils import timezone

from bankcore import metrics
from bankcore.messaging import outbox
from notifications.channels import email
from notifications.models import Notification

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 8
RETRY_SECONDS = 5.0


def deliver(notification_ids: Sequence[int]) -> int:
    """Send pending notifications and return how many went out.

    Safe to repeat: what is delivered is left alone, and what another worker holds is skipped. Each is sent under its
    own row lock, so one crash can repeat at most one message.
    """
    return sum(_deliver_one(notification_id) for notification_id in notification_ids)


@transaction.atomic
def _deliver_one(notification_id: int) -> bool:
    pending = Notification.objects.select_for_update(skip_locked=True).filter(
        pk=notification_id, state=Notification.State.PENDING
    )
    notification = pending.first()
    if notification is None:
        return False
    notification.attempts += 1
    try:
        email.send(notification)
    except OSError as error:  # smtplib's errors are OSErrors as well.
        _postpone(notification, error)
        return False
    notification.state = Notification.State.DELIVERED
    notification.delivered_at = timezone.now()
    notification.save(update_fields=["state", "delivered_at", "attempts"])
    metrics.notifications.labels(notification.channel, "delivered").inc()
    return True


def _postpone(notification: Notification, error: OSError) -> None:
    notification.failure = f"{type(error).__name__}: {error}"[:2000]
    if notification.attempts >= ATTEMPTS_MAX:
        notification.state = Notification.State.FAILED
        metrics.notifications.labels(notification.channel, "failed").inc()
    else:
        metrics.retries.labels("notifications", type(error).__name__).inc()
        outbox.defer(["notification.pending"], str(notification.pk), RETRY_SECONDS * 2**notification.attempts)
    notification.save(update_fields=["state", "failure", "attempts"])
    log.warning("notification %s not delivered: %s", notification.pk, notification.failure)
