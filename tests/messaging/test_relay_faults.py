"""Real relay processes under faults: killed, frozen and thawed, and a broker that blocks or is gone."""

import os
import re
import signal
import socket
import time

import psycopg
import pytest
from django.db import connection

from bankcore.database import open_session
from bankcore.messaging import outbox
from bankcore.messaging.lease import HALFWAY_SECONDS_MAX, LEASE_SECONDS, Lease
from bankcore.messaging.models import Event
from bankcore.messaging.outbox import NewEvent
from bankcore.messaging.relay import ACTIVE_LOCK, STANDBY_SECONDS
from tests.messaging.broker_view import control_broker, eventually
from tests.messaging.relay_view import Stepping, active_pids

pytestmark = pytest.mark.django_db(transaction=True)

KEY = "the account"
HASTY = "tests/messaging/hasty_manage.py"
STUNNED = "tests/messaging/stunned_manage.py"


@pytest.fixture
def queue(settings):
    return settings.TOPOLOGY.queue_of(settings.TOPOLOGY_ROUTES["transfer.approved"], KEY)


def record(*subjects):
    outbox.record([NewEvent("transfer.approved", KEY, str(subject)) for subject in subjects])


def owed():
    return Event.objects.filter(published_at=None).count()


def said(process, words):
    return words in process.log.read_text(errors="replace")


def is_active(relay):
    """Whether this relay's last word on the matter is that it is the active one."""
    words = re.findall(r'"(relay is active|another relay is active|database is away)', relay.log.read_text())
    return bool(words) and words[-1] == "relay is active"


def two_relays(start, **options):
    """Start the active one and the standby."""
    first = start("relay", **options)
    assert eventually(lambda: is_active(first))
    second = start("relay", **options)
    assert eventually(lambda: said(second, "standing by"))
    return first, second


@pytest.fixture
def relays(broker, start):
    return two_relays(start)


def first_of_each(subjects):
    return list(dict.fromkeys(subjects))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_standby_takes_over_from_a_relay_that_is_killed_or_frozen(relays, broker, queue, how):
    active, standby = relays
    record(*range(10))
    assert eventually(lambda: owed() == 0)

    active.send_signal(how)
    record(*range(10, 20))
    assert eventually(lambda: owed() == 0)
    assert is_active(standby)

    if how == signal.SIGSTOP:
        active.send_signal(signal.SIGCONT)
        assert eventually(lambda: not is_active(active))
        record(*range(20, 30))
        assert eventually(lambda: owed() == 0)
    got = [subject for _, ids in broker.calls(queue) for subject in ids]
    # Published once and in order: the one that was thawed published nothing.
    assert got == [str(n) for n in range(30 if how == signal.SIGSTOP else 20)]


def test_a_relay_frozen_as_it_gets_the_lock_does_not_keep_it(broker, start, queue):
    stunned = start("relay", program=STUNNED)
    assert eventually(active_pids)
    assert not said(stunned, "relay is active")
    record(*range(10))
    standby = start("relay")

    assert eventually(lambda: is_active(standby))
    assert eventually(lambda: owed() == 0)

    stunned.send_signal(signal.SIGCONT)
    assert eventually(lambda: said(stunned, "database is away"))
    assert eventually(lambda: said(stunned, "another relay is active"))
    assert [subject for _, ids in broker.calls(queue) for subject in ids] == [str(n) for n in range(10)]


def test_a_relay_frozen_halfway_through_a_statement_does_not_keep_the_lock(broker, start, queue):
    """The second part of a large statement never comes, and no limit of the database's ends the session."""
    frozen = open_session("a test's relay")
    Lease(frozen)
    frozen.execute("SET statement_timeout = '1s'")
    frozen.execute("SELECT pg_advisory_lock(%s)", (ACTIVE_LOCK,))
    statement = b"\0SELECT 1\0\0\0"
    with socket.socket(fileno=os.dup(frozen.fileno())) as wire:
        # As libpq does: what makes it a statement (here Parse) is sent, and Sync is not.
        wire.send(b"P" + (len(statement) + 4).to_bytes(4, "big") + statement)
    standby = start("relay")
    record(*range(10))

    assert eventually(lambda: is_active(standby))
    assert eventually(lambda: owed() == 0)
    assert said(standby, "hangs in the middle of a statement")
    with pytest.raises(psycopg.Error):
        frozen.execute("SELECT 1")


def test_a_relay_that_is_only_busy_with_the_database_keeps_the_lock(broker, start):
    busy = open_session("a test's relay")
    busy.execute("SELECT pg_advisory_lock(%s)", (ACTIVE_LOCK,))
    standby = start("relay")
    assert eventually(lambda: said(standby, "standing by"))

    busy.execute("SELECT pg_sleep(%s)", (HALFWAY_SECONDS_MAX + 2 * STANDBY_SECONDS,))
    assert not is_active(standby)
    time.sleep(HALFWAY_SECONDS_MAX + 2 * STANDBY_SECONDS)

    assert busy.execute("SELECT 1").fetchone() == (1,)
    busy.close()
    assert eventually(lambda: is_active(standby))


