import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import amqp
import pytest
from django.contrib.auth import get_user_model
from django.db import connection

from bankcore.messaging import desk
from bankcore.messaging.models import DeadLetter, Event
from tests.messaging.broker_view import Broker
from tests.messaging.desk_view import POST
from tests.messaging.relay_view import KEY
from transfers.parking import park_transfer

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def broker(settings: Any) -> Iterator[Broker]:
    """The real RabbitMQ with the topology declared and every queue empty, before and after."""
    broker = Broker(settings.BROKER_URL, settings.TOPOLOGY)
    broker.fill_from_scratch()
    yield broker
    broker.fill_from_scratch()
    broker.connection.release()


@pytest.fixture
def queue(settings: Any) -> str:
    """The posting queue of KEY."""
    name: str = settings.TOPOLOGY.queue_of(settings.TOPOLOGY_ROUTES["transfer.approved"], KEY)
    return name


@pytest.fixture
def raw_channel(settings: Any) -> Iterator[Any]:
    """A confirming channel to the broker, for messages that no client of ours would write."""
    url = urlsplit(settings.BROKER_URL)
    with amqp.Connection(
        f"{url.hostname}:{url.port}",
        userid=unquote(url.username or ""),
        password=unquote(url.password or ""),
        virtual_host=unquote(url.path[1:]),
        confirm_publish=True,
    ) as connection:
        yield connection.channel()


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Name a port of the loopback that nobody listens on, of those that the kernel gives to nobody by itself."""

    def find() -> int:
        while True:
            port = random.randrange(12_000, 19_000)
            with socket.socket() as probe, suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port

    return find


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Start `manage.py` commands against the test's database: `start("worker", "posting", TASK_ATTEMPTS_MAX="0")`.

    Each writes its log to the file `log` of its process; all are ended when the test ends.
    """
    database = connection.settings_dict["NAME"]
    environment = {
        **os.environ,
        "DATABASE_URL": urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{database}").geturl(),
    }
    processes: list[subprocess.Popen[bytes]] = []

    def run(*arguments: str, program: str = "manage.py", **variables: str) -> "subprocess.Popen[bytes]":
        log = tmp_path / f"{len(processes)}-{'-'.join(arguments[:2])}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, program, *arguments],
                cwd=ROOT,
                env=environment | variables,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        process.log = log  # type: ignore[attr-defined]
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.send_signal(signal.SIGCONT)
        process.terminate()
    for process in processes:
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def people():
    users = get_user_model().objects
    return [desk.actor_of(users.create_user(name, is_staff=True)) for name in ("olga", "otto")]


@pytest.fixture
def olga(people):
    return people[0]


@pytest.fixture
def otto(people):
    return people[1]


@pytest.fixture
def parked(accounts, make_transfer):
    """Park a transfer the way the pipeline does, and return its letter."""
    alice, bob = accounts(1000, 0)

    def make(amount_minor=300, task=POST, debit=alice, credit=bob, **fields):
        status = "approved" if task == POST else fields.pop("status", "accepted")
        transfer = make_transfer(debit, credit, amount_minor, status, **fields)
        Event.objects.update(published_at=datetime.now(UTC))
        park_transfer(transfer.pk, task=task, error=ZeroDivisionError("a bug"), attempts=4)
        Event.objects.update(published_at=datetime.now(UTC))
        return DeadLetter.objects.get(subject=str(transfer.pk), state="open")

    make.alice, make.bob = alice, bob
    return make
