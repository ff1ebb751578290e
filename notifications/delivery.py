"""Send the notifications that leave the house. A failure is tried again later and then shown, never forgotten."""

import logging
import smtplib
from collections.abc import Sequence
from typing import Any

from django.db import transaction
from django.utils import timezone

from bankcore import metrics
from bankcore.messaging import outbox
from notifications.channels import email
from notifications.models import Notification

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 8
RETRY_SECONDS = 5.0
CHUNK = 20
_OUTAGES = (ConnectionError, TimeoutError, smtplib.SMTPServerDisconnected)


def deliver(notification_ids: Sequence[int]) -> int:
    """Send pending notifications and return how many went out.

    Safe to repeat: what is delivered is left alone. Each chunk is one transaction with a constant number of statements
    that holds its rows' locks, so one crash can repeat at most CHUNK messages, under their old Message-IDs.
    """
    ids = sorted(notification_ids)
    with email.connection() as mail:
        return sum(_deliver_chunk(ids[start : start + CHUNK], mail) for start in range(0, len(ids), CHUNK))


@transaction.atomic
def _deliver_chunk(notification_ids: Sequence[int], mail: Any) -> int:
    # Another worker's lock is waited for: if it dies, its messages are ours to send.
    pending = list(
        Notification.objects.select_for_update()
        .filter(pk__in=notification_ids, state=Notification.State.PENDING)
        .order_by("pk")
    )
    outage: OSError | None = None
    for notification in pending:
        outage = _send(notification, mail, outage)
    Notification.objects.bulk_update(pending, ["state", "delivered_at", "attempts", "failure"])
    return sum(notification.state == Notification.State.DELIVERED for notification in pending)


def _send(notification: Notification, mail: Any, outage: OSError | None) -> OSError | None:
    """Send one, or postpone it; return the outage that makes trying the next one pointless, if there is one."""
    notification.attempts += 1
    if outage is not None:
        # The server was away for the one before: waiting for it twenty times would outlast the transaction.
        _postpone(notification, outage)
        return outage
    try:
        email.send(notification, mail)
    except OSError as error:  # smtplib's errors are OSErrors as well.
        _postpone(notification, error)
        return error if isinstance(error, _OUTAGES) else None
    notification.state = Notification.State.DELIVERED
    notification.delivered_at = timezone.now()
    metrics.notifications.labels(notification.channel, "delivered").inc()
    return None


def _postpone(notification: Notification, error: OSError) -> None:
    notification.failure = f"{type(error).__name__}: {error}"[:2000]
    if notification.attempts >= ATTEMPTS_MAX:
        notification.state = Notification.State.FAILED
        metrics.notifications.labels(notification.channel, "failed").inc()
    else:
        metrics.retries.labels("notifications", type(error).__name__).inc()
        outbox.defer(["notification.pending"], str(notification.pk), RETRY_SECONDS * 2**notification.attempts)
    log.warning("notification %s not delivered: %s", notification.pk, notification.failure)
