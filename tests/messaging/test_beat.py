"""Housekeeping is asked for by one of the maintenance workers, and by nobody once they are dead."""

import os
import signal
import time
from pathlib import Path

import pytest
from django.db import connection

from bankcore.messaging import envelope
from tests.messaging.broker_view import eventually

pytestmark = pytest.mark.django_db(transaction=True)

HASTY = "tests/messaging/hasty_manage.py"
# There housekeeping is due every second.
SILENCE_SECONDS = 4.0
LEADERS = """
SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database AND datname = current_database()
 WHERE locktype = 'advisory' AND objid = 7206 AND granted
"""


def leaders() -> int:
    with connection.cursor() as cursor:
        cursor.execute(LEADERS)
        return int(cursor.fetchone()[0])


def took_over(process, times=1):
    return eventually(lambda: process.log.read_text().count("beat is active") >= times)


def test_one_worker_sends_the_housekeeping_and_none_outlives_its_death(broker, start):
    first = start("worker", "maintenance", program=HASTY)
    assert took_over(first)
    second = start("worker", "maintenance", program=HASTY)
    assert eventually(lambda: "ready." in second.log.read_text())
    assert "beat is active" not in second.log.read_text()
    # No child that could go on without it.
    assert Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text() == ""

    # Frozen, it keeps nobody from sending; thawed, it does not send beside the one that took over.
    os.kill(first.pid, signal.SIGSTOP)
    assert took_over(second)
    os.kill(first.pid, signal.SIGCONT)
    assert eventually(lambda: "beat waits for the database" in first.log.read_text())
    assert leaders() == 1

    second.kill()
    assert took_over(first, times=2)
    assert eventually(lambda: "Sending due task" in first.log.read_text())
    first.kill()
    first.wait()
    died_at_ms = time.time() * 1000
    assert eventually(lambda: leaders() == 0)
    time.sleep(SILENCE_SECONDS)
    # What it sent with its last breath may come late.
    assert [m for m in broker.take("maintenance") if m.headers[envelope.ISSUED_AT_HEADER] > died_at_ms] == []