def long_answer(session):
    """Ask for 200 MB and take nothing of it: what takes it, a little at a time."""
    session.pgconn.send_query(b"SELECT repeat('x', 1000) FROM generate_series(1, 200000)")
    wire = socket.socket(fileno=os.dup(session.fileno()))
    wire.settimeout(10)
    return wire


def waits_to_send(pid):
    with connection.cursor() as cursor:
        cursor.execute("SELECT wait_event FROM pg_stat_activity WHERE pid = %s", (pid,))
        return cursor.fetchone() == ("ClientWrite",)


def test_a_relay_that_takes_a_long_answer_slowly_keeps_the_lock(broker, start):
    slow = open_session("a test's relay")
    slow.execute("SELECT pg_advisory_lock(%s)", (ACTIVE_LOCK,))
    standby = start("relay")
    assert eventually(lambda: said(standby, "standing by"))
    Lease(slow)

    with long_answer(slow) as wire:
        until = time.monotonic() + HALFWAY_SECONDS_MAX + 4 * STANDBY_SECONDS
        waited = 0
        while time.monotonic() < until:
            assert wire.recv(64 * 1024)
            waited += waits_to_send(slow.info.backend_pid)
            time.sleep(0.05)
        assert not is_active(standby)
        assert waits_to_send(slow.info.backend_pid)
        assert waited > 20
    slow.close()
    assert eventually(lambda: is_active(standby))


def test_a_relay_that_is_frozen_before_a_long_answer_does_not_keep_the_lock(broker, start):
    frozen = open_session("a test's relay")
    frozen.execute("SELECT pg_advisory_lock(%s)", (ACTIVE_LOCK,))
    standby = start("relay")
    assert eventually(lambda: said(standby, "standing by"))
    Lease(frozen)

    with long_answer(frozen):
        assert eventually(lambda: waits_to_send(frozen.info.backend_pid))
        # The standby sees nothing in it: the server's own tcp_user_timeout ends the session.
        assert eventually(lambda: is_active(standby))
        assert not said(standby, "hangs in the middle of a statement")
    frozen.close()


def test_a_relay_frozen_time_and_again_in_the_middle_of_work_keeps_the_order(relays, broker, queue, settings):
    sent = 0
    for turn in range(3):
        victim = eventually(lambda: next((relay for relay in relays if is_active(relay)), None))
        for number in range(40):
            record(*range(sent, sent + 25))
            sent += 25
            if number == 20:
                victim.send_signal(signal.SIGSTOP)
        assert eventually(lambda: owed() == 0), turn
        victim.send_signal(signal.SIGCONT)
        assert eventually(lambda victim=victim: not is_active(victim))

    got = [int(subject) for _, ids in broker.calls(queue) for subject in ids]
    assert first_of_each(got) == list(range(sent))


def test_an_alarm_of_the_broker_is_waited_out_in_order(broker, start, queue):
    active, standby = two_relays(start, program=HASTY)
    record(1)
    assert eventually(lambda: owed() == 0)
    control_broker("set_vm_memory_high_watermark", "0.000001")
    try:
        record(2, 3)
        # Its patience with one publish has an end, and three of those are longer than its lease.
        assert eventually(lambda: active.log.read_text().count("broker is away or refuses") >= 3)
        assert owed() == 2
        # It waits for the broker and keeps its lease: there is no quarrel with the standby.
        assert not is_active(standby)
    finally:
        control_broker("set_vm_memory_high_watermark", "0.4")
    record(4)

    assert eventually(lambda: owed() == 0)
    got = [subject for _, ids in broker.calls(queue) for subject in ids]
    assert first_of_each(got) == ["1", "2", "3", "4"]


def test_a_backlog_of_an_outage_drains_in_order(broker, start, queue, settings):
    away = re.sub(r":\d+/", ":1/", settings.BROKER_URL)
    without = start("relay", BROKER_URL=away)
    assert eventually(lambda: is_active(without))
    for n in range(20):
        record(*range(n * 100, n * 100 + 100))
    assert eventually(lambda: said(without, "broker is away or refuses"))
    assert owed() == 2000
    without.kill()

    start("relay")

    assert eventually(lambda: owed() == 0)
    got = [int(subject) for _, ids in broker.calls(queue) for subject in ids]
    assert got == list(range(2000))


def test_a_takeover_is_a_matter_of_five_seconds():
    """What is promised, from the waits it consists of: the lease runs out, and the standby looks again."""
    assert LEASE_SECONDS + STANDBY_SECONDS <= 5
    # Or it hangs halfway: seen at the next look, and ended at the look after the time is up, or the one after that.
    assert STANDBY_SECONDS + HALFWAY_SECONDS_MAX + 2 * STANDBY_SECONDS <= 5


def test_the_database_ends_a_session_that_is_not_kept_alive_and_no_other(broker):
    stepping = Stepping()
    pid = stepping.database.info.backend_pid

    def is_there():
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", (pid,))
            return cursor.fetchone() == (1,)

    with Lease(stepping.database).kept():
        time.sleep(LEASE_SECONDS + 1)
        assert is_there()
    assert eventually(lambda: not is_there())
    stepping.close()
