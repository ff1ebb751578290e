"""E-mail, through Django's mail backend (EMAIL_URL)."""

from django.core.mail import EmailMessage

from notifications.models import Notification


def send(notification: Notification) -> None:
    """Send one e-mail. A repeat after a crash carries the same Message-ID, so that a mailbox can fold the two.

    Raises:
        OSError, smtplib.SMTPException: the mail server did not take it.
    """
    message_id = f"<notification-{notification.pk}@bankcore.invalid>"
    EmailMessage(
        notification.title, notification.text, to=[notification.address], headers={"Message-ID": message_id}
    ).send()
