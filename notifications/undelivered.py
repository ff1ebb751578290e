"""The way out for deliveries that a bug ended (notifications/tasks.py): once more with all their attempts, or failed.

Parked work is `failed`: so nothing takes up again and again what cannot be done, and nothing is `pending` for ever.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NamedTuple

from django.utils import timezone

from bankcore.database import fetch_all
from bankcore.messaging import outbox
from bankcore.messaging.errors import NotReplayable
from bankcore.messaging.models import DeadLetter
from bankcore.messaging.rooms import NOTHING, Forecast
from notifications import delivery, webhooks

BIGINT_DIGITS_MAX = 18


class _Statements(NamedTuple):
    """A table of deliveries, read and written by id."""

    lock: str
    look: str
    take_up: str
    event_type: str
    give_up: Callable[[Sequence[int], str], None]


# Those of a release that left them pending are taken up as well.
_NOTIFICATIONS = _Statements(
    lock="SELECT id FROM notifications_notification WHERE id = %b::bigint FOR NO KEY UPDATE",
    look="SELECT state FROM notifications_notification WHERE id = %b::bigint",
    take_up="""
UPDATE notifications_notification SET state = 'pending', attempts = 0, failure = ''
 WHERE id = %b::bigint AND state <> 'delivered' RETURNING recipient""",
    event_type=delivery.PENDING,
    give_up=delivery.give_up,
)
_WEBHOOKS = _Statements(
    lock="SELECT id FROM notifications_webhookdelivery WHERE id = %b::bigint FOR NO KEY UPDATE",
    look="SELECT state FROM notifications_webhookdelivery WHERE id = %b::bigint",
    take_up="""
UPDATE notifications_webhookdelivery
   SET state = 'pending', attempts = 0, failure = '', status_code = NULL, claimed_until = NULL
 WHERE id = %b::bigint AND state <> 'delivered' RETURNING transfer""",
    event_type=webhooks.PENDING,
    give_up=webhooks.give_up,
)


class _Room:
    """A waiting room of deliveries (see bankcore/messaging/rooms.py)."""

    page: str
    rows: _Statements

    def lock(self, subject: str) -> None:
        if (key := _key(subject)) is not None:
            fetch_all(self.rows.lock, (key,))

    def amounts_minor(self, subjects: Sequence[str]) -> dict[str, int]:
        # Telling somebody moves no money.
        return {}

    def foresee(self, letters: Sequence[DeadLetter]) -> dict[int, Forecast]:
        return {letter.pk: self._forecast(letter) for letter in letters}

    def _forecast(self, letter: DeadLetter) -> Forecast:
        key = _key(letter.subject)
        rows = fetch_all(self.rows.look, (key,)) if key is not None else []
        if not rows or rows[0][0] == "delivered":
            return Forecast(letter.pk, NOTHING, NotReplayable.code, _why_not(bool(rows)))
        return Forecast(letter.pk, "be_sent_again", detail="with all its attempts, in a new message")

    def resume(self, letter: DeadLetter, *, actor: str, delay_seconds: float) -> str:
        key = _key(letter.subject)
        rows = fetch_all(self.rows.take_up, (key,)) if key is not None else []
        if key is None or not rows:
            raise NotReplayable(_why_not(key is not None and bool(fetch_all(self.rows.look, (key,)))))
        due_at = timezone.now() + timedelta(seconds=delay_seconds) if delay_seconds else None
        # A new event: that of the failed attempts has used up what a bug may have.
        event = outbox.NewEvent(self.rows.event_type, str(rows[0][0]), str(key), due_at=due_at, actor=actor)
        outbox.record([event])
        return "it is to be delivered again"

    def give_up(self, letter: DeadLetter, *, actor: str) -> str:
        if (key := _key(letter.subject)) is not None:
            self.rows.give_up([key], f"given up by {actor}")
        return "it stays undelivered"


class FailedEmails(_Room):
    """Of notifications by e-mail."""

    page = "notifications_notification"
    rows = _NOTIFICATIONS


class FailedWebhooks(_Room):
    """Of webhook deliveries."""

    page = "notifications_webhookdelivery"
    rows = _WEBHOOKS


def _key(subject: str) -> int | None:
    is_one = subject.isascii() and subject.isdigit() and len(subject) <= BIGINT_DIGITS_MAX
    return int(subject) if is_one else None


def _why_not(is_there: bool) -> str:
    return "It has been delivered meanwhile." if is_there else "There is no such delivery."
