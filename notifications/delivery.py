"""Send the notifications that leave the house. A failure is tried again later and then shown, never forgotten."""

import logging
import smtplib
from collections.abc import Sequence
from typing import Any, NamedTuple

from django.db import transaction

from bankcore import metrics
from bankcore.database import execute, fetch_all
from bankcore.messaging import outbox
from notifications.channels import email
from notifications.models import Channel, Notification

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 8
RETRY_SECONDS = 5.0
CHUNK = 20
_OUTAGES = (ConnectionError, TimeoutError, smtplib.SMTPServerDisconnected)


def deliver(notification_ids: Sequence[int]) -> int:
    """Send pending notifications and return how many went out.

    Safe to repeat: what is delivered is left alone. Each chunk is one transaction with two statements that holds its
    rows' locks, so one crash can repeat at most CHUNK messages, under their old Message-IDs.
    """
    ids = sorted(notification_ids)
    with email.connection() as mail:
        return sum(_deliver_chunk(ids[start : start + CHUNK], mail) for start in range(0, len(ids), CHUNK))


class _Pending(NamedTuple):
    id: int
    address: str
    title: str
    text: str
    attempts: int


class _Outcome(NamedTuple):
    """What became of one attempt, as it is written down."""

    id: int
    state: str
    failure: str


# Another worker's lock is waited for: if it dies, its messages are ours to send.
_CLAIM = """
SELECT id, address, title, text, attempts FROM notifications_notification
 WHERE id = ANY(%b::bigint[]) AND state = 'pending' ORDER BY id FOR NO KEY UPDATE
"""
_SETTLE = """
UPDATE notifications_notification AS n
   SET attempts = n.attempts + 1, state = o.state, failure = coalesce(nullif(o.failure, ''), n.failure),
       delivered_at = CASE o.state WHEN 'delivered' THEN clock_timestamp() END
  FROM unnest(%b::bigint[], %b::text[], %b::text[]) AS o(id, state, failure)
 WHERE n.id = o.id
"""


@transaction.atomic
def _deliver_chunk(notification_ids: Sequence[int], mail: Any) -> int:
    outcomes: list[_Outcome] = []
    outage: OSError | None = None
    for row in fetch_all(_CLAIM, (list(notification_ids),)):
        outcome, outage = _send(_Pending._make(row), mail, outage)
        outcomes.append(outcome)
    if outcomes:
        execute(_SETTLE, [list(column) for column in zip(*outcomes, strict=True)])
    return sum(outcome.state == Notification.State.DELIVERED for outcome in outcomes)


def _send(pending: _Pending, mail: Any, outage: OSError | None) -> tuple[_Outcome, OSError | None]:
    """Send one, or postpone it; answer also the outage that makes trying the next one pointless, if there is one."""
    if outage is not None:
        # The server was away for the one before: waiting for it twenty times would outlast the transaction.
        return _postponed(pending, outage), outage
    try:
        email.send(pending.id, address=pending.address, title=pending.title, text=pending.text, mail=mail)
    except OSError as error:  # smtplib's errors are OSErrors as well.
        return _postponed(pending, error), error if isinstance(error, _OUTAGES) else None
    metrics.notifications.labels(Channel.EMAIL, "delivered").inc()
    return _Outcome(pending.id, Notification.State.DELIVERED.value, ""), None


def _postponed(pending: _Pending, error: OSError) -> _Outcome:
    failure, attempts = f"{type(error).__name__}: {error}"[:2000], pending.attempts + 1
    log.warning("notification %s not delivered: %s", pending.id, failure)
    if attempts >= ATTEMPTS_MAX:
        metrics.notifications.labels(Channel.EMAIL, "failed").inc()
        return _Outcome(pending.id, Notification.State.FAILED.value, failure)
    metrics.retries.labels("notifications", type(error).__name__).inc()
    outbox.defer(["notification.pending"], str(pending.id), RETRY_SECONDS * 2**attempts)
    return _Outcome(pending.id, Notification.State.PENDING.value, failure)
