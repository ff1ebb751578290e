"""Faults in what the queues carry: messages nobody can handle, messages twice, messages in another order."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import pickle
import random
import signal
import time
import zlib
from collections.abc import Iterator
from typing import Any, ClassVar
from uuid import uuid4

import amqp
import psycopg

from compose.gameday.faults.fault import Fault
from compose.gameday.faults.queues import give_room
from compose.gameday.rig import Rig

TRAFFIC = frozenset({"broker", "queues"})
TAP_SECONDS_MAX = 15.0
COPIES_MAX = 60
ON_THE_DESK_SECONDS_MAX = 60.0
DESK_QUEUE = "dead_letters"


@contextlib.contextmanager
def channel(rig: Rig) -> Iterator[Any]:
    """A confirming channel to a node that runs, past the proxy, as the application's own user."""
    user, password = rig.broker_account
    node = rig.cluster.nodes[sorted(rig.cluster.running())[0]]
    with amqp.Connection(
        f"127.0.0.1:{node.port}",
        userid=user,
        password=password,
        virtual_host="bank",
        connect_timeout=5,
        read_timeout=20,
        confirm_publish=True,
    ) as connection:
        yield connection.channel()


def task_headers(task: str, **more: Any) -> dict[str, Any]:
    """The headers of a task message as Celery writes them (protocol 2), without a signature of ours."""
    message_id = str(uuid4())
    return {"lang": "py", "task": task, "id": message_id, "root_id": message_id, "retries": 0, "eta": None, **more}


def poison(seed: str) -> dict[str, tuple[bytes, dict[str, Any], dict[str, Any]]]:
    """Every kind of message that nobody can handle: body, headers, properties. Bodies are unique; `seed` is hex."""
    numbers = itertools.count()

    def mark() -> str:
        return f"{seed}{next(numbers):02x}"

    post, risk = "transfers.post_transfers", "transfers.check_risk"
    is_json: dict[str, Any] = {"content_type": "application/json", "content_encoding": "utf-8"}
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}

    def body(*args: Any, kwargs: Any = None, options: Any = embed) -> bytes:
        return json.dumps([list(args), kwargs or {}, options]).encode()

    forged = [str(uuid4())]
    return {
        "not JSON": (f"{mark()} this is not JSON".encode(), task_headers(post), is_json),
        "cut off": (body([mark(), *forged])[:-9], task_headers(post), is_json),
        "not a task": (json.dumps({"hello": mark()}).encode(), {}, is_json),
        "no task named": (body([mark()]), {"id": str(uuid4())}, is_json),
        "unknown task": (body([mark()]), task_headers("transfers.print_money"), is_json),
        "too many arguments": (body([mark()], 1, 2), task_headers(post), is_json),
        "no arguments": (body(options={**embed, "chain": None, "mark": mark()}), task_headers(post), is_json),
        "unknown keyword": (body([mark()], kwargs={"amount_minor": 1}), task_headers(post), is_json),
        "ids of the wrong type": (body({"ids": mark()}), task_headers(risk), is_json),
        "a number for the ids": (body(int(mark(), 16)), task_headers(post), is_json),
        "a list of lists": (body([[mark()]]), task_headers(post), is_json),
        "a million ids": (body([mark()] * 20_000), task_headers(post), is_json),
        "pickle": (
            pickle.dumps({"mark": mark()}),
            task_headers(post),
            {"content_type": "application/x-python-serialize"},
        ),
        "yaml": (f"mark: {mark()}".encode(), task_headers(post), {"content_type": "application/x-yaml"}),
        "unknown content type": (mark().encode(), task_headers(post), {"content_type": "application/x-bank"}),
        "no content type": (mark().encode(), {}, {}),
        "unknown compression": (body([mark()]), task_headers(post, compression="application/x-lha"), is_json),
        "broken compression": (mark().encode(), task_headers(post, compression="application/x-gzip"), is_json),
        "decompression bomb": (
            zlib.compress(mark().encode() + b" " * 30_000_000),
            task_headers(post, compression="application/x-gzip"),
            is_json,
        ),
        "bad UTF-8": (b'[["\xff\xfe' + mark().encode() + b'"],{},{}]', task_headers(post), is_json),
        "body is null": (b"null" + b" " * (7) + mark().encode(), task_headers(post), is_json),
        "deeply nested": (b"[" * 50_000 + mark().encode(), task_headers(post), is_json),
        "time limit of the wrong type": (body([mark()], 1), task_headers(post, timelimit="never"), is_json),
    }


