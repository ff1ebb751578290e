"""Relays that run as the command does: one is active, the others stand by and take over."""

import threading

import pytest
from django.db import connection

from bankcore.messaging import relay
from bankcore.messaging.relay import Relay
from tests.messaging.broker_view import eventually
from tests.messaging.relay_view import Stepping, active_pids, due, places, record

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def running(broker, monkeypatch):
    """Start relays as the command does, each in a thread; all are stopped at the end."""
    monkeypatch.setattr(relay, "STANDBY_SECONDS", 0.05)
    started = []

    def start():
        stop = threading.Event()
        thread = threading.Thread(target=Relay(stop).run)
        thread.start()
        started.append((stop, thread))

    yield start
    for stop, _ in started:
        stop.set()
    for _, thread in started:
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_a_running_relay_delivers_what_is_committed(running, broker, queue):
    running()
    assert eventually(active_pids)

    record(1)
    assert eventually(lambda: not due())
    record(2)
    assert eventually(lambda: not due())

    assert broker.calls(queue) == [("transfers.post_transfers", ["1"]), ("transfers.post_transfers", ["2"])]


def test_a_second_relay_stands_by_and_takes_over(running, broker, queue, monkeypatch):
    tries = []
    scalar = relay._scalar
    monkeypatch.setattr(relay, "_scalar", lambda db, sql, *p: tries.append(p) or scalar(db, sql, *p))
    first = Stepping()
    assert first.relay._become_active(first.database) is False  # It was told to stop before it began.
    first.relay.stop.clear()
    assert first.relay._become_active(first.database) is True
    tries.clear()
    running()
    record(1)

    assert eventually(lambda: tries.count((relay.ACTIVE_LOCK,)) >= 5)
    assert due() == ["1"]
    held_by = first.database.info.backend_pid
    assert active_pids() == [held_by]
    first.close()

    assert eventually(lambda: not due())
    (heir,) = active_pids()
    assert heir != held_by
    assert broker.calls(queue) == [("transfers.post_transfers", ["1"])]


def test_two_relays_survive_the_loss_of_the_active_session(running, broker, queue):
    running()
    running()
    (active,) = eventually(active_pids)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", (active,))
    record(1, 2, 3)

    assert eventually(lambda: not due())

    assert [subject for _, ids in broker.calls(queue) for subject in ids] == ["1", "2", "3"]
    (heir,) = active_pids()
    assert heir != active


def test_a_relay_that_becomes_active_begins_to_number_anew(running, broker, queue):
    """It cannot know what another one has published meanwhile."""
    for subject in (1, 2):
        running()
        assert eventually(active_pids)
        record(subject)
        assert eventually(lambda: not due())
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", (active_pids(),))

    first, second = places(broker, queue)

    assert first.relay != second.relay
    assert second.after == 0
