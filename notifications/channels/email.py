"""E-mail, through Django's mail backend (EMAIL_URL)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from email.utils import formatdate
from functools import lru_cache
from typing import Any

from django.core.mail import EmailMessage, get_connection
from django.core.mail.message import sanitize_address

# What may go out as it stands: printable ASCII in short lines. A header is one of them, so that nothing that passes can
# begin a header of its own. Everything else takes Django's long way.
_PLAIN_TITLE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,65}[\x21-\x7e])?")
_PLAIN_ADDRESS = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,40}@[A-Za-z0-9.-]{1,200}")
_PLAIN_TEXT = re.compile(r"(?:[\x20-\x7e]{0,500}\n)*[\x20-\x7e]{0,500}")


@contextmanager
def connection() -> Iterator[Any]:
    """One connection for many messages; it opens with the first one and is closed in any case."""
    mail = get_connection()
    try:
        yield mail
    finally:
        mail.close()


def send(notification_id: int, *, address: str, title: str, text: str, mail: Any) -> None:
    """Send one e-mail. A repeat after a crash carries the same Message-ID, so that a mailbox can fold the two.

    Raises:
        OSError, smtplib.SMTPException: the mail server did not take it.
    """
    headers = {"Message-ID": f"<notification-{notification_id}@bankcore.invalid>"}
    mail.open()
    _Email(title, text, to=[address], headers=headers, connection=mail).send()


class _Email(EmailMessage):
    """A message of plain ASCII is written down directly: Python's e-mail package takes ten times as long over it."""

    def message(self, *, policy: Any = None) -> Any:
        address, title, text = self.to[0], str(self.subject), str(self.body)
        if not (_PLAIN_TITLE.fullmatch(title) and _PLAIN_ADDRESS.fullmatch(address) and _PLAIN_TEXT.fullmatch(text)):
            return super().message()
        lines = [
            'Content-Type: text/plain; charset="utf-8"',
            "MIME-Version: 1.0",
            "Content-Transfer-Encoding: 7bit",
            f"Subject: {title}",
            f"From: {_as_header(self.from_email)}",
            f"To: {address}",
            f"Date: {formatdate()}",
            f"Message-ID: {self.extra_headers['Message-ID']}",
            "",
            text,
        ]
        return _Written("\n".join(lines))


@lru_cache
def _as_header(address: str) -> str:
    return str(sanitize_address(address, "utf-8"))


class _Written(Message):
    """A message that was written down already, as Django's backends take one."""

    def __init__(self, whole: str) -> None:
        super().__init__()
        self.whole = whole

    def as_bytes(self, unixfrom: bool = False, policy: Any = None, linesep: str = "\n") -> bytes:
        return self.whole.replace("\n", linesep).encode("ascii")
