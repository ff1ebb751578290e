"""What nobody could handle is kept byte for byte, with everything that came around it."""

import hashlib

import pytest
from backports import zstd
from celery import current_app
from kombu import Connection, Consumer, Exchange, Producer

from bankcore.messaging.dead_letters import DeadLetterStep, record_message
from bankcore.messaging.forecasts import foresee
from bankcore.messaging.models import DeadLetter

pytestmark = pytest.mark.django_db


@pytest.fixture
def die(broker):
    """Publish to the dead-letter queue and let the step take it, as the maintenance worker does."""

    def run(body, headers, content_type="application/json", **properties):
        exchange = Exchange("bank.dead", type="topic", no_declare=True)
        producer = Producer(broker.channel, exchange=exchange, auto_declare=False)
        sent = {"content_type": content_type, "content_encoding": "utf-8", **properties}
        producer.publish(body, routing_key="dead_letters", headers=headers, **sent)
        before = DeadLetter.objects.count()
        with broker.connection.channel() as channel:
            step = DeadLetterStep(current_app)
            (consumer,) = step.get_consumers(channel)
            with consumer:
                while DeadLetter.objects.count() == before:
                    broker.connection.drain_events(timeout=10)
        return DeadLetter.objects.latest("pk")

    return run


PLAIN = b'[[["0190b3a0-0000-7000-8000-000000000000"]], {}, {}]'


@pytest.mark.parametrize(
    ("body", "headers", "why"),
    [
        (zstd.compress(PLAIN), {"compression": "application/zstd"}, ""),
        (PLAIN, {}, ""),
        (b"not zstd", {"compression": "application/zstd"}, "Its body cannot be decompressed"),
        (b"\xff\x00\xfe", {}, "Its body is not JSON in UTF-8"),
        (b"", {}, "Its body is not JSON in UTF-8"),
        (b"x" * 1_000_000, {}, "Its body has 1,000,000 bytes"),
    ],
)
def test_the_bytes_are_kept_as_they_came_over_the_wire(die, body, headers, why):
    letter = die(body, {"task": "transfers.post_transfers", "weight": 1.5, "n": None, **headers}, message_id="m-1")

    assert bytes(letter.body) == body
    assert letter.body_digest == hashlib.sha256(body).hexdigest()
    assert (letter.headers.get("compression"), letter.headers["weight"]) == (headers.get("compression"), 1.5)
    assert (letter.headers["content_type"], letter.headers["content_encoding"]) == ("application/json", "utf-8")
    assert letter.headers["properties"]["message_id"] == "m-1"
    assert letter.detail.startswith(why)
    assert bool(letter.detail) == bool(why)
    assert (letter.state, letter.task, letter.attempts) == ("open", "transfers.post_transfers", 0)


@pytest.mark.parametrize("death", ["nonsense", [], [7], {"queue": "a"}, [{"queue": "posting-1", "reason": "expired"}]])
def test_death_headers_of_any_shape_are_kept(die, death):
    letter = die(PLAIN, {"task": "transfers.post_transfers", "x-death-told": death, "x-delivery-count": "many"})

    assert letter.headers["x-death-told"] == death


def test_a_malformed_death_does_not_keep_the_message_out(broker):
    class Message:
        headers = {"x-death": "nonsense", "x-delivery-count": -7, "task": ["a"]}
        properties = {"reply_to": b"\x00"}
        content_type = content_encoding = None
        body = memoryview(b"abc")

    letter = record_message(Message())

    assert (bytes(letter.body), letter.attempts, letter.queue) == (b"abc", 0, "")


def test_the_virtual_transports_keep_the_bytes_as_well():
    """Redis or Valkey as the broker carry the body as base64 inside JSON."""
    with Connection("memory://") as connection:
        queue = connection.SimpleQueue("anything").queue
        Producer(connection.default_channel).publish(
            {"a": 1}, routing_key="anything", serializer="json", compression="zstd"
        )
        step, taken = DeadLetterStep(current_app), []
        channel = connection.default_channel
        step.get_consumers(channel)
        with Consumer(channel, queues=[queue], on_message=taken.append, no_ack=True):
            connection.drain_events(timeout=5)

    letter = record_message(taken[0])

    assert zstd.decompress(bytes(letter.body)) == b'{"a": 1}'
    assert foresee([letter.pk])[0].would == "nothing"
