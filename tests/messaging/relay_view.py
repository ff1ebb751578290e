"""A relay driven by hand, events for it, and what has become of them."""

import threading

from django.db import connection

from bankcore.database import open_session
from bankcore.messaging import outbox, relay
from bankcore.messaging.models import Event
from bankcore.messaging.outbox import NewEvent
from bankcore.messaging.relay import Relay
from bankcore.messaging.stretch import place_of

KEY = "the account"


class Stepping:
    """A relay driven by hand: every step delivers what is due, and its waits are cut short."""

    def __init__(self):
        stop = threading.Event()
        stop.set()
        self.relay = Relay(stop)
        self.database = open_session("a test's relay")

    def step(self):
        self.relay.step(self.database)

    def close(self):
        self.relay._drop_publisher()
        self.database.close()


def record(*subjects, type="transfer.approved", key=KEY, **fields):
    outbox.record([NewEvent(type, key, str(subject), **fields) for subject in subjects])


def due():
    return list(Event.objects.filter(published_at=None).order_by("id").values_list("subject", flat=True))


def places(broker, queue):
    """Where the messages in the queue stand, by their ids."""
    found = [place_of(message.headers["id"]) for message in broker.take(queue)]
    assert all(found)
    return found


def active_pids():
    sql = """
        SELECT pid FROM pg_locks JOIN pg_database d ON d.oid = database AND datname = current_database()
         WHERE locktype = 'advisory' AND objid = %s AND granted"""
    with connection.cursor() as cursor:
        cursor.execute(sql, (relay.ACTIVE_LOCK,))
        return [row[0] for row in cursor.fetchall()]
