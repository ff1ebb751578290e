"""Sessions with PostgreSQL, as everybody here opens them."""

import os
import socket

import pytest
from django.conf import settings
from django.db import connection

from bankcore.database import open_session

pytestmark = pytest.mark.django_db


def patience_ms(session):
    """How long the system waits for the other side to confirm what was sent to it."""
    with socket.socket(fileno=os.dup(session.fileno())) as same:
        if same.family == socket.AF_UNIX:
            pytest.skip("a server on the same machine is not gone without a word")
        return same.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


def test_a_server_that_is_gone_without_a_word_is_not_asked_for_a_quarter_of_an_hour():
    options = settings.DATABASES["default"]["OPTIONS"]
    idle_ms = 1000 * (options["keepalives_idle"] + options["keepalives_interval"] * options["keepalives_count"])
    connection.ensure_connection()

    with open_session("a test's session") as session:
        assert patience_ms(connection.connection) == patience_ms(session) == idle_ms
