"""A real worker while the database turns everyone away: it waits, says so, keeps its message, and stops when asked."""

import re
import signal
import time
from datetime import UTC, datetime

import httpx
import psycopg
import pytest
from django.db import OperationalError, connection
from kombu import Exchange, Producer

from bankcore.messaging import pause
from bankcore.messaging.models import DeadLetter, Event
from bankcore.messaging.publisher import Publisher, TaskMessage
from compose import worker_states
from compose.instance import Instance, write_json
from tests.messaging.broker_view import PATIENCE_SECONDS, eventually
from transfers.models import Transfer

pytestmark = pytest.mark.django_db(transaction=True)

STAGE = "transfers.post_transfers"
# Longer than the broker waits for a sign of life: three heartbeats of five seconds.
OUTAGE_SECONDS = 17.0


@pytest.fixture
def database():
    """The test's database, which can turn away everyone but this test: `database.closed(True)`."""

    class Database:
        def closed(self, closed):
            name = connection.settings_dict["NAME"]
            with psycopg.connect(**connection.get_connection_params() | {"dbname": "postgres"}, autocommit=True) as to:
                to.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS {not closed}')
            # Until all are gone: one may have been on its way in.
            assert not closed or eventually(self.is_empty)

        def is_empty(self):
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                return cursor.fetchall() == []

    database = Database()
    yield database
    database.closed(False)


def gauge(port, name):
    page = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    return {
        cause: float(value)
        for cause, value in re.findall(rf'^{name}{{cause="(\w+)",stage="{STAGE}"}} (\S+)', page, re.MULTILINE)
    }


def test_an_outage_longer_than_the_brokers_patience_is_waited_out(
    broker, database, start, free_port, accounts, make_transfer, settings, tmp_path
):
    alice, bob = accounts(1000, 0)
    first, second = (make_transfer(alice, bob, 10) for _ in range(2))
    port = free_port()
    worker = start("worker", "posting", METRICS_PORT=str(port), PAUSE_SECONDS_MAX="1")
    assert eventually(lambda: b"ready." in worker.log.read_bytes())
    database.closed(True)
    publisher = Publisher(settings.BROKER_URL, "bank")
    publisher.publish([TaskMessage("posting-0", STAGE, [str(first.pk)])])
    publisher.publish([TaskMessage("posting-0", STAGE, [str(second.pk)])])

    assert eventually(lambda: gauge(port, "bankcore_worker_paused") == {"OperationalError": 1.0})
    told = httpx.get(f"http://127.0.0.1:{port}/state").json()
    pause_told = told["paused"][0]
    assert told["status"] == "paused"
    assert {**pause_told, "since": ""} == {
        "queue": "posting-0", "stage": STAGE, "since": "", "cause": "OperationalError"
    }  # fmt: skip
    assert 0 <= (datetime.now(UTC) - datetime.fromisoformat(pause_told["since"])).total_seconds() < PATIENCE_SECONDS
    # As `make status` tells it.
    programs = {"posting-0": {"arguments": ["manage.py", "worker", "posting"], "environment": {"METRICS_PORT": port}}}
    write_json(tmp_path / "programs.json", programs)
    (words,) = worker_states.paused(Instance(folder=tmp_path, throwaway=True), ["web", *programs])["posting-0"]
    assert words == f"posting-0 waits since {pause_told['since']} for infrastructure: OperationalError"
    time.sleep(OUTAGE_SECONDS)
    assert gauge(port, "bankcore_worker_paused_seconds_total")["OperationalError"] > OUTAGE_SECONDS / 2
    assert worker.poll() is None
    database.closed(False)

    assert eventually(lambda: not Transfer.objects.exclude(status="posted").exists())
    assert eventually(lambda: gauge(port, "bankcore_worker_paused") == {"OperationalError": 0.0})
    assert httpx.get(f"http://127.0.0.1:{port}/state").json() == {"status": "working", "paused": []}
    said = worker.log.read_text()
    assert "is paused, waiting for infrastructure" in said
    assert "ends its pause of" in said
    # The broker heard of the worker all the while: it kept its connection, so nothing was delivered twice.
    assert said.count("celery.worker.consumer.connection") == 1
    assert "Connection to broker lost" not in said
    assert Event.objects.filter(attempt__gt=0).count() == 0
    assert DeadLetter.objects.count() == 0
    publisher.close()


def test_a_paused_worker_stops_when_asked_and_leaves_its_message(
    broker, database, start, accounts, make_transfer, settings
):
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 10)
    worker = start("worker", "posting", PAUSE_SECONDS_MAX="600")
    assert eventually(lambda: b"ready." in worker.log.read_bytes())
    database.closed(True)
    publisher = Publisher(settings.BROKER_URL, "bank")
    publisher.publish([TaskMessage("posting-0", STAGE, [str(transfer.pk)])])
    publisher.close()
    # Some pauses in, so that the next ones are long.
    assert eventually(lambda: worker.log.read_bytes().count(b"is paused") >= 4)

    worker.send_signal(signal.SIGTERM)

    assert worker.wait(timeout=PATIENCE_SECONDS) == 0
    assert eventually(lambda: broker.depth("posting-0") == 1)
    database.closed(False)
    assert Transfer.objects.get().status == "approved"
    start("worker", "posting")
    assert eventually(lambda: Transfer.objects.get().status == "posted")


def test_a_pause_is_a_random_part_of_a_ceiling_that_doubles(settings, monkeypatch):
    settings.PAUSE_SECONDS_MAX = 1.0
    asked = []
    monkeypatch.setattr(pause.random, "uniform", lambda low, high: asked.append((low, high)) or 0.0)
    failures = iter([OperationalError("away")] * 6)

    def step():
        for failure in failures:
            raise failure
        return "done"

    assert pause.through_outages("a stage", step) == "done"

    assert asked == [(0, 0.1), (0, 0.2), (0, 0.4), (0, 0.8), (0, 1.0), (0, 1.0)]


def test_a_desk_that_cannot_write_stops_when_asked_and_leaves_its_letters(broker, database, start):
    worker = start("worker", "maintenance")
    assert eventually(lambda: b"ready." in worker.log.read_bytes())
    assert DeadLetter.objects.count() == 0
    database.closed(True)
    exchange = Exchange("bank.dead", type="topic", no_declare=True)
    producer = Producer(broker.channel, exchange=exchange, auto_declare=False)
    for number in range(30):
        producer.publish(b"%d" % number, routing_key="dead_letters", delivery_mode=2)
    assert eventually(lambda: b"cannot record a dead letter yet" in worker.log.read_bytes())

    worker.send_signal(signal.SIGTERM)

    assert worker.wait(timeout=PATIENCE_SECONDS) == 0
    assert eventually(lambda: broker.depth("dead_letters") == 30)
    database.closed(False)
    start("worker", "maintenance")
    assert eventually(lambda: DeadLetter.objects.count() == 30)
