"""Webhooks on the wire: signed POSTs, many at a time on one event loop, each with an end and none through a back door.

One loop serves one message's ids and ends with them. It knows no database: outcomes are handed back as they come.
"""

import asyncio
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

import aiohttp
from django.conf import settings
from standardwebhooks import Webhook

from bankcore.call_rates import PAUSE_SECONDS, take_turn
from bankcore.messaging.breaker import Breaker, BreakerOpen
from notifications.addresses import checked_socket

# A message's loop starts no further call after this time: the rest is held for a later message.
START_SECONDS_MAX = 20.0
OUTCOMES_MAX = 100
# Breakers and rates are asked off the loop; Redis answers in a fraction of a millisecond.
BREAKER_THREADS = 2
HELD_SECONDS = 1.0
# Between two looks whether the loop is still there, while no call ends.
LOOK_SECONDS = 0.2


class Call(NamedTuple):
    """One delivery to make. Calls of one endpoint and lane are made one after the other."""

    delivery: int
    endpoint: UUID
    lane: UUID | None
    url: str
    secrets: tuple[str, ...]
    message_id: str
    body: str


class Outcome(NamedTuple):
    """How a call went: `delivered`; `failed`, which counts; `held`: not made, again after `seconds`; or `released`: the
    one before it in its lane comes first."""

    call: Call
    result: str
    status_code: int | None = None
    failure: str = ""
    seconds: float = 0.0


@contextmanager
def sending(calls: Sequence[Call]) -> Iterator[Iterator[list[Outcome]]]:
    """Make the calls on a loop of their own, and yield their outcomes in lots, as they come; one for each call."""
    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(_send_all(calls, outcomes))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="webhooks", daemon=True)
    thread.start()
    try:
        yield _lots(len(calls), outcomes, thread, failed)
    finally:
        thread.join()


def _lots(
    expected: int, outcomes: "queue.SimpleQueue[Outcome]", thread: threading.Thread, failed: list[BaseException]
) -> Iterator[list[Outcome]]:
    while expected:
        try:
            lot = [outcomes.get(timeout=LOOK_SECONDS)]
        except queue.Empty:
            if not thread.is_alive() and outcomes.empty():
                raise RuntimeError("the loop ended early") from (failed[0] if failed else None)
            continue
        while len(lot) < OUTCOMES_MAX and not outcomes.empty():
            lot.append(outcomes.get())
        expected -= len(lot)
        yield lot


async def _send_all(calls: Sequence[Call], outcomes: "queue.SimpleQueue[Outcome]") -> None:
    seconds = settings.WEBHOOK_TIMEOUT_SECONDS
    chains: dict[tuple[UUID, UUID | int], list[Call]] = {}
    for call in calls:
        chains.setdefault((call.endpoint, call.lane or call.delivery), []).append(call)
    connector = aiohttp.TCPConnector(limit=0, socket_factory=checked_socket, ttl_dns_cache=60)
    timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, 5.0), sock_read=seconds)
    with ThreadPoolExecutor(BREAKER_THREADS) as breaker_threads:
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"User-Agent": "bankcore-webhooks/1", "Content-Type": "application/json"},
        ) as session:
            sender = _Sender(session, breaker_threads)
            chained = (_send_chain(sender, chain, outcomes) for chain in chains.values())
            # A bug in one is told when all have come to their end: nobody else's call is broken off for it.
            for ended in await asyncio.gather(*chained, return_exceptions=True):
                if ended is not None:
                    raise ended


async def _send_chain(sender: "_Sender", chain: Sequence[Call], outcomes: "queue.SimpleQueue[Outcome]") -> None:
    for number, call in enumerate(chain):
        outcome = await sender.attempt(call)
        outcomes.put(outcome)
        if outcome.result != "delivered":
            for waiting in chain[number + 1 :]:
                outcomes.put(Outcome(waiting, "released"))
            return


class _Sender:
    def __init__(self, session: aiohttp.ClientSession, breaker_threads: ThreadPoolExecutor) -> None:
        self.session = session
        self.breaker_threads = breaker_threads
        self.loop = asyncio.get_running_loop()
        self.until = self.loop.time() + START_SECONDS_MAX
        self.turns: dict[UUID, asyncio.Semaphore] = {}

    async def attempt(self, call: Call) -> Outcome:
        turn = self.turns.setdefault(call.endpoint, asyncio.Semaphore(settings.WEBHOOK_ENDPOINT_CALLS))
        async with turn:
            if not await self._may_begin(call):
                return Outcome(call, "held", seconds=HELD_SECONDS)
            breaker = Breaker(f"webhook:{call.endpoint}")
            try:
                permit = await self.loop.run_in_executor(self.breaker_threads, breaker.admit)
            except BreakerOpen as refusal:
                return Outcome(call, "held", failure=str(refusal), seconds=refusal.retry_after)
            outcome, well = await self._post(call)
            await self.loop.run_in_executor(
                self.breaker_threads, lambda: breaker.settle(permit, ok=well, error=outcome.failure)
            )
            return outcome

    async def _may_begin(self, call: Call) -> bool:
        """Wait until WEBHOOK_ENDPOINT_RATE allows one more call of all workers to the endpoint, or the time is up."""
        while self.loop.time() <= self.until:
            if not (rate := settings.WEBHOOK_ENDPOINT_RATE):
                return True
            name = f"webhook:{call.endpoint}"
            if await self.loop.run_in_executor(self.breaker_threads, take_turn, name, rate):
                return True
            await asyncio.sleep(PAUSE_SECONDS)
        return False

    async def _post(self, call: Call) -> tuple[Outcome, bool]:
        """Make the call; tell also whether the endpoint is well, which a plain refusal (4xx) does not deny."""
        now = datetime.now(UTC)
        headers = {
            "webhook-id": call.message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            # One signature for each secret: while the receiver turns to a new one, it takes either.
            "webhook-signature": " ".join(Webhook(s).sign(call.message_id, now, call.body) for s in call.secrets),
        }
        try:
            async with self.session.post(
                call.url, data=call.body.encode(), headers=headers, allow_redirects=False
            ) as answer:
                status = answer.status
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return Outcome(call, "failed", failure=_said(error)), False
        if 200 <= status < 300:
            return Outcome(call, "delivered", status), True
        return Outcome(call, "failed", status, f"the endpoint answered {status}"), status < 500 and status != 429


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".replace("\x00", "")[:500]
