"""Real worker processes and messages nobody can handle: none is lost, none ends a worker."""

import json
import os
import subprocess
import sys
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from django.conf import settings
from django.db import connection
from kombu import Exchange, Producer

from bankcore.messaging.models import DeadLetter
from bankcore.messaging.publisher import Publisher, TaskMessage
from tests.messaging.broker_view import eventually
from transfers.models import Transfer

QUEUE = "posting-0"


def task_headers(task="transfers.post_transfers", **changes):
    task_id = str(uuid4())
    return {"lang": "py", "task": task, "id": task_id, "root_id": task_id, "retries": 0, "eta": None, **changes}


def call(*args):
    return json.dumps([list(args), {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])


# What each is, its body, headers, and properties. All are to become dead letters.
BATTERY = [
    ("no JSON", b"{nonsense", task_headers(), {}),
    ("no UTF-8", b"\xff\xfe\x00", task_headers(), {}),
    ("empty", b"", task_headers(), {}),
    ("pickle", b"\x80\x04N.", task_headers(), {"content_type": "application/x-python-serialize"}),
    ("unknown content", b"hello", task_headers(), {"content_type": "text/x-poem"}),
    ("unknown encoding", call(["1"]).encode(), task_headers(), {"content_encoding": "utf-99"}),
    ("unknown compression", call(["1"]).encode(), task_headers(compression="application/x-nope"), {}),
    ("broken compression", b"not zstd", task_headers(compression="application/zstd"), {}),
    ("no headers", call(["1"]).encode(), {}, {}),
    ("a number", b"7", task_headers(), {}),
    ("a text", b'"text"', task_headers(), {}),
    ("an object", b"{}", task_headers(), {}),
    ("one argument list too few", b"[[]]", task_headers(), {}),
    ("arguments that are none", b"[7, 7, 7]", task_headers(), {}),
    ("unknown task", call(["1"]).encode(), task_headers("transfers.nonsense"), {}),
    ("a task that is no text", call(["1"]).encode(), task_headers(7), {}),
    ("an eta of nonsense", call(["1"]).encode(), task_headers(eta="soon"), {}),
    ("an expiry of nonsense", call(["1"]).encode(), task_headers(expires="never"), {}),
    ("time limits of nonsense", call(["1"]).encode(), task_headers(timelimit=7), {}),
    ("retries of nonsense", call("x").encode(), task_headers(retries="many"), {}),
    ("no id", call(["1"]).encode(), {"task": "transfers.post_transfers"}, {}),
    ("a zero byte in a header", call("x").encode(), task_headers(note="a\x00b"), {}),
    ("no list of ids", call("x").encode(), task_headers(), {}),
    ("no ids", call([]).encode(), task_headers(), {}),
    ("too many ids", call(["1"] * 600).encode(), task_headers(), {}),
    ("ids that are none", call(["no-uuid"]).encode(), task_headers(), {}),
]


@pytest.fixture
def workers(tmp_path):
    """Run workers of these roles against the test's database; they are stopped at the end."""
    database_url = urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{connection.settings_dict['NAME']}").geturl()
    environment = {**os.environ, "DATABASE_URL": database_url, "TASK_ATTEMPTS_MAX": "0"}
    processes = []

    def start(*roles):
        for role in roles:
            with (tmp_path / f"{role}.log").open("wb") as output:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "manage.py", "worker", role],
                        cwd=settings.BASE_DIR,
                        env=environment,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )
        return processes

    yield start
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.mark.django_db(transaction=True)
def test_malformed_messages_become_dead_letters_and_the_workers_go_on(
    broker, workers, accounts, make_transfer, tmp_path
):
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 300)
    producer = Producer(broker.channel, exchange=Exchange("bank", type="topic", no_declare=True), auto_declare=False)
    for _, body, headers, properties in BATTERY:
        sent = {"content_type": "application/json", "content_encoding": "utf-8", **properties}
        producer.publish(body, routing_key=QUEUE, headers=headers, delivery_mode=2, **sent)
    assert eventually(lambda: broker.depth(QUEUE) == len(BATTERY))

    processes = workers("posting", "maintenance")
    eventually(lambda: DeadLetter.objects.count() >= len(BATTERY), seconds=40)

    # An id that is none is put on the desk by itself, so that the rest of its message goes on.
    alone = DeadLetter.objects.filter(body=None).order_by("subject").values_list("task", "subject")
    assert list(alone) == [("transfers.post_transfers", "1"), ("transfers.post_transfers", "no-uuid")]
    undeliverable = DeadLetter.objects.exclude(body=None)
    bodies = {bytes(letter.body) for letter in undeliverable} | {call(["1"]).encode(), call(["no-uuid"]).encode()}
    missing = [name for name, body, _, _ in BATTERY if body not in bodies]
    logs = "".join(path.read_text(errors="replace")[-4000:] for path in tmp_path.glob("*.log"))
    assert missing == [], logs
    assert DeadLetter.objects.count() == len(BATTERY)
    assert set(undeliverable.values_list("state", "queue", "cause")) == {("open", QUEUE, "undeliverable: rejected")}
    assert {len(letter.body_digest) for letter in undeliverable} == {64}

    # The same two processes still work.
    publisher = Publisher(settings.BROKER_URL, "bank")
    publisher.publish([TaskMessage(QUEUE, "transfers.post_transfers", [str(transfer.pk)])])
    publisher.close()
    assert eventually(lambda: Transfer.objects.get(pk=transfer.pk).status == "posted")
    assert [process.poll() for process in processes] == [None, None]
    assert (broker.depth(QUEUE), broker.depth("dead_letters")) == (0, 0)
