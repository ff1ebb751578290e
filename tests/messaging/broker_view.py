"""A broker to look into, and bounded waiting."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kombu import Connection, Queue

from bankcore.messaging.broker import declare_topology
from bankcore.topology import DEAD_QUEUE, LOST_QUEUE, Topology

# No test waits so long unless something is broken: a machine many times slower has to pass as well.
PATIENCE_SECONDS = 120.0


def eventually(check: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    """Ask until the answer is true, and return it; the last answer, whatever it is, when time is up."""
    deadline = time.monotonic() + seconds
    while not (answer := check()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return answer


def control_broker(*arguments: str) -> str:
    """Run rabbitmqctl against the private RabbitMQ of this test run, and return what it says."""
    folder = Path(os.environ["BANKCORE_STACK"]).parent
    broker = json.loads((folder / "programs.json").read_text())["rabbitmq"]
    cookie = json.loads((folder / "secrets.json").read_text())["broker_cookie"]
    control = Path(broker["arguments"][0]).resolve().parent / "rabbitmqctl"
    environment = {**os.environ, **broker["environment"], "HOME": broker["directory"]}
    answer = subprocess.run(
        [str(control), "--erlang-cookie", cookie, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    return answer.stdout


def confirming(url: str) -> Connection:
    """Connect with channels on which a publication returns when the broker has the message.

    Without it, what a quorum queue was sent is gone if the channel closes before the queue has taken it: the broker
    forgets the sender, and does not know what to make of the rest.
    """
    return Connection(url, transport_options={"confirm_publish": True})


class Broker:
    """RabbitMQ seen from outside: what lies in a queue, and how to take a queue away."""

    def __init__(self, url: str, topology: Topology) -> None:
        self.connection = confirming(url)
        self.names = [spec.name for spec in topology.work_queues()] + [DEAD_QUEUE, LOST_QUEUE]

    @property
    def channel(self) -> Any:
        return self.connection.default_channel

    def depth(self, queue: str) -> int:
        return int(self.channel.queue_declare(queue, passive=True).message_count)

    def take(self, queue: str) -> list[Any]:
        """Take what is in the queue, oldest first. A queue with a single active consumer knows no `get`."""
        expected, taken = self.depth(queue), []
        if not expected:
            return taken
        with self.connection.channel() as channel:
            consumer = self.connection.Consumer(
                queues=[Queue(queue, channel=channel, no_declare=True)],
                channel=channel,
                on_message=taken.append,
                no_ack=True,
                auto_declare=False,
                accept=["json"],
            )
            with consumer:
                while len(taken) < expected:
                    self.connection.drain_events(timeout=PATIENCE_SECONDS)
        return taken

    def calls(self, queue: str) -> list[tuple[str, list[Any]]]:
        """Take the task messages of a queue as (task, ids)."""
        return [(message.headers["task"], message.decode()[0][0]) for message in self.take(queue)]

    def delete(self, queue: str) -> None:
        self.channel.queue_delete(queue)

    def fill_from_scratch(self) -> None:
        """Every queue there, as the topology wants it, and empty."""
        declare_topology()
        for name in self.names:
            # To purge an empty quorum queue costs a write to the disk all the same.
            if self.depth(name):
                self.channel.queue_purge(name)
