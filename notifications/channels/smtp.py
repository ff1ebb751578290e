"""SMTP with an end: every reply of a mail server gets its time as a whole, where smtplib gives it to every byte.

So a server that dribbles bytes holds a chunk of e-mails, and its rows, no longer than one that says nothing.
"""

import smtplib
import time
from typing import Any

from django.core.mail.backends import smtp

REPLY_BYTES_MAX = 64 * 1024


class _Replies:
    """What smtplib reads lines from: the socket, until the reply's time is up."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.came = b""
        self.until = 0.0
        self.left = 0

    def begin(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds
        self.left = REPLY_BYTES_MAX

    def readline(self, size: int) -> bytes:
        while b"\n" not in self.came and len(self.came) < size:
            remaining = self.until - time.monotonic()
            if remaining <= 0:
                raise TimeoutError("the reply did not come to an end in time")
            self.sock.settimeout(remaining)
            piece = self.sock.recv(4096)
            if not piece:
                break
            self.came += piece
        line = self.came[: min(self.came.find(b"\n") + 1 or size, size)]
        self.came = self.came[len(line) :]
        self.left -= len(line)
        if self.left < 0:
            raise ConnectionError("the reply does not come to an end")
        return line

    def close(self) -> None:
        """Leave the socket to smtplib, which closes it as well."""


class _Bounded:
    """Bounds what `getreply` of smtplib waits for; both its classes read with nothing else."""

    sock: Any
    file: Any
    timeout: float

    def getreply(self) -> tuple[int, bytes]:
        # smtplib forgets its file when it turns to TLS, with what came before that.
        if self.file is None:
            self.file = _Replies(self.sock)
        self.file.begin(self.timeout)
        try:
            reply: tuple[int, bytes] = super().getreply()  # type: ignore[misc]
        finally:
            if self.sock is not None:
                self.sock.settimeout(self.timeout)
        return reply


class _Plain(_Bounded, smtplib.SMTP):
    pass


class _Encrypted(_Bounded, smtplib.SMTP_SSL):
    pass


class EmailBackend(smtp.EmailBackend):
    """Django's backend; EMAIL_TIMEOUT is for each step as a whole: a connection, a handshake, a reply."""

    @property
    def connection_class(self) -> type[smtplib.SMTP]:
        return _Encrypted if self.use_ssl else _Plain
