"""Messages whose headers or properties cannot be read, as strangers' clients write them, and real workers."""

import struct
from urllib.parse import unquote, urlsplit

import amqp
import pytest
from amqp.basic_message import Message
from django.conf import settings

from bankcore.messaging.models import DeadLetter
from bankcore.messaging.publisher import Publisher, TaskMessage
from tests.messaging.broker_view import eventually
from tests.messaging.poison import JSON, QUEUE, TASK, call, task_headers
from transfers.models import Transfer

pytestmark = pytest.mark.django_db(transaction=True)

# Bits of the flags in front of a message's properties.
HEADERS, MESSAGE_ID = 1 << 13, 1 << 7


class RawMessage(Message):
    """A message whose properties are these bytes."""

    def __init__(self, body: bytes, properties: bytes) -> None:
        super().__init__(body)
        self.raw = properties

    def _serialize_properties(self) -> bytes:
        return self.raw


def table(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def nested(levels: int) -> bytes:
    content = b""
    for _ in range(levels):
        content = b"\x01aF" + table(content)
    return content


UNREADABLE = {
    "an id in Latin-1": struct.pack(">H", MESSAGE_ID) + b"\x04\xe4\xff\xfe\xfc",
    "tables in tables": struct.pack(">H", HEADERS) + table(nested(3_000)),
    "tables to the end of the frame": struct.pack(">H", HEADERS) + table(nested(15_000)),
    "a moment in milliseconds": struct.pack(">H", HEADERS) + table(b"\x01aT" + struct.pack(">Q", 1_700_000_000_000)),
    "a moment beyond every calendar": struct.pack(">H", HEADERS) + table(b"\x01aT" + struct.pack(">Q", 2**63 + 5)),
}
NUL = {
    "in the task": task_headers("transfers\x00.nonsense"),
    "in names and texts": {"a\x00": "b\x00", "task": "\x00", "id": "\x00"},
    "halves of characters": task_headers("a\ud800b", **{"c\ud800": "\ud800"}),
}


@pytest.fixture
def channel():
    url = urlsplit(settings.BROKER_URL)
    with amqp.Connection(
        f"{url.hostname}:{url.port}",
        userid=unquote(url.username or ""),
        password=unquote(url.password or ""),
        virtual_host=unquote(url.path[1:]),
        confirm_publish=True,
    ) as connection:
        yield connection.channel()


def test_what_cannot_be_read_of_a_message_ends_no_worker_and_is_kept(channel, broker, start, accounts, make_transfer):
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 300)
    body = call(["1"])
    for properties in UNREADABLE.values():
        channel.basic_publish(RawMessage(body, properties), exchange="bank", routing_key=QUEUE)
    for headers in NUL.values():
        message = Message(body, application_headers=headers, **JSON)
        channel.basic_publish(message, exchange="bank", routing_key=QUEUE)
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