class Poison(Fault):
    """One message of every kind that nobody can handle, into queues picked at random. Each has to reach the desk."""

    name = "poison"
    numbers: ClassVar[tuple[str, ...]] = ("F28", "F6")
    fault_class = "poison messages"
    touches = TRAFFIC | {"risk", "posting", "notifications", "maintenance"}
    rides_out = True
    goal_seconds = 10.0

    def inject(self, rig: Rig, rng: random.Random) -> None:
        queues = [f"risk-{rig.focus_partition}", f"posting-{rig.focus_partition}", "notifications"]
        with channel(rig) as broker:
            for kind, (body, headers, properties) in poison(f"{rng.getrandbits(88):022x}").items():
                queue = rng.choice(queues)
                message = amqp.Message(body, application_headers=headers, delivery_mode=2, **properties)
                broker.basic_publish_confirm(
                    message, exchange="bank", routing_key=queue, mandatory=True, confirm_timeout=5
                )
                digest = hashlib.sha256(body).hexdigest()
                self.poisoned.append({"kind": kind, "queue": queue, "body_sha256": digest})

    def heal(self, rig: Rig) -> None:
        digests = [one["body_sha256"] for one in self.poisoned]
        deadline = time.monotonic() + ON_THE_DESK_SECONDS_MAX
        there: set[str] = set()
        while len(there) < len(digests) and time.monotonic() < deadline:
            # The database may be what another fault of the round strikes.
            with contextlib.suppress(psycopg.Error):
                there = _on_the_desk(rig, digests)
            time.sleep(0.2)
        missing = [one["kind"] for one in self.poisoned if one["body_sha256"] not in there]
        self.proved(
            f"{len(digests)} messages of as many kinds confirmed by the broker, {len(there)} on the desk"
            + (f", not there: {', '.join(missing)}" if missing else "")
        )


class FullDesk(Poison):
    """The queue of dead letters takes one only, and nobody takes it out: the others stay in the queues they are in."""

    name = "full-desk"
    numbers = ("F29",)
    fault_class = "queue of dead letters full"
    touches = Poison.touches | {"database"}
    rides_out = False
    hold_seconds = (2.0, 5.0)
    policy = "gameday-full-desk"

    def __init__(self) -> None:
        super().__init__()
        self.frozen: list[int] = []

    def inject(self, rig: Rig, rng: random.Random) -> None:
        pids = rig.pids()
        self.frozen = [pids[program] for program in rig.programs("maintenance")]
        for pid in self.frozen:
            os.kill(pid, signal.SIGSTOP)
        rig.cluster.set_policy(self.policy, f"^{DESK_QUEUE}$", {"max-length": 1, "overflow": "reject-publish"})
        super().inject(rig, rng)
        waiting = self.needs("the queue of dead letters is full", lambda: self._waiting(rig))
        self.proved(f"max-length 1 with reject-publish in force on {DESK_QUEUE}, and reached: {waiting} in it")

    def _waiting(self, rig: Rig) -> int:
        queue = next(queue for queue in rig.cluster.queues() if queue["name"] == DESK_QUEUE)
        return int(queue["messages_ready"]) if queue.get("policy") == self.policy else 0

    def heal(self, rig: Rig) -> None:
        for pid in self.frozen:
            if not rig.is_gone(pid):
                os.kill(pid, signal.SIGCONT)
        self.frozen = []
        give_room(rig, self.policy, DESK_QUEUE)
        super().heal(rig)


def _on_the_desk(rig: Rig, digests: list[str]) -> set[str]:
    with psycopg.connect(rig.database_url, autocommit=True, connect_timeout=5) as database:
        rows = database.execute(
            "SELECT body_digest FROM messaging_deadletter WHERE body_digest = ANY(%s)", (digests,)
        ).fetchall()
    return {row[0] for row in rows}


class _Copies(Fault):
    """Real messages are listened to, and published again."""

    touches = TRAFFIC
    relies_on = frozenset({"database"})
    rides_out = True
    goal_seconds = 10.0

    def inject(self, rig: Rig, rng: random.Random) -> None:
        with channel(rig) as broker:
            tap = broker.queue_declare(queue="", exclusive=True, auto_delete=True).queue
            broker.queue_bind(tap, exchange="bank", routing_key="#")
            taken: list[Any] = []
            deadline = time.monotonic() + TAP_SECONDS_MAX
            while len(taken) < COPIES_MAX and (time.monotonic() < deadline - TAP_SECONDS_MAX + 3 or not taken):
                message = broker.basic_get(tap, no_ack=True)
                if message is not None:
                    taken.append(message)
                elif time.monotonic() > deadline:
                    break
                else:
                    time.sleep(0.05)
            broker.queue_delete(tap)
            self.needs("messages came by", lambda: taken, seconds=0)
            copies = self.arranged(taken, rng)
            for message in copies:
                again = amqp.Message(message.body, **message.properties)
                key = message.delivery_info["routing_key"]
                broker.basic_publish_confirm(again, exchange="bank", routing_key=key, mandatory=True, confirm_timeout=5)
        queues = sorted({message.delivery_info["routing_key"] for message in copies})
        self.proved(f"{len(copies)} copies of {len(taken)} real messages confirmed, for {', '.join(queues)}")

    def arranged(self, taken: list[Any], rng: random.Random) -> list[Any]:
        """What is published of what was taken."""
        return taken


class Duplicates(_Copies):
    """Every message twice more, at once."""

    name = "duplicate-messages"
    numbers = ("F26",)
    fault_class = "messages duplicated"

    def arranged(self, taken: list[Any], rng: random.Random) -> list[Any]:
        return [message for message in taken for _ in range(2)]


class Reordered(_Copies):
    """Messages again, later, and in another order: the last ones first or any way round."""

    name = "reorder-messages"
    numbers = ("F27", "F26")
    fault_class = "messages reordered"

    def arranged(self, taken: list[Any], rng: random.Random) -> list[Any]:
        return rng.sample(taken, len(taken)) if rng.random() < 0.5 else list(reversed(taken))


FAULTS: list[type[Fault]] = [Poison, FullDesk, Duplicates, Reordered]
