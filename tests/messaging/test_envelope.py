"""Signatures, versions and what is believed of them; the messages of the release before."""

import base64
import json
from datetime import timedelta
from pathlib import Path

import pytest
from celery import current_app
from django.utils import timezone
from kombu import Exchange, Producer

from bankcore.messaging import envelope
from bankcore.messaging.envelope import Refused
from bankcore.messaging.models import DeadLetter
from bankcore.messaging.publisher import Publisher, TaskMessage
from tests.messaging.broker_view import eventually
from tests.messaging.poison import JSON, QUEUE, TASK, call, signed, task_headers
from transfers.models import Transfer

# Recorded from the release that did not sign: as bytes, by its own publisher and its beat.
RELEASE_1 = json.loads((Path(__file__).parent / "wire" / "release-1.json").read_text())
BODY = call(["1"])


def test_a_signature_fits_its_own_message():
    envelope.check(signed(BODY), queue=QUEUE, body=BODY)


def test_keys_rotate(settings):
    settings.MESSAGE_KEYS = ["the old key, that is about to go"]
    headers = signed(BODY)

    settings.MESSAGE_KEYS = ["the new key", "the old key, that is about to go"]
    envelope.check(headers, queue=QUEUE, body=BODY)
    envelope.check(signed(BODY), queue=QUEUE, body=BODY)

    settings.MESSAGE_KEYS = ["the new key"]
    with pytest.raises(Refused, match="fits neither"):
        envelope.check(headers, queue=QUEUE, body=BODY)


@pytest.mark.parametrize(("minutes", "believed"), [(5, True), (-5, False), (None, False)])
@pytest.mark.parametrize("number", range(len(RELEASE_1)))
def test_messages_of_the_release_before_are_believed_until_a_moment(settings, number, minutes, believed):
    settings.MESSAGE_UNSIGNED_UNTIL = timezone.now() + timedelta(minutes=minutes) if minutes else None
    old = RELEASE_1[number]

    def check():
        envelope.check(old["headers"], queue=old["queue"], body=base64.b64decode(old["body"]))

    if believed:
        check()
    else:
        with pytest.raises(Refused, match="no signature"):
            check()


def test_what_is_half_signed_is_not_taken_for_an_older_release(settings):
    settings.MESSAGE_UNSIGNED_UNTIL = timezone.now() + timedelta(hours=1)
    for missing in (envelope.VERSION_HEADER, envelope.SIGNATURE_HEADER):
        headers = signed(BODY)
        del headers[missing]

        with pytest.raises(Refused):
            envelope.check(headers, queue=QUEUE, body=BODY)


@pytest.mark.django_db(transaction=True)
def test_a_new_worker_handles_the_messages_of_the_release_before(broker, start, accounts, make_transfer):
    alice, bob = accounts(1000, 0)
    ids = [json.loads(base64.b64decode(RELEASE_1[0]["body"]))[0][0][0]]
    make_transfer(alice, bob, 10, pk=ids[0])
    old = RELEASE_1[0]
    producer = Producer(broker.channel, exchange=Exchange("bank", type="topic", no_declare=True), auto_declare=False)
    producer.publish(base64.b64decode(old["body"]), routing_key=old["queue"], headers=old["headers"], **JSON)
    until = (timezone.now() + timedelta(hours=1)).isoformat()

    start("worker", "posting", MESSAGE_UNSIGNED_UNTIL=until)

    assert eventually(lambda: Transfer.objects.get().status == "posted")
    assert DeadLetter.objects.count() == 0


def test_an_older_worker_reads_new_messages(broker, settings):
    """What it looks at is where it was; what is new are headers that it does not know."""
    publisher = Publisher(settings.BROKER_URL, "bank")
    publisher.publish([TaskMessage("posting-0", TASK, ["019abc00-0000-7000-8000-000000000001"])])
    publisher.close()

    (message,) = broker.take("posting-0")

    old = RELEASE_1[0]
    assert set(old["headers"]) <= set(message.headers)
    assert message.decode() == json.loads(base64.b64decode(old["body"]))


def test_what_the_application_sends_by_celery_is_signed_too(broker):
    current_app.send_task("transfers.sweep_stuck", queue="maintenance")

    (message,) = broker.take("maintenance")

    assert message.headers[envelope.VERSION_HEADER] == 1
    body = message.body if isinstance(message.body, bytes) else message.body.encode()
    envelope.check(message.headers, queue="maintenance", body=body)


def test_nothing_that_beat_sends_expires_in_the_broker():
    schedule = current_app.conf.beat_schedule
    assert [entry["task"] for entry in schedule.values() if "expires" in entry["options"]] == []


def test_a_message_of_the_next_version_is_not_guessed_at():
    headers = signed(BODY, task_headers(), **{envelope.VERSION_HEADER: 2})

    with pytest.raises(Refused) as refused:
        envelope.check(headers, queue=QUEUE, body=BODY)
    assert refused.value.kind == "unknown version"
