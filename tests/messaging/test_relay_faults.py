"""Real relay processes under faults: killed, frozen and thawed, and a broker that blocks or is gone."""

import re
import signal
import time

import pytest
from django.db import connection

from bankcore.messaging import outbox
from bankcore.messaging.lease import LEASE_SECONDS, Lease
from bankcore.messaging.models import Event
from bankcore.messaging.outbox import NewEvent
from tests.messaging.broker_view import control_broker, eventually
from tests.messaging.test_relay import Stepping

pytestmark = pytest.mark.django_db(transaction=True)

KEY = "the account"
# Five seconds are promised; a busy machine is given more.
TAKEN_OVER_SECONDS_MAX = 8.0


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


@pytest.fixture
def relays(broker, start):
    """Two relays: the active one and the standby."""
    first = start("relay")
    assert eventually(lambda: is_active(first), 60)
    second = start("relay")
    assert eventually(lambda: said(second, "standing by"), 60)
    return first, second


def first_of_each(subjects):
    return list(dict.fromkeys(subjects))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_standby_takes_over_from_a_relay_that_is_killed_or_frozen(relays, broker, queue, how):
    active, standby = relays
    record(*range(10))
    assert eventually(lambda: owed() == 0)

    active.send_signal(how)
    began = time.monotonic()
    record(*range(10, 20))
    assert eventually(lambda: owed() == 0, 30)
    assert time.monotonic() - began < TAKEN_OVER_SECONDS_MAX
    assert is_active(standby)

    if how == signal.SIGSTOP:
        active.send_signal(signal.SIGCONT)
        assert eventually(lambda: not is_active(active), 30)
        record(*range(20, 30))
        assert eventually(lambda: owed() == 0)
    got = [subject for _, ids in broker.calls(queue) for subject in ids]
    # Published once and in order: the one that was thawed published nothing.
    assert got == [str(n) for n in range(30 if how == signal.SIGSTOP else 20)]


def test_a_relay_frozen_time_and_again_in_the_middle_of_work_keeps_the_order(relays, broker, queue, settings):
    sent = 0
    deadline = time.monotonic() + 60
    for turn in range(3):
        victim = next(relay for relay in relays if is_active(relay))
        for number in range(40):
            record(*range(sent, sent + 25))
            sent += 25
            if number == 20:
                victim.send_signal(signal.SIGSTOP)
        assert eventually(lambda: owed() == 0, 30), turn
        victim.send_signal(signal.SIGCONT)
        assert time.monotonic() < deadline
        assert eventually(lambda victim=victim: not is_active(victim), 30)

    got = [int(subject) for _, ids in broker.calls(queue) for subject in ids]
    assert first_of_each(got) == list(range(sent))


def test_an_alarm_of_the_broker_is_waited_out_in_order(relays, broker, queue):
    active, standby = relays
    record(1)
    assert eventually(lambda: owed() == 0)
    control_broker("set_vm_memory_high_watermark", "0.000001")
    try:
        record(2, 3)
        # Longer than the relay's patience with one publish.
        time.sleep(12)
        assert owed() == 2
        assert eventually(lambda: said(active, "broker is away or refuses"))
        # It waits for the broker and keeps its lease: there is no quarrel with the standby.
        assert not is_active(standby)
    finally:
        control_broker("set_vm_memory_high_watermark", "0.4")
    record(4)

    assert eventually(lambda: owed() == 0, 60)
    got = [subject for _, ids in broker.calls(queue) for subject in ids]
    assert first_of_each(got) == ["1", "2", "3", "4"]


def test_a_backlog_of_an_outage_drains_in_order(broker, start, queue, settings):
    away = re.sub(r":\d+/", ":1/", settings.BROKER_URL)
    without = start("relay", BROKER_URL=away)
    assert eventually(lambda: is_active(without), 60)
    for n in range(20):
        record(*range(n * 100, n * 100 + 100))
    assert eventually(lambda: said(without, "broker is away or refuses"))
    assert owed() == 2000
    without.kill()

    start("relay")

    assert eventually(lambda: owed() == 0, 60)
    got = [int(subject) for _, ids in broker.calls(queue) for subject in ids]
    assert got == list(range(2000))


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
