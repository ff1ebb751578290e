"""Messages whose headers or properties cannot be read, as strangers' clients write them, and real workers."""

import pytest
from amqp.basic_message import Message
from django.conf import settings

from bankcore.messaging.models import DeadLetter
from bankcore.messaging.publisher import Publisher, TaskMessage
from tests.messaging.broker_view import eventually
from tests.messaging.poison import JSON, QUEUE, TASK, UNREADABLE, RawMessage, call, task_headers
from transfers.models import Transfer

pytestmark = pytest.mark.django_db(transaction=True)

NUL = {
    "in the task": task_headers("transfers\x00.nonsense"),
    "in names and texts": {"a\x00": "b\x00", "task": "\x00", "id": "\x00"},
    "halves of characters": task_headers("a\ud800b", **{"c\ud800": "\ud800"}),
}


def test_what_cannot_be_read_of_a_message_ends_no_worker_and_is_kept(
    raw_channel, broker, start, accounts, make_transfer
):
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 300)
    body = call(["1"])
    for properties in UNREADABLE.values():
        raw_channel.basic_publish(RawMessage(body, properties), exchange="bank", routing_key=QUEUE)
    for headers in NUL.values():
        message = Message(body, application_headers=headers, **JSON)
        raw_channel.basic_publish(message, exchange="bank", routing_key=QUEUE)
    publisher = Publisher(settings.BROKER_URL, "bank")
    publisher.publish([TaskMessage(QUEUE, TASK, [str(transfer.pk)])])
    publisher.close()

    workers = [start("worker", role) for role in ("posting", "maintenance")]

    assert eventually(lambda: DeadLetter.objects.count() == len(UNREADABLE) + len(NUL))
    assert eventually(lambda: Transfer.objects.get().status == "posted")
    assert [worker.poll() for worker in workers] == [None, None]
    assert {bytes(letter.body) for letter in DeadLetter.objects.all()} == {body}
    unreadable = DeadLetter.objects.filter(cause="undeliverable: unreadable headers")
    assert unreadable.count() == len(UNREADABLE)
    assert all(letter.headers["bankcore-unreadable"]["why"] for letter in unreadable)
    assert eventually(lambda: (broker.depth(QUEUE), broker.depth("dead_letters")) == (0, 0))
