"""What reaches real workers through Celery's control exchange, from whoever can publish there."""

import json
import socket
import threading
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx
import pytest
from amqp.basic_message import Message
from celery.worker.control import Panel
from django.conf import settings

from bankcore.celery import app
from bankcore.messaging.publisher import Publisher, TaskMessage
from bankcore.messaging.remote_control import ANSWERS_MAX, QUESTIONS, QuestionBox
from tests.messaging.broker_view import eventually
from tests.messaging.poison import JSON, QUEUE, TASK, UNREADABLE, RawMessage, kinds
from transfers.models import Transfer

pytestmark = pytest.mark.django_db(transaction=True)

EXCHANGE, REPLIES = "celery.pidbox", "reply.celery.pidbox"
# Control messages that Celery would not write: to some it answers by opening its mailbox again, to one with its end.
MALFORMED = [
    [1, 2],
    None,
    "shutdown",
    {},
    {"method": 5},
    {"method": "ping", "arguments": [1]},
    {"method": "ping", "destination": 7},
    {"method": "ping", "destination": {"a": 1}},
    {"method": "ping", "reply_to": 7},
    {"method": "ping", "reply_to": {"exchange": REPLIES, "routing_key": "x" * 300}},
    {"method": "ping", "reply_to": {"exchange": REPLIES, "routing_key": "\ud800"}},
    {"method": "ping", "pattern": "(a+)+$", "matcher": "pcre"},
    {"method": "ping", "ticket": ["a"]},
    # Answers where only relays may publish.
    {"method": "ping", "reply_to": {"exchange": "", "routing_key": "notifications"}},
    {"method": "ping", "reply_to": {"exchange": "bank", "routing_key": "notifications"}},
]


def asked(command, worker, **arguments):
    """What a worker answers; None if it does not."""
    with app.connection_for_write() as connection:
        answers = app.control.broadcast(
            command, arguments, destination=[worker.node], reply=True, timeout=5, connection=connection
        )
    return answers[0][worker.node] if answers else None


@pytest.fixture
def worker(broker, start, free_port):
    """Start a posting worker and wait until it answers; it has a name, and an address for its metrics."""

    def started(**variables):
        port = free_port()
        process = start("worker", "posting", METRICS_PORT=str(port), **variables)
        process.node = f"posting.0.{process.pid}@{socket.gethostname()}"
        process.metrics = f"http://127.0.0.1:{port}/metrics"
        assert eventually(lambda: said(process, '"metrics on') and asked("ping", process)), process.log.read_text()
        return process

    return started


def said(worker, words):
    return worker.log.read_text(errors="replace").count(words)


def ignored(worker):
    page = httpx.get(worker.metrics).text.splitlines()
    name = "bankcore_control_messages_ignored_total"
    return {line.split('"')[1]: float(line.split()[-1]) for line in page if line.startswith(f"{name}{{")}


def send(channel, command):
    channel.basic_publish(Message(json.dumps(command), **JSON), exchange=EXCHANGE)


def is_well(worker, transfer):
    """It answers, works, and is on the connection that it began with."""
    publisher = Publisher(settings.BROKER_URL, "bank")
    publisher.publish([TaskMessage(QUEUE, TASK, [str(transfer.pk)])])
    publisher.close()
    assert eventually(lambda: Transfer.objects.get(pk=transfer.pk).status == "posted")
    assert asked("ping", worker) == {"ok": "pong"}
    assert worker.poll() is None
    return said(worker, '"Connected to') == 1 and not said(worker, "onnection to broker lost")


def test_no_message_costs_a_worker_its_mailbox_or_its_connection(raw_channel, worker, accounts, make_transfer):
    alice, bob = accounts(1000, 0)
    transfer, worker = make_transfer(alice, bob, 300), worker()

    messages = [RawMessage(b"{}", properties) for properties in UNREADABLE.values()]
    messages += [Message(body, application_headers=headers, **told) for body, headers, told, _ in kinds().values()]
    messages += [Message("not json", **JSON), Message("", **JSON)]
    for message in messages:
        raw_channel.basic_publish(message, exchange=EXCHANGE)
    for command in MALFORMED:
        send(raw_channel, command)

    assert eventually(lambda: sum(ignored(worker).values()) == len(messages) + len(MALFORMED)), ignored(worker)
    assert is_well(worker, transfer)
    assert ignored(worker).keys() == {"unreadable", "malformed"}


