"""An e-mail that is written down directly says what Django would have said; what is not plain goes Django's way."""

import email
import email.policy
import os
import subprocess
import sys
from typing import Any

import pytest
from django.core.mail import BadHeaderError, EmailMessage

from notifications.channels.email import _Email, _Written

TITLE, TEXT = "Your transfer of 1,234.50 EUR was made.", "Your transfer was made.\nReference: rent\n\nTransfer: 01a2"
ADDRESS, HEADERS = "alice.o-neil+bank@mail.example.com", {"Message-ID": "<notification-7@bankcore.invalid>"}


def _parsed(message: Any) -> tuple[dict[str, str], str]:
    parsed = email.message_from_bytes(message.as_bytes(linesep="\r\n"), policy=email.policy.default)
    headers = {name: str(value) for name, value in parsed.items() if name != "Date"}
    assert parsed["Date"].datetime is not None
    return headers, parsed.get_content().replace("\r\n", "\n").removesuffix("\n")


@pytest.mark.parametrize("text", [TEXT, "one line", ".\nFrom here on\n..", "x" * 500])
def test_a_plain_message_says_what_django_says(text: str) -> None:
    written = _Email(TITLE, text, to=[ADDRESS], headers=HEADERS).message()

    assert isinstance(written, _Written)
    assert _parsed(written) == _parsed(EmailMessage(TITLE, text, to=[ADDRESS], headers=HEADERS).message())


@pytest.mark.parametrize(
    ("title", "text", "address"),
    [
        ("Überweisung von 5 EUR", TEXT, ADDRESS),
        (TITLE, "Reference: Miete für März", ADDRESS),
        (TITLE, "x" * 1200, ADDRESS),
        (TITLE, TEXT, "Alice <alice@example.com>"),
        (TITLE, TEXT, "älice@example.com"),
        ("x" * 140, TEXT, ADDRESS),
    ],
)
def test_anything_else_goes_djangos_way(title: str, text: str, address: str) -> None:
    written = _Email(title, text, to=[address], headers=HEADERS).message()

    assert not isinstance(written, _Written)
    headers, content = _parsed(written)
    assert (headers["Subject"].strip(), content) == (title, text)


@pytest.mark.parametrize(
    "bad", ["a\nBcc: eve@example.com", "a\r\nBcc: eve@example.com", "a\rBcc: eve@example.com", "a\n"]
)
def test_no_text_begins_a_header_of_its_own(bad: str) -> None:
    for title, address in ((bad, ADDRESS), (TITLE, f"{bad}@example.com"), (TITLE, f"alice@example.com{bad[1:]}")):
        with pytest.raises(BadHeaderError):
            _Email(title, TEXT, to=[address], headers=HEADERS).message()


def test_a_carriage_return_in_the_text_is_not_taken_for_plain() -> None:
    assert not isinstance(_Email(TITLE, "a\r\nb", to=[ADDRESS], headers=HEADERS).message(), _Written)


def test_the_address_of_a_mail_server_leads_to_the_backend_that_bounds_its_replies() -> None:
    told = subprocess.run(
        [sys.executable, "-c", "from bankcore import settings; print(settings.EMAIL_BACKEND)"],
        env={**os.environ, "EMAIL_URL": "smtp+tls://127.0.0.1:25"}, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert told.stdout.strip() == "notifications.channels.smtp.EmailBackend"
