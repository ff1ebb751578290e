"""The door for granian (RSGI): a request reaches one of the few threads only when all of it is here.

Bodies are gathered on the event loop, within a time and a size, so that a client who sends slowly costs a socket and no
thread. Complete requests go to Django in a bounded pool; when its queue is full, 503 at once instead of a longer queue.
"""

import asyncio
import os
import resource
import signal
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from io import BytesIO
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string
from granian.rsgi import ProtocolClosed

from bankcore import metrics
from bankcore.combining import OFFER, Combiner, Offer, Started, answer_together
from bankcore.environ import environ_of
from bankcore.garbage import collect_rarely
from bankcore.lanes import Lanes
from bankcore.messaging import backpressure
from bankcore.messaging.backpressure import Priority, priority_of
from bankcore.pool import Environ, Exchange, Headers, Pool, as_exception
from bankcore.refusals import Refusal, broken_off, overloaded, refuse, too_large, too_slow
from bankcore.seats import PATIENCE, Patience, Seat, close_all
from bankcore.turns import NoTurn, Turns
from bankcore.wire import body_bytes

# Bodies up to this size are not counted: as many as there can be connections fit into memory.
SMALL_BYTES = 64 * 1024
# What all larger bodies may hold together in one process, from their first byte until they are answered.
HELD_BYTES_MAX = 64 * 1024 * 1024
THROWN_AWAY_BYTES_MAX = 64 * 1024 * 1024
# Made whole with its jitter: half of those who come too many are told one second, and half two.
BUSY_RETRY_SECONDS = 0.95
SINGLE, BATCH = "/api/v1/transfers", "/api/v1/batches"
# Who sends a file can wait longer for the answer than who sends a batch.
BULK_PATIENCE = 10
# For each kind of turn, one in so many of the queue may stand in line.
LINE_PART = 4
# One in so many threads at most answers those whose wait is over.
AGAIN_PART = 3
LOT_MAX = 64
# For so long the requests of a lot are looked at one after the other; who has not had a turn by then gets a thread. One
# look takes a millisecond, unless what it asks (database, Redis) is slow or gone: then all would wait in a row.
# Not less: where processors are short, looking takes long as well (30 took 0.24 s), and sharing a commit saves most.
LOOK_SECONDS_MAX = 2.0


_Request = tuple[Environ, Exchange, asyncio.AbstractEventLoop]


class Unseen:
    """Nobody has looked at the request yet."""


# None: it is answered.
_Outcome = Started | Unseen | Exception | None


