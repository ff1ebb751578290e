"""Workers find a broker node that serves them: past nodes that are of no use, and soon after all were away."""

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from django.conf import settings

from bankcore.messaging import broker as nodes
from bankcore.messaging.publisher import Publisher, TaskMessage
from bankcore.messaging.relay import Relay
from tests.messaging.broker_view import PATIENCE_SECONDS, eventually

pytestmark = pytest.mark.django_db(transaction=True)

REAL = urlsplit(settings.BROKER_URL)
BASIC_CONSUME = struct.pack(">HH", 60, 20)
BASIC_CONSUME_OK = struct.pack(">HH", 60, 21)
REPLY = b"INTERNAL_ERROR - {error,nodedown}"
# Connection.Close on channel 0: 541 for a basic.consume.
_PAYLOAD = struct.pack(">HHHB", 10, 50, 541, len(REPLY)) + REPLY + BASIC_CONSUME
INTERNAL_ERROR = struct.pack(">BHI", 1, 0, len(_PAYLOAD)) + _PAYLOAD + b"\xce"


class Node:
    """A broker node as its clients see it: the real one behind another port, perhaps one that lets nobody consume."""

    def __init__(self, reserved: socket.socket, *, refuses: bool) -> None:
        self.refuses = refuses
        self.connections = 0
        self.consuming = threading.Event()
        self.listener = reserved
        reserved.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            server = socket.create_connection((REAL.hostname, REAL.port))
            threading.Thread(target=self._carry, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._carry, args=(server, client, False), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, is_client: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if is_client and self.refuses and BASIC_CONSUME in data:
                    source.sendall(INTERNAL_ERROR)
                    break
                if not is_client and BASIC_CONSUME_OK in data:
                    self.consuming.set()
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def url(self) -> str:
        return url_of(self.listener.getsockname()[1])


def reserve() -> socket.socket:
    """A port of our own on which nobody listens yet: whoever tries it is refused."""
    reserved = socket.socket()
    reserved.bind(("127.0.0.1", 0))
    return reserved


def url_of(port: int) -> str:
    return REAL._replace(netloc=f"{REAL.username}:{REAL.password}@127.0.0.1:{port}").geturl()


@pytest.fixture
def node() -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(reserved: socket.socket | None = None, *, refuses: bool = False) -> Node:
        made.append(Node(reserved or reserve(), refuses=refuses))
        return made[-1]

    yield make
    for one in made:
        one.listener.close()


@pytest.mark.parametrize("role", ["posting", "notifications"])
def test_a_worker_goes_past_a_node_on_which_it_cannot_consume(broker, start, node, role):
    sick, well = node(refuses=True), node()
    start("worker", role, BROKER_URL=f"{sick.url()};{well.url()}")

    assert well.consuming.wait(PATIENCE_SECONDS)
    assert sick.connections <= 4


def test_a_worker_does_not_storm_the_only_node_there_is(broker, start, node):
    sick = node(refuses=True)
    worker = start("worker", "posting", BROKER_URL=sick.url())
    assert eventually(lambda: sick.connections > 2)

    before, began = sick.connections, time.monotonic()
    assert eventually(lambda: sick.connections - before >= 12)

    # It does not leave the node alone, and a storm would be over in a fraction of this; a slow machine takes longer.
    assert time.monotonic() - began > 1
    assert worker.poll() is None
    sick.refuses = False
    assert sick.consuming.wait(PATIENCE_SECONDS)


def test_a_worker_is_back_soon_after_all_nodes_were_away(broker, start, node):
    with reserve() as first, reserve() as second:
        urls = [url_of(reserved.getsockname()[1]) for reserved in (first, second)]
        worker = start("worker", "posting", BROKER_URL=";".join(urls))

        def waits():
            return [float(seconds) for seconds in re.findall(r"next try in ([\d.]+) s", worker.log.read_text())]

        # Celery's own schedule is 2, 4, 6, 8 s, ...; here the longest wait is reached soon, and is short.
        assert eventually(lambda: len(waits()) >= 8)
        assert max(waits()) <= 2

        back = node(second)

        assert back.consuming.wait(PATIENCE_SECONDS)


def test_a_relay_goes_past_a_node_that_takes_connections_and_says_nothing(broker, settings):
    """A frozen node: the kernel accepts for it."""
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        url = url_of(frozen.getsockname()[1])
        publisher = Publisher(f"{url};{url};{settings.BROKER_URL}", "bank")
        taken = publisher.publish([TaskMessage("risk-0", "transfers.check_risk", ["a"])])
        publisher.close()

    assert (len(taken), broker.depth("risk-0")) == (1, 1)


def test_a_relay_begins_with_another_node_each_time(broker, node, settings):
    first, second = node(), node()
    settings.BROKER_URL = f"{first.url()};{second.url()}"
    relay, made = Relay(threading.Event()), []
    for _ in range(3):
        relay._publisher()
        relay._drop_publisher()
        made.append((first.connections, second.connections))

    assert made == [(1, 0), (1, 1), (2, 1)]


def test_the_list_begins_with_another_node_at_each_turn():
    url = "amqp://a//;amqp://b//;amqp://c//"
    assert [nodes.rotated(url, turn).split(";")[0][-3] for turn in range(4)] == ["a", "b", "c", "a"]
    assert nodes.rotated(url, 1) == "amqp://b//;amqp://c//;amqp://a//"
    assert nodes.rotated("amqp://a//", 5) == "amqp://a//"
    assert nodes.nodes(url) == 3
