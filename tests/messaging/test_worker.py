"""Real worker processes and messages nobody can handle: none is lost, none ends a worker, each has its cause."""

import os
from collections import Counter

import pytest
from django.conf import settings
from kombu import Exchange, Producer

from bankcore import topology
from bankcore.messaging import envelope
from bankcore.messaging.broker import declare_topology
from bankcore.messaging.models import DeadLetter
from bankcore.messaging.publisher import Publisher, TaskMessage
from tests.messaging.broker_view import PATIENCE_SECONDS, eventually
from tests.messaging.poison import JSON, QUEUE, TASK, call, kinds, signed, task_headers
from transfers.models import Transfer

pytestmark = pytest.mark.django_db(transaction=True)

POISONED = int(os.environ.get("POISON_MESSAGES", "500"))


@pytest.fixture
def producer(broker):
    return Producer(broker.channel, exchange=Exchange("bank", type="topic", no_declare=True), auto_declare=False)


@pytest.fixture
def publisher(broker):
    publisher = Publisher(settings.BROKER_URL, "bank")
    yield publisher
    publisher.close()


def test_poison_ends_on_the_desk_with_its_cause_while_healthy_traffic_goes_on(
    producer, publisher, broker, start, accounts, make_transfer
):
    alice, bob = accounts(10_000, 0)
    battery = kinds()
    assert len(battery) >= 20
    expected, published, healthy = Counter(), 0, []
    workers = [start("worker", role, TASK_ATTEMPTS_MAX="0", LOG_LEVEL="ERROR") for role in ("posting", "maintenance")]

    while published < POISONED:
        for name, (body, headers, properties, cause) in battery.items():
            if published >= POISONED or (name in ("too large", "a bomb") and published > 500):
                continue
            producer.publish(body, routing_key=QUEUE, headers={**headers, "kind": name}, delivery_mode=2, **properties)
            expected[(name, f"undeliverable: {cause}")] += 1
            published += 1
        transfer = make_transfer(alice, bob, 1)
        publisher.publish([TaskMessage(QUEUE, TASK, [str(transfer.pk)])])
        healthy.append(transfer.pk)

    assert eventually(lambda: Transfer.objects.filter(pk__in=healthy, status="posted").count() == len(healthy))
    assert eventually(lambda: DeadLetter.objects.count() >= published)
    found = Counter(
        (letter.headers.get("kind"), letter.cause) for letter in DeadLetter.objects.only("headers", "cause")
    )
    assert found == expected
    assert set(DeadLetter.objects.values_list("state", "queue")) == {("open", QUEUE)}
    # The same two processes as at the start.
    assert [worker.poll() for worker in workers] == [None, None]
    assert (broker.depth(QUEUE), broker.depth("dead_letters")) == (0, 0)
    assert Transfer.objects.exclude(status="posted").count() == 0


def test_an_id_that_is_none_goes_to_the_desk_by_itself(publisher, broker, start, accounts, make_transfer):
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 300)
    publisher.publish([TaskMessage(QUEUE, TASK, ["no-uuid", str(transfer.pk)])])

    start("worker", "posting", TASK_ATTEMPTS_MAX="0")

    assert eventually(lambda: Transfer.objects.get().status == "posted")
    (letter,) = DeadLetter.objects.all()
    assert (letter.task, letter.subject, letter.body) == (TASK, "no-uuid", None)


def test_what_was_added_to_a_signed_message_on_the_way_has_no_say(producer, broker, start, accounts, make_transfer):
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 300)
    body = call([str(transfer.pk)])
    headers = signed(body, timelimit="never", retries="many", shadow=7, stamps=[1], group=["a"], errbacks=[1])
    producer.publish(body, routing_key=QUEUE, headers=headers, delivery_mode=2, **JSON)

    worker = start("worker", "posting")

    assert eventually(lambda: Transfer.objects.get().status == "posted")
    assert worker.poll() is None
    assert eventually(lambda: broker.depth("dead_letters") == 0)
    assert DeadLetter.objects.count() == 0


def test_a_clock_that_is_wrong_keeps_no_housekeeping_from_being_done(producer, broker, start, accounts, make_transfer):
    """All that the maintenance worker gets looks an hour old; of what piled up at once, the first is done."""
    *payers, bob = accounts(*[10] * 20, 0)
    transfers = [make_transfer(payer, bob, 1) for payer in payers]
    *piled_up, last = [call([str(transfer.pk)]) for transfer in transfers]
    for body in piled_up:
        headers = task_headers()
        envelope.sign(headers, queue="maintenance", body=body)
        headers[envelope.ISSUED_AT_HEADER] -= 3_600_000
        key = settings.MESSAGE_KEYS[0]
        headers[envelope.SIGNATURE_HEADER] = envelope._signature(key, headers, "maintenance", body)
        producer.publish(body, routing_key="maintenance", headers=headers, delivery_mode=2, **JSON)
    headers = signed(last, task_headers(), queue="maintenance")
    producer.publish(last, routing_key="maintenance", headers=headers, delivery_mode=2, **JSON)

    start("worker", "maintenance")

    assert eventually(lambda: Transfer.objects.get(pk=transfers[-1].pk).status == "posted")
    assert Transfer.objects.get(pk=transfers[0].pk).status == "posted"
    assert Transfer.objects.filter(status="approved").exists()


def test_a_message_that_kills_its_worker_ends_on_the_desk_and_the_others_go_on(
    producer, publisher, broker, start, accounts, make_transfer, monkeypatch
):
    """The delivery limit is four here; the task that kills is known to the workers of this test alone."""
    monkeypatch.setattr(topology, "DELIVERY_LIMIT", 4)
    for name in broker.names:
        broker.delete(name)
    declare_topology()
    workers = []
    try:
        alice, bob = accounts(1000, 0)
        body = call(["1"])
        deadly = signed(body, task_headers("tests.die"), queue="posting-1")
        producer.publish(body, routing_key="posting-1", headers=deadly, delivery_mode=2, **JSON)
        healthy = [make_transfer(alice, bob, 1) for _ in range(8)]
        for number, transfer in enumerate(healthy):
            publisher.publish([TaskMessage(f"posting-{number % 4}", TASK, [str(transfer.pk)])])
        workers.append(start("worker", "maintenance", program="tests/messaging/deadly_manage.py"))

        deaths, worker = 0, None
        while not DeadLetter.objects.exists() and deaths < 8:
            worker = start("worker", "posting", program="tests/messaging/deadly_manage.py")
            workers.append(worker)
            assert eventually(lambda worker=worker: worker.poll() is not None or DeadLetter.objects.exists())
            deaths += worker.poll() is not None

        letters = DeadLetter.objects.values_list("cause", "task", "queue", "subject", "detail")
        assert [row[:3] for row in letters] == [("undeliverable: killed its worker", "tests.die", "posting-1")], letters
        assert 4 <= deaths <= 6
        # The letter may be there before the next look at the worker whose death gave the message up.
        if worker.poll() is not None:
            worker = start("worker", "posting", program="tests/messaging/deadly_manage.py")
            workers.append(worker)
        assert eventually(lambda: not Transfer.objects.exclude(status="posted").exists())
        assert worker.poll() is None
    finally:
        # First: a worker declares a queue that is missing, its own way.
        for worker in workers:
            worker.terminate()
            worker.wait(timeout=PATIENCE_SECONDS)
        monkeypatch.undo()
        for name in broker.names:
            broker.delete(name)
        declare_topology()
