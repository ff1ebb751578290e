"""The threads behind the front, each of which answers one complete request at a time, or one lot of them."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

Environ = dict[str, Any]
Headers = list[tuple[str, str]]


class Exchange(Protocol):
    """granian's HTTPProtocol, as far as it is used here."""

    def __call__(self) -> Any: ...
    def __aiter__(self) -> AsyncIterator[bytes]: ...
    def client_disconnect(self) -> Awaitable[None]: ...
    def response_bytes(self, status: int, headers: Headers, body: bytes) -> None: ...
    def response_stream(self, status: int, headers: Headers) -> Any: ...


Result = TypeVar("Result")
Work = Callable[[], Any]
_Waiting = tuple[Work, asyncio.Future[Any]]


class Pool:
    """Threads that do what they are given. A pool of futures does the same for several locks and a wake-up more."""

    def __init__(self, *, threads: int) -> None:
        # None stands for one of those who go first: it wakes a thread for it, if none has come by before.
        self._waiting: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._first: deque[_Waiting] = deque()
        # What was done, for the loop: several at a time, where several are done before it looks.
        self._done: deque[tuple[asyncio.Future[Any], Any, Exception | None]] = deque()
        self._is_waking = False
        self._missing = threads

    async def run(self, work: Callable[[], Result], *, first: bool = False) -> Result:
        """Let a thread (the next free one if `first`) do the work; return what it returns, and raise what it raises."""
        while self._missing:
            # Not before: a process that forks takes no threads along.
            threading.Thread(target=self._work, name=f"web-{self._missing}", daemon=True).start()
            self._missing -= 1
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        if first:
            self._first.append((work, done))
            self._waiting.put(None)
        else:
            self._waiting.put((work, done))
        return await done

    def _work(self) -> None:
        while True:
            waiting = self._waiting.get()
            if self._first:
                # Another thread may have taken it in this moment.
                with suppress(IndexError):
                    self._handle(*self._first.popleft())
            if waiting is not None:
                self._handle(*waiting)

    def _handle(self, work: Work, done: asyncio.Future[Any]) -> None:
        result, failed = None, None
        try:
            result = work()
        except BaseException as error:
            failed = as_exception(error)
        self._done.append((done, result, failed))
        # Whoever finds it set comes before it is cleared, and what is done is looked at after that.
        if not self._is_waking:
            self._is_waking = True
            done.get_loop().call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self._is_waking = False
        while self._done:
            done, result, failed = self._done.popleft()
            if done.done():
                continue
            if failed is None:
                done.set_result(result)
            else:
                done.set_exception(failed)


def as_exception(error: BaseException) -> Exception:
    """Make of whatever was raised something that ends no thread and no loop, and so fails nobody but who asked.

    A panic in a library written in Rust (reading JSON, answering) is no Exception; nor is SystemExit.
    """
    if isinstance(error, Exception):
        return error
    failed = RuntimeError(f"{type(error).__name__}: {error}")
    failed.__cause__ = error
    return failed
