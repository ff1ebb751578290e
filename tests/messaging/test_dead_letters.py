"""What nobody could handle is kept byte for byte, with everything that came around it."""

import hashlib

import pytest
from backports import zstd
from celery import current_app
from django.db import DataError
from django.utils import timezone
from kombu import Connection, Consumer, Exchange, Producer

from bankcore.messaging import envelope
from bankcore.messaging.dead_letters import DeadLetterStep, park_work, record_message
from bankcore.messaging.forecasts import foresee
from bankcore.messaging.models import DeadLetter, Event
from tests.messaging.broker_view import PATIENCE_SECONDS
from tests.messaging.poison import TASK, call, task_headers
from transfers.models import Transfer
from transfers.posting import post_transfers

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
                    broker.connection.drain_events(timeout=PATIENCE_SECONDS)
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
            connection.drain_events(timeout=PATIENCE_SECONDS)

    letter = record_message(taken[0])

    assert zstd.decompress(bytes(letter.body)) == b'{"a": 1}'
    assert foresee([letter.pk])[0].would == "nothing"


def killed(die, body, task=TASK, queue="posting-0", **changes):
    """A message of ours as the broker gives it up: it was delivered too often."""
    # As a worker does when it starts.
    current_app.loader.import_default_modules()
    headers = task_headers(task)
    envelope.sign(headers, queue=queue, body=body)
    death = [{"queue": queue, "reason": "delivery_limit", "routing-keys": [queue], "count": 1}]
    return die(body, {**headers, "x-death": death, **changes})


def approvals():
    events = Event.objects.filter(type="transfer.approved").order_by("id")
    return [(event.attempt, event.published_at, event.due_at > timezone.now()) for event in events]


def test_of_what_killed_its_workers_each_id_is_tried_alone_and_the_culprit_is_parked(die, accounts, make_transfer):
    alice, bob = accounts(1000, 0)
    transfers = [make_transfer(alice, bob, 10) for _ in range(3)]
    Event.objects.update(published_at=timezone.now())

    killed(die, call([str(transfer.pk) for transfer in transfers]))

    # Now and not later: what is written from here on is read after them, and so comes after them.
    assert approvals() == [(1, None, False)] * 3
    # Later ones of the account that are in a queue already are not held up by it, nor take it along.
    last = make_transfer(alice, bob, 10)
    post_transfers([last.pk])
    assert set(Transfer.objects.exclude(pk=last.pk).values_list("status", flat=True)) == {"approved"}

    killed(die, call([str(transfers[1].pk)]))

    assert [Transfer.objects.get(pk=t.pk).status for t in transfers] == ["approved", "parked", "approved"]
    parked = DeadLetter.objects.get(subject=str(transfers[1].pk))
    assert (parked.task, parked.cause) == (TASK, "WorkerDied: workers died of it, again and again")


def test_an_event_that_kills_those_who_tell_of_it_is_parked_and_left_alone_by_the_sweep(die, accounts, make_transfer):
    alice, bob = accounts(1000, 0)
    for _ in range(2):
        make_transfer(alice, bob, 10, "posted", posted_at=timezone.now())
    posted = Event.objects.filter(type="transfer.posted").order_by("id")
    good, bad = posted.values_list("pk", flat=True)
    posted.update(published_at=timezone.now())

    killed(die, call([good, bad]), "notifications.dispatch", "notifications")

    assert list(posted.values_list("attempt", "published_at")) == [(1, None)] * 2
    assert not DeadLetter.objects.exclude(subject="").exists()

    killed(die, call([bad]), "notifications.dispatch", "notifications")

    parked = DeadLetter.objects.exclude(subject="").get()
    assert (parked.task, parked.subject) == ("notifications.dispatch", str(bad))
    assert parked.cause == "WorkerDied: workers died of it, again and again"


def test_a_letter_whose_writer_died_before_the_broker_knew_is_written_and_acted_on_once(
    broker, accounts, make_transfer
):
    alice, bob = accounts(1000, 0)
    transfers = [make_transfer(alice, bob, 10) for _ in range(2)]
    current_app.loader.import_default_modules()
    body, headers = call([str(transfer.pk) for transfer in transfers]), task_headers()
    envelope.sign(headers, queue="posting-0", body=body)
    producer = Producer(
        broker.channel, exchange=Exchange("bank.dead", type="topic", no_declare=True), auto_declare=False
    )

    def publish(count):
        death = [{"queue": "posting-0", "reason": "delivery_limit", "routing-keys": ["posting-0"], "count": count}]
        sent = {"content_type": "application/json", "content_encoding": "utf-8", "message_id": "m-1"}
        producer.publish(body, routing_key="dead_letters", headers={**headers, "x-death": death}, **sent)

    def take(*, acknowledge):
        """Let the desk take the next message, and die before it acknowledges, or not."""
        taken = []
        with broker.connection.channel() as channel:
            step = DeadLetterStep(current_app)
            (consumer,) = step.get_consumers(channel)

            def on_message(message):
                if not acknowledge:
                    message.ack = lambda: None
                step.take(message)
                taken.append(message)

            consumer.on_message = on_message
            consumer.consume()
            while not taken:
                broker.connection.drain_events(timeout=PATIENCE_SECONDS)
        return DeadLetter.objects.count(), [event[0] for event in approvals()]

    publish(1)
    assert take(acknowledge=False) == (1, [1, 1])
    assert take(acknowledge=True) == (1, [1, 1])
    assert broker.depth("dead_letters") == 0
    # It is about this death: the next one of the same message is another letter.
    publish(2)
    assert take(acknowledge=False) == (2, [2, 2])
    assert take(acknowledge=True) == (2, [2, 2])


def test_a_strangers_word_on_how_a_message_died_moves_nothing(die, accounts, make_transfer):
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 10)
    Event.objects.update(published_at=timezone.now(), attempt=1)

    letter = killed(die, call([str(transfer.pk)]), **{envelope.SIGNATURE_HEADER: "0" * 64})

    assert letter.cause == "undeliverable: killed its worker"
    assert Event.objects.filter(published_at=None).count() == 0
    assert Transfer.objects.get().status == "approved"


def test_a_cause_is_one_line_to_count_by_and_the_detail_has_all():
    error = DataError("division by zero\nCONTEXT:  PL/pgSQL function ledger_post(uuid[]) line 30")
    letter = park_work(task="transfers.post_transfers", subject="1", error=error, attempts=3)
    assert letter.cause == "DataError: division by zero"
    assert "line 30" in letter.detail
