"""E-mail, through Django's mail backend (EMAIL_URL)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.mail import EmailMessage, get_connection

from notifications.models import Notification


@contextmanager
def connection() -> Iterator[Any]:
    """One connection for many messages; it opens with the first one and is closed in any case."""
    mail = get_connection()
    try:
        yield mail
    finally:
        mail.close()


def send(notification: Notification, mail: Any) -> None:
    """Send one e-mail. A repeat after a crash carries the same Message-ID, so that a mailbox can fold the two.

    Raises:
        OSError, smtplib.SMTPException: the mail server did not take it.
    """
    message_id = f"<notification-{notification.pk}@bankcore.invalid>"
    mail.open()
    EmailMessage(
        notification.title,
        notification.text,
        to=[notification.address],
        headers={"Message-ID": message_id},
        connection=mail,
    ).send()
