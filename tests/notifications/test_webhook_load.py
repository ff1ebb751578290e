"""One notifications worker holds a thousand slow webhook calls open at a time, in less than 300 MiB (measured here)."""

import asyncio
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.conf import settings
from django.utils import timezone

from bankcore.messaging.models import Event
from bankcore.messaging.publisher import Publisher, TaskMessage
from notifications.dispatch import dispatch
from notifications.models import WebhookDelivery, WebhookEndpoint
from tests.messaging.broker_view import Broker, eventually
from tests.workers import running

CALLS = 1200
ENDPOINTS = 60
# A worker takes three messages of deliveries at a time (SHARES in the worker command).
PART = CALLS // 3
RSS_MIB_MAX = 300


class SlowServer:
    """Reads a request and answers it only once it is released; counts what it holds open."""

    def __init__(self) -> None:
        self.open = self.most = self.answered = self.port = self.talks = 0
        self.released = False
        self.started = threading.Event()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.talks += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = re.search(rb"content-length: (\d+)", head.lower())
                await reader.readexactly(int(length.group(1)) if length else 0)
                self.open += 1
                self.most = max(self.most, self.open)
                while not self.released:
                    await asyncio.sleep(0.2)
                self.open -= 1
                self.answered += 1
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            self.talks -= 1
            writer.close()

    async def serve(self, stop: threading.Event) -> None:
        server = await asyncio.start_server(self.converse, "127.0.0.1", 0, backlog=2048)
        self.port = server.sockets[0].getsockname()[1]
        self.started.set()
        while not stop.is_set():
            await asyncio.sleep(0.1)
        server.close()
        # Whatever became of the worker: the calls end by themselves. Cancelled, each would log a traceback.
        self.released = True
        while self.talks:
            await asyncio.sleep(0.1)


@contextmanager
def slow_server() -> Iterator[SlowServer]:
    server, stop = SlowServer(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(stop)), daemon=True)
    thread.start()
    assert server.started.wait(60)
    try:
        yield server
    finally:
        stop.set()
        thread.join(10)


def rss_mib(pid: int) -> float:
    """The most this process has ever had in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1024


@pytest.mark.django_db(transaction=True)
def test_one_worker_holds_a_thousand_slow_webhooks_open(accounts, make_transfer, tmp_path, forget_breakers, capsys):
    payer, payee = accounts(10_000, 0)
    broker = Broker(settings.BROKER_URL, settings.TOPOLOGY)
    broker.fill_from_scratch()
    with slow_server() as server:
        WebhookEndpoint.objects.bulk_create(
            WebhookEndpoint(
                url=f"http://127.0.0.1:{server.port}/{n}", event_types=["transfer.posted"], ordered=False,
                secret="whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", created_by="test",
            )
            for n in range(ENDPOINTS)
        )  # fmt: skip
        for _ in range(CALLS // ENDPOINTS):
            transfer = make_transfer(payer, payee, 1, "posted", posted_at=timezone.now())
            dispatch([Event.objects.get(subject=str(transfer.pk)).pk])
        ids = list(WebhookDelivery.objects.order_by("pk").values_list("pk", flat=True))
        assert len(ids) == CALLS
        environment = {"WEBHOOK_ALLOW_LOOPBACK": "on", "WEBHOOK_TIMEOUT_SECONDS": "600"}
        with running(tmp_path, **environment) as start:
            worker = start("worker", "notifications")
            publisher, held = Publisher(settings.BROKER_URL, "bank"), True
            # A part after the other: a connection that takes long to be made, on a busy machine, is given up.
            for at in range(0, CALLS, PART):
                part = [str(pk) for pk in ids[at : at + PART]]
                publisher.publish([TaskMessage("deliveries", "notifications.deliver_webhooks", part)])
                held = held and eventually(lambda at=at: server.open >= at + PART)
            publisher.close()
            rss = rss_mib(worker.pid)
            log = (tmp_path / "worker-notifications.log").read_text()[-3000:]
            assert held, (server.open, server.most, log)
            server.released = True
            delivered = WebhookDelivery.objects.filter(state="delivered", attempts=1)
            assert eventually(lambda: delivered.count() == CALLS), log
            rss = max(rss, rss_mib(worker.pid))

    broker.fill_from_scratch()
    broker.connection.release()
    with capsys.disabled():
        sys.stdout.write(f"\n{server.most} webhook calls open at once in one worker, {rss:.0f} MiB at most\n")
    assert (server.most, server.answered) == (CALLS, CALLS)
    assert rss < RSS_MIB_MAX
