"""Send the notifications that leave the house. A failure is tried again later and then shown, never forgotten.

A mail server that is away costs no notification an attempt: what was not refused itself is held back and sent later.
"""

import logging
import smtplib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from django.conf import settings
from django.db import transaction

from bankcore import metrics
from bankcore.call_rates import wait_for_turn
from bankcore.database import execute, fetch_all
from bankcore.messaging import outbox
from bankcore.messaging.breaker import Breaker, BreakerOpen
from notifications.channels import email
from notifications.models import Channel, Notification

log = logging.getLogger(__name__)

PENDING = "notification.pending"
ATTEMPTS_MAX = 8
RETRY_SECONDS = 5.0
HELD_SECONDS_MAX = 900.0
CHUNK = 20
# A chunk's transaction starts no further message after this time, a task no further chunk: slow is not stuck.
CHUNK_SECONDS_MAX = 10.0
TASK_SECONDS_MAX = 45.0


def deliver(notification_ids: Sequence[int]) -> int:
    """Send pending notifications and return how many went out.

    Safe to repeat: what is delivered is left alone. Each chunk is one transaction with two statements that holds its
    rows' locks, so one crash can repeat at most CHUNK messages, under their old Message-IDs. What the breaker, an
    outage or the time does not allow is made due later, uncounted.
    """
    waiting, sent, until = sorted(notification_ids), 0, time.monotonic() + TASK_SECONDS_MAX
    breaker = Breaker("email")
    with email.connection() as mail:
        while waiting:
            if time.monotonic() > until:
                _hold(waiting, RETRY_SECONDS)
                break
            try:
                permit = breaker.admit()
            except BreakerOpen as refusal:
                _hold(waiting, refusal.retry_after)
                break
            visit = _Visit(mail)
            try:
                sent += _deliver_chunk(waiting[:CHUNK], visit)
            finally:
                breaker.settle(permit, ok=visit.verdict, error=visit.error)
            waiting = visit.not_tried + waiting[CHUNK:]
            if visit.outage:
                # Asked once is enough: the rest would wait for the same silence.
                _hold(waiting, RETRY_SECONDS)
                break
    return sent


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
    counted: bool


class _Visit:
    """One chunk's talk with the mail server, and what it says of the server."""

    def __init__(self, mail: Any) -> None:
        self.mail = mail
        self.outage = False
        self.taken = 0
        self.error = ""
        self.not_tried: list[int] = []

    @property
    def verdict(self) -> bool | None:
        """A server that took something is well. One that refused all it was given is not; silence says nothing."""
        if self.outage:
            return False
        return bool(self.taken) if self.taken or self.error else None

    def send(self, pending: _Pending) -> OSError | None:
        try:
            email.send(pending.id, address=pending.address, title=pending.title, text=pending.text, mail=self.mail)
        except OSError as error:  # smtplib's errors are OSErrors as well.
            if not isinstance(error, smtplib.SMTPRecipientsRefused):
                self.error = f"{type(error).__name__}: {error}"
            self.outage = _is_outage(error)
            return error
        self.taken += 1
        return None


def _is_outage(error: OSError) -> bool:
    """Tell a server that is away or asks to come later from one that does not want this message."""
    if isinstance(error, smtplib.SMTPHeloError | smtplib.SMTPConnectError | smtplib.SMTPAuthenticationError):
        return True
    if isinstance(error, smtplib.SMTPResponseException):
        return 400 <= error.smtp_code < 500
    return not isinstance(error, smtplib.SMTPException) or isinstance(error, smtplib.SMTPServerDisconnected)


# Another worker's lock is waited for: if it dies, its messages are ours to send.
_CLAIM = """
SELECT id, address, title, text, attempts FROM notifications_notification
 WHERE id = ANY(%b::bigint[]) AND state = 'pending' ORDER BY id FOR NO KEY UPDATE
"""
_SETTLE = """
UPDATE notifications_notification AS n
   SET attempts = n.attempts + o.counted::int, state = o.state, failure = coalesce(nullif(o.failure, ''), n.failure),
       delivered_at = CASE o.state WHEN 'delivered' THEN clock_timestamp() END
  FROM unnest(%b::bigint[], %b::text[], %b::text[], %b::bool[]) AS o(id, state, failure, counted)
 WHERE n.id = o.id
"""