def test_an_answer_goes_to_nobody_who_asked_from_elsewhere(raw_channel, worker, broker):
    worker = worker()
    for command in MALFORMED[-2:]:
        send(raw_channel, command)

    assert eventually(lambda: ignored(worker).get("malformed") == 2)
    assert broker.depth("notifications") == 0


def test_no_command_is_obeyed(raw_channel, worker, accounts, make_transfer):
    alice, bob = accounts(1000, 0)
    transfer, worker = make_transfer(alice, bob, 300), worker()
    arguments = {
        "cancel_consumer": {"queue": QUEUE},
        "add_consumer": {"queue": "notifications"},
        "hello": {"from_node": "stranger@nowhere", "revoked": ["an-id"]},
        "revoke": {"task_id": ["an-id"]},
    }
    commands = [name for name in Panel.meta if name not in QUESTIONS]
    assert {"shutdown", "terminate", "rate_limit", "enable_events", *arguments} <= set(commands)

    for name in commands:
        send(raw_channel, {"method": name, "arguments": arguments.get(name, {}), "destination": None})

    assert "REMOTE_CONTROL" in asked("shutdown", worker)["error"]
    assert is_well(worker, transfer)
    assert ignored(worker) == {"not allowed": len(commands) + 1}
    assert asked("revoked", worker) == []
    assert {queue["name"] for queue in asked("active_queues", worker)} == {
        f"posting-{partition}" for partition in range(settings.PARTITIONS)
    }


def test_questions_are_answered_and_tell_no_secret(worker):
    worker = worker(BROKER_URL=f"{settings.BROKER_URL};{settings.BROKER_URL}")
    arguments = {"query_task": {"ids": ["an-id"]}, "conf": {"with_defaults": True}, "active": {"safe": True}}

    answers = {name: asked(name, worker, **arguments.get(name, {})) for name in QUESTIONS}

    assert [name for name, answer in answers.items() if isinstance(answer, dict) and "error" in answer] == []
    assert answers["stats"]["broker"]["virtual_host"] == urlsplit(settings.BROKER_URL).path[1:]
    assert answers["conf"]["task_acks_late"] is True
    secrets = [urlsplit(settings.BROKER_URL).password, settings.SECRET_KEY, settings.DATABASES["default"]["PASSWORD"]]
    assert [secret for secret in filter(None, secrets) if secret in repr(answers)] == []
    assert ignored(worker) == {}


def test_a_node_that_takes_no_answer_holds_up_no_worker(monkeypatch):
    takes_them, sent = threading.Event(), []

    def publish(answer, exchange, routing_key, ticket, **options):
        takes_them.wait(5)
        sent.append(ticket)

    monkeypatch.setattr(app.control.mailbox, "_publish_reply", publish)
    box = QuestionBox(SimpleNamespace(app=app, hostname="w@here", controller=SimpleNamespace(use_eventloop=True)))
    asked_for = {"method": "ping", "reply_to": {"exchange": REPLIES, "routing_key": "r"}}

    for number in range(2 * ANSWERS_MAX):
        box.on_message(asked_for | {"ticket": str(number)}, None)

    assert sent == []
    takes_them.set()
    assert eventually(lambda: len(sent) >= ANSWERS_MAX)
    assert sent == sorted(sent, key=int)


def test_a_setting_lets_a_worker_be_stopped_from_afar(raw_channel, worker):
    worker = worker(REMOTE_CONTROL="1")

    send(raw_channel, {"method": "shutdown", "arguments": {}, "destination": ["somebody@else"]})
    assert asked("ping", worker) == {"ok": "pong"}
    send(raw_channel, {"method": "shutdown", "arguments": {}, "destination": [worker.node]})

    assert eventually(lambda: worker.poll() is not None)