class Front:
    """One per process. `application` is a WSGI callable that runs in `threads` threads."""

    def __init__(self, application: Any, *, threads: int, queue_max: int) -> None:
        self.application = application
        self._pool = Pool(threads=threads)
        # Single transfers are looked at and written down by one thread, lot by lot: one that wakes up for each costs
        # more than what it does then.
        self._writer = Pool(threads=1)
        self._together: Combiner[_Request, _Outcome] = Combiner(self._write, lot_max=LOT_MAX)
        self._open_max = threads + queue_max
        self._open = 0
        self._again = asyncio.Semaphore(max(1, threads // AGAIN_PART))
        self._is_stopping = False
        self._held_bytes = 0
        at_once, seconds, line = settings.WEB_BATCHES_AT_ONCE, settings.BATCH_ANSWER_SECONDS, queue_max // LINE_PART
        # A file has turns of its own: one of ten thousand rows must not turn small batches away.
        self._turns = {
            Priority.BATCH: Turns(at_once=at_once, answer_seconds=seconds, line_max=line),
            Priority.BULK: Turns(at_once=at_once, answer_seconds=seconds * BULK_PATIENCE, line_max=line),
        }

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hear of the end when granian does: it says so (`__rsgi_del__`) only when all requests are answered."""
        for number in (signal.SIGINT, signal.SIGTERM):
            # Granian handles them on the event loop, which any handler of Python's wakes as well.
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(self.stop))
            signal.siginterrupt(number, False)

    def stop(self) -> None:
        """Answer those who wait, with the state as it is."""
        self._is_stopping = True
        close_all()

    async def __rsgi__(self, scope: Any, exchange: Exchange) -> None:
        """Answer one request."""
        try:
            environ = environ_of(scope)
            size = body_bytes(environ) or 0
            body = await self._body(environ, size, exchange)
            environ["wsgi.input"] = BytesIO(body)
            priority = intake_of(scope, size)
            # Answered here, as a refusal must cost far less than an acceptance.
            if priority is not None and (seconds := backpressure.turned_away(priority)) is not None:
                raise overloaded(seconds)
            patience = environ[PATIENCE] = Patience()
            await self._run(environ, exchange, len(body), priority)
            if patience.seat is not None:
                await self._ask_again(environ, exchange, patience.seat)
        except NoTurn as missed:
            if intake_of(scope, 0) is not None:
                metrics.admission.labels("overloaded").inc()
            refuse(overloaded(backpressure.retry_after(missed.seconds)), scope, exchange)
        except Refusal as refused:
            # Under no name that outlives this: it would keep this call, and the call it, until garbage is looked for.
            refuse(refused, scope, exchange)

    async def _run(self, environ: Environ, exchange: Exchange, size: int, priority: Priority | None) -> None:
        held = size if size > SMALL_BYTES else 0
        self._held_bytes += held
        turns = self._turns.get(priority) if priority else None
        try:
            async with turns.turn(_client_of(environ)) if turns else nullcontext():
                # Who waits for a turn takes no place from those who need none.
                if self._open >= self._open_max:
                    raise NoTurn(BUSY_RETRY_SECONDS)
                self._open += 1
                try:
                    await self._handle(environ, exchange, together=priority is Priority.INTERACTIVE)
                finally:
                    self._open -= 1
        finally:
            self._held_bytes -= held

    async def _handle(self, environ: Environ, exchange: Exchange, *, together: bool) -> None:
        request = environ, exchange, asyncio.get_running_loop()
        if not together:
            await self._pool.run(partial(self._answer, *request))
            return
        outcome = await self._together.run(request)
        if isinstance(outcome, Exception):
            raise outcome
        if isinstance(outcome, Unseen):
            await self._pool.run(partial(self._answer, *request))
        elif outcome is not None and not outcome.is_answered:
            await self._pool.run(outcome.answer_alone)

    async def _write(self, lot: Sequence[_Request]) -> Sequence[_Outcome]:
        return await self._writer.run(partial(self._answer_lot, lot))

    async def _ask_again(self, environ: Environ, exchange: Exchange, seat: Seat) -> None:
        """Ask the view once more when its wait is over, which may be so for hundreds in the same moment.

        They are no more than there are seats, as each keeps its own until then. They take no place in the queue from
        new requests, and few threads; but those at once, or it would take them too long while the queue is long.
        """
        try:
            if await seat.wait(exchange.client_disconnect()):
                # Whoever waited less than asked for is answered like one who found no seat.
                environ[PATIENCE] = Patience(is_over=not self._is_stopping)
                async with self._again:
                    answer = partial(self._answer, environ, exchange, asyncio.get_running_loop())
                    await self._pool.run(answer, first=True)
        finally:
            seat.leave()

    async def _body(self, environ: Environ, size: int, exchange: Exchange) -> bytes:
        """Gather the body. One that is larger than any call takes is thrown away: Django refuses it by its length."""
        if "HTTP_TRANSFER_ENCODING" in environ:
            size = SMALL_BYTES + 1
        if not size:
            return b""
        try:
            async with asyncio.timeout(settings.BODY_SECONDS_MAX):
                if size > settings.BATCH_BYTES_MAX:
                    await self._throw_away(exchange)
                    return b""
                body = bytes(await exchange()) if size <= SMALL_BYTES else await self._large_body(exchange)
        except TimeoutError:
            raise too_slow() from None
        except ProtocolClosed:
            raise broken_off() from None
        # Of a connection that breaks under a large body, granian says no more than that nothing comes any more. The
        # beginning of a file would be a shorter file: too few rows, and a last amount without its last digits.
        if "HTTP_TRANSFER_ENCODING" not in environ and len(body) != size:
            raise broken_off()
        return body

    async def _throw_away(self, exchange: Exchange) -> None:
        """Read on for a while, as a client that is still sending when the connection closes never sees the answer."""
        seen = 0
        async for chunk in exchange:
            seen += len(chunk)
            if seen > THROWN_AWAY_BYTES_MAX:
                raise too_large()

    async def _large_body(self, exchange: Exchange) -> bytes:
        body = bytearray()
        try:
            async for chunk in exchange:
                body += chunk
                self._held_bytes += len(chunk)
                if len(body) > settings.BATCH_BYTES_MAX:
                    raise too_large()
                if self._held_bytes > HELD_BYTES_MAX:
                    raise NoTurn(BUSY_RETRY_SECONDS)
        finally:
            self._held_bytes -= len(body)
        return bytes(body)

    def _answer_lot(self, lot: Sequence[_Request]) -> Sequence[_Outcome]:
        """Run in the writer's thread: answer these requests, and return what is left to be done alone."""
        until = time.monotonic() + LOOK_SECONDS_MAX
        outcomes = [self._try(request) if time.monotonic() < until else Unseen() for request in lot]
        answer_together([outcome for outcome in outcomes if isinstance(outcome, Started)])
        return outcomes

    def _try(self, request: _Request) -> _Outcome:
        environ = request[0]
        environ[OFFER] = Offer()
        try:
            return self._answer(*request)
        except BaseException as error:
            return as_exception(error)

    def _answer(self, environ: Environ, exchange: Exchange, loop: asyncio.AbstractEventLoop) -> Started | None:
        """Run in a thread: let Django answer, and hand its answer over, unless it left a part to be done."""
        began: list[tuple[int, Headers]] = []

        def start_response(status: str, headers: Headers, *_: Any) -> None:
            began.append((int(status[:3]), [(name.lower(), value) for name, value in headers]))

        parts = self.application(environ, start_response)
        try:
            status, headers = began[0]
            if environ[PATIENCE].seat is not None and not environ[PATIENCE].is_over:
                # The view is asked again when its wait is over.
                return None
            if OFFER in environ and environ[OFFER].part is not None:
                return Started(exchange, headers, environ[OFFER].part)
            if getattr(parts, "streaming", False):
                transport = exchange.response_stream(status, headers)
                for piece in parts:
                    asyncio.run_coroutine_threadsafe(_send(transport, piece), loop).result()
            else:
                exchange.response_bytes(status, headers, b"".join(parts))
            return None
        finally:
            if close := getattr(parts, "close", None):
                close()


def intake_of(scope: Any, size: int) -> Priority | None:
    """Say what kind of intake a request is, by its address and its size alone; None for everything else."""
    # In any letters, as Django takes them: who writes `post` does not go past the line.
    if scope.method.upper() != "POST" or scope.path not in (SINGLE, BATCH):
        return None
    return Priority.INTERACTIVE if scope.path == SINGLE else priority_of(0, size)


def _client_of(environ: Environ) -> str:
    """Whose turn it is: by the token alone, as the word before it may be written in many ways."""
    return str(environ.get("HTTP_AUTHORIZATION", "")).partition(" ")[2].strip()


async def _send(transport: Any, piece: bytes) -> None:
    await transport.send_bytes(piece)


def make() -> Front:
    """Make this process's front. Each client costs a file; take as many as the system lets us have."""
    _, files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bankcore.settings")
    lanes = Lanes()
    import_string(settings.ROOT_URLCONF + ".urlpatterns")
    collect_rarely()
    return Front(lanes, threads=settings.WEB_THREADS, queue_max=settings.WEB_QUEUE_MAX)


application = make()