@transaction.atomic
def _deliver_chunk(notification_ids: Sequence[int], visit: _Visit) -> int:
    outcomes: list[_Outcome] = []
    pending = [_Pending._make(row) for row in fetch_all(_CLAIM, (list(notification_ids),))]
    until = time.monotonic() + CHUNK_SECONDS_MAX
    for one in pending:
        seconds_left = until - time.monotonic()
        if visit.outage or seconds_left < 0 or not wait_for_turn("email", settings.EMAIL_RATE, seconds_left):
            break
        error = visit.send(one)
        if error is None:
            metrics.notifications.labels(Channel.EMAIL, "delivered").inc()
            outcomes.append(_Outcome(one.id, Notification.State.DELIVERED.value, "", True))
        else:
            outcomes.append(_postponed(one, error, counted=not visit.outage))
    visit.not_tried = [one.id for one in pending[len(outcomes) :]]
    if outcomes:
        execute(_SETTLE, [list(column) for column in zip(*outcomes, strict=True)])
    return visit.taken


def _postponed(pending: _Pending, error: OSError, *, counted: bool) -> _Outcome:
    """Try this one again later. An outage is no attempt, yet asks for growing patience: others go first."""
    failure, attempts = f"{type(error).__name__}: {error}"[:2000], pending.attempts + counted
    log.warning("notification %s not delivered: %s", pending.id, failure)
    if attempts >= ATTEMPTS_MAX:
        metrics.notifications.labels(Channel.EMAIL, "failed").inc()
        return _Outcome(pending.id, Notification.State.FAILED.value, failure, counted)
    metrics.retries.labels("notifications", type(error).__name__).inc()
    subject = str(pending.id)
    delay = RETRY_SECONDS * 2 ** min(attempts if counted else outbox.attempts([PENDING], subject), 20)
    outbox.defer([PENDING], subject, delay if counted else min(delay, HELD_SECONDS_MAX))
    return _Outcome(pending.id, Notification.State.PENDING.value, failure, counted)


def _hold(notification_ids: Sequence[int], seconds: float) -> None:
    """Make what was not tried due later; what is delivered in the meantime is left alone then."""
    held = outbox.postpone([PENDING], [str(pk) for pk in notification_ids], max(seconds, 1.0))
    metrics.notifications.labels(Channel.EMAIL, "held").inc(held)


_GIVE_UP = """
UPDATE notifications_notification SET state = 'failed', failure = %b
 WHERE id = ANY(%b::bigint[]) AND state = 'pending'
"""
# What the broker lost: their newest message was published long ago and came to nothing.
_LOST = """
SELECT n.id FROM notifications_notification n
 WHERE n.state = 'pending'
   AND (SELECT e.published_at FROM messaging_event e WHERE e.subject = n.id::text AND e.type = 'notification.pending'
         ORDER BY e.id DESC LIMIT 1) < statement_timestamp() - %b * interval '1 second'
 ORDER BY n.id LIMIT %b
"""


def give_up(notification_ids: Sequence[int], why: str) -> None:
    """End pending notifications as failed: shown, with the reason, and brought back by the desk."""
    number = execute(_GIVE_UP, (why.replace("\x00", "")[:2000], list(notification_ids)))
    metrics.notifications.labels(Channel.EMAIL, "failed").inc(number)


def redrive(lost_seconds: float, number_max: int) -> int:
    """Make notifications due again whose message was published so long ago and came to nothing; harmless when wrong."""
    lost = fetch_all(_LOST, (float(lost_seconds), number_max))
    return outbox.postpone([PENDING], [str(row[0]) for row in lost], 0.0)
