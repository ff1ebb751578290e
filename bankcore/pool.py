"""The threads behind the front, each of which answers one complete request at a time."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Protocol

Environ = dict[str, Any]
Headers = list[tuple[str, str]]


class Exchange(Protocol):
    """granian's HTTPProtocol, as far as it is used here."""

    def __call__(self) -> Any: ...
    def __aiter__(self) -> AsyncIterator[bytes]: ...
    def client_disconnect(self) -> Awaitable[None]: ...
    def response_bytes(self, status: int, headers: Headers, body: bytes) -> None: ...
    def response_stream(self, status: int, headers: Headers) -> Any: ...


_Waiting = tuple[Environ, Exchange, asyncio.Future[None]]


class Pool:
    """Threads that answer requests. A pool of futures does the same for several locks and a wake-up more a request."""

    def __init__(self, answer: Callable[[Environ, Exchange, asyncio.AbstractEventLoop], None], *, threads: int) -> None:
        self._answer = answer
        # None stands for one of those who go first: it wakes a thread for it, if none has come by before.
        self._waiting: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._first: deque[_Waiting] = deque()
        # What was answered, for the loop: several at a time, where several are done before it looks.
        self._done: deque[tuple[asyncio.Future[None], Exception | None]] = deque()
        self._is_waking = False
        self._missing = threads

    async def run(self, environ: Environ, exchange: Exchange, *, first: bool = False) -> None:
        """Let a thread answer (the next free one if `first`), and return when it has. Raises what that raised."""
        while self._missing:
            # Not before: a process that forks takes no threads along.
            threading.Thread(target=self._work, name=f"web-{self._missing}", daemon=True).start()
            self._missing -= 1
        answered = asyncio.get_running_loop().create_future()
        if first:
            self._first.append((environ, exchange, answered))
            self._waiting.put(None)
        else:
            self._waiting.put((environ, exchange, answered))
        await answered

    def _work(self) -> None:
        while True:
            waiting = self._waiting.get()
            if self._first:
                # Another thread may have taken it in this moment.
                with suppress(IndexError):
                    self._handle(*self._first.popleft())
            if waiting is not None:
                self._handle(*waiting)

    def _handle(self, environ: Environ, exchange: Exchange, answered: "asyncio.Future[None]") -> None:
        loop, failed = answered.get_loop(), None
        try:
            self._answer(environ, exchange, loop)
        except Exception as error:
            failed = error
        self._done.append((answered, failed))
        # Whoever finds it set comes before it is cleared, and what is done is looked at after that.
        if not self._is_waking:
            self._is_waking = True
            loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self._is_waking = False
        while self._done:
            answered, failed = self._done.popleft()
            if answered.done():
                continue
            if failed is None:
                answered.set_result(None)
            else:
                answered.set_exception(failed)
