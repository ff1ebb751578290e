"""Partitions change hands when a worker dies or comes back, and their order does not change."""

import re
import time
from types import SimpleNamespace
from uuid import UUID

import httpx
import pytest
from celery import current_app
from django.db import connection
from kombu import Connection, Queue

from bankcore.messaging.publisher import Publisher, TaskMessage
from bankcore.messaging.standby import standby_for
from bankcore.topology import ROUTES
from tests.messaging.broker_view import PATIENCE_SECONDS, eventually
from transfers.models import Transfer

pytestmark = pytest.mark.django_db(transaction=True)


class Payments:
    """Payers spread over every partition; each pays one cent after the other, one message each."""

    def __init__(self, accounts, make_transfer, settings, payers):
        self.make_transfer = make_transfer
        # Which partition an account has is chance: of many, some of each.
        *many, self.payee = accounts(*[10_000] * 4 * payers, 0)
        route = ROUTES["transfer.approved"]
        queues = {a.pk: settings.TOPOLOGY.queue_of(route, str(a.pk)) for a in many}
        of_each = {queue: [a for a in many if queues[a.pk] == queue] for queue in queues.values()}
        self.payers = [a for some in of_each.values() for a in some[: payers // settings.PARTITIONS]]
        self.queues = {a.pk: queues[a.pk] for a in self.payers}
        assert len(of_each) == settings.PARTITIONS
        self.publisher = Publisher(settings.BROKER_URL, "bank")
        self.sent = {a.pk: [] for a in self.payers}

    def send(self, rounds):
        for _ in range(rounds):
            for payer in self.payers:
                transfer = self.make_transfer(payer, self.payee, 1)
                message = TaskMessage(self.queues[payer.pk], "transfers.post_transfers", [str(transfer.pk)])
                assert self.publisher.publish([message]) == [message]
                self.sent[payer.pk].append(transfer.pk)

    def all_posted(self):
        return eventually(lambda: not Transfer.objects.exclude(status="posted").exists())

    def posted(self, payer):
        """The transfers of a payer in the order of the journal."""
        sql = """
            SELECT e.reference FROM accounts_journalline l JOIN accounts_journalentry e ON e.id = l.entry_id
             WHERE l.account_id = %s AND l.side = 'D' ORDER BY l.number"""
        with connection.cursor() as cursor:
            cursor.execute(sql, (payer,))
            return [UUID(row[0].partition(":")[2]) for row in cursor.fetchall()]


@pytest.fixture
def payments(broker, accounts, make_transfer, settings):
    payments = Payments(accounts, make_transfer, settings, payers=12)
    yield payments
    payments.publisher.close()


def said(process, words):
    return words in process.log.read_text(errors="replace")


def stood_in(port):
    """How many messages of other shares the worker on this metrics port has handled, by queue."""
    page = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    found = re.findall(r'^bankcore_stood_in_messages_total\{queue="(.+?)"\} (\S+)', page, re.MULTILINE)
    return {queue: int(float(number)) for queue, number in found}


def test_a_killed_workers_partitions_are_taken_over_at_once_and_given_back_in_order(payments, start, free_port):
    ports = [free_port(), free_port()]
    stays = start("worker", "posting", "--index", "0", "--of", "2", METRICS_PORT=str(ports[0]))
    dies = start("worker", "posting", "--index", "1", "--of", "2", METRICS_PORT=str(ports[1]))
    assert eventually(lambda: said(stays, "standing by for posting-1, posting-3"))
    assert eventually(lambda: said(dies, "standing by for posting-0, posting-2"))

    def each_does_its_share():
        """One message to every payer's partition, and nobody stood in for another."""
        before = [stood_in(port) for port in ports]
        payments.send(1)
        assert payments.all_posted()
        return [stood_in(port) for port in ports] == before

    # One that began seconds before the other stands in for it first.
    assert eventually(each_does_its_share)
    before = stood_in(ports[0])

    payments.send(3)
    # Who takes over has subscribed before, as it said: nobody has to find out first.
    dies.kill()
    payments.send(1)
    assert payments.all_posted()
    taken_over = stood_in(ports[0])
    assert all(taken_over[queue] > before.get(queue, 0) for queue in ("posting-1", "posting-3"))

    start("worker", "posting", "--index", "1", "--of", "2", METRICS_PORT=str(ports[1]))
    ports.pop()
    # Under load all the while: the stand-in holds messages when it gives its partitions back.
    assert eventually(each_does_its_share)
    assert eventually(each_does_its_share)

    assert {payer: payments.posted(payer) for payer in payments.sent} == payments.sent


def test_a_message_in_hand_at_the_end_of_a_turn_is_the_owners_next(broker, settings):
    """The stand-in has been sent the second message and not read it: the owner is to have that before the third."""
    queue = "posting-1"
    publisher = Publisher(settings.BROKER_URL, "bank")
    for number in (1, 2, 3):
        publisher.publish([TaskMessage(queue, "transfers.post_transfers", [str(number)])])
    publisher.close()
    handled, owners = [], []
    with Connection(settings.BROKER_URL) as standing_in, Connection(settings.BROKER_URL) as owner:

        def handle(message):
            handled.append(message.decode()[0][0])
            message.ack()

        worker = SimpleNamespace(
            app=current_app,
            connection=standing_in,
            channel_errors=standing_in.channel_errors,
            on_decode_error=None,
            handle_task_message=handle,
        )
        step = standby_for([queue])(worker)
        step._look(worker)
        waiting = owner.Consumer(
            [Queue(queue, no_declare=True)], on_message=owners.append, auto_declare=False, accept=["json"]
        )
        waiting.qos(prefetch_count=3)
        waiting.consume()
        while not handled:
            standing_in.drain_events(timeout=PATIENCE_SECONDS)
        # A moment for the broker to send what comes next; nobody reads it.
        time.sleep(0.3)

        step.next_at = 0.0
        step._look(worker)

        while len(owners) < 2:
            owner.drain_events(timeout=PATIENCE_SECONDS)
        assert handled == [["1"]]
        assert [message.decode()[0][0] for message in owners] == [["2"], ["3"]]


def test_a_turn_does_not_end_while_a_message_of_it_is_not_handled():
    """A suspect waits while newer messages are handled; ending the turn would put it back, and run it here as well."""
    suspect, newer = SimpleNamespace(acknowledged=False), SimpleNamespace(acknowledged=True)
    for message in (suspect, newer):
        message.delivery_info = {"routing_key": "posting-1"}
    worker = SimpleNamespace(handle_task_message=lambda message: None, connection=True, channel_errors=())
    step = standby_for(["posting-1"])(worker)
    step.channel, ended = object(), []
    step._end_turn = ended.append
    step._handle(worker, suspect)
    step._handle(worker, newer)

    step._look(worker)
    assert ended == []

    suspect.acknowledged = True
    step._look(worker)
    assert ended == [worker]


def test_a_message_of_a_channel_that_broke_keeps_no_later_turn_from_ending(monkeypatch):
    worker = SimpleNamespace(handle_task_message=lambda message: None, connection=True, channel_errors=(KeyError,))
    step = standby_for(["posting-0", "posting-1"])(worker)
    suspect = SimpleNamespace(acknowledged=False, delivery_info={"routing_key": "posting-0"})

    def subscribe(worker):
        # The first queue has a message at once, which came before; the second one was deleted.
        step._handle(worker, suspect)
        raise KeyError("no queue 'posting-1'")

    monkeypatch.setattr(step, "_subscribe", subscribe)
    step._look(worker)

    assert (step.channel, step.in_hand, step.handled) == (None, [], set())
