"""Have what comes at the same time done in one go: one database transaction costs about as much for a dozen as for one.

The first that comes is worked on at once. What arrives meanwhile waits and is the next lot, so lots grow with the load
and a lone item never waits. Where lots follow one another closely, the next is put off a little: a lot of a few costs
hardly more than a lot of one, and what it saves is wanted most when everything is slow.
"""

import asyncio
import logging
import time
from asyncio import sleep
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from django.http import HttpResponse

from bankcore.pool import Exchange, Headers

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

# A lot begins this many times its usual duration after the one before, so that work takes a third of the time at most.
PACE_TIMES = 3.0
PACE_SECONDS_MAX = 0.006
# After so many lots of one in a row there is nothing to put together: whoever sends one by one does not wait.
LONE_LOTS = 8
# How much the newest lot counts in how long one usually takes.
NEWEST_PART = 0.2

# Under this name in a request's environ the front offers to do a part of it together with those of others.
OFFER = "bankcore.offer"


@dataclass(slots=True)
class Part:
    """What a view leaves to be done together with the same of other requests.

    `work` takes items of several requests and gives one result each, in the same order; it must bear repetition.
    `answer` makes the answer of the result, or None if that takes another look; `alone` does it all by itself, and
    is called then, or if the work of a lot of several failed: so one request's error never reaches another. `failed`
    makes the answer of the error where there was no other. The headers that every answer to the request has are those
    of the view's.
    """

    work: Callable[[Sequence[Any]], Sequence[Any]]
    item: Any
    answer: Callable[[Any], HttpResponse | None]
    alone: Callable[[], HttpResponse]
    failed: Callable[[Exception], HttpResponse]


@dataclass(slots=True)
class Offer:
    """What the front offers: a view may leave a part, and an answer that is not sent but for its headers."""

    part: Part | None = None


@dataclass(slots=True)
class Started:
    """A request whose view left a part, and the headers of its answer so far."""

    exchange: Exchange
    headers: Headers
    part: Part
    is_answered: bool = False

    def answer(self, result: Any) -> None:
        """Answer by the result of a lot, unless that takes another look. Raises nothing: others come after it."""
        self._try_to_send(lambda: self.part.answer(result))

    def fail(self, error: Exception) -> None:
        """Answer by the error of a lot of one. Raises nothing."""
        self._try_to_send(lambda: self.part.failed(error))

    def _try_to_send(self, answer: Callable[[], HttpResponse | None]) -> None:
        try:
            response = answer()
            if response is not None:
                self._send(response)
        except BaseException:
            log.exception("no answer can be made of a lot's result")

    def answer_alone(self) -> None:
        self._send(self.part.alone())

    def _send(self, response: HttpResponse) -> None:
        headers = [(name.lower(), value) for name, value in response.items()]
        headers += [header for header in self.headers if header[0] != "content-type"]
        self.exchange.response_bytes(response.status_code, headers, response.content)
        self.is_answered = True


def answer_together(requests: Sequence[Started]) -> None:
    """Do the parts of these requests, all of one kind, and answer. Those that are not answered are left to go alone."""
    if not requests:
        return
    try:
        results = requests[0].part.work([request.part.item for request in requests])
    except Exception as error:
        # Among several it comes again, alone, to the one whose own error it is. Who waited in vain for a lock by itself
        # would wait as long again.
        if len(requests) == 1:
            requests[0].fail(error)
        return
    for request, result in zip(requests, results, strict=True):
        request.answer(result)


class Combiner(Generic[Item, Result]):
    """Lives on one event loop. `work` takes a lot of items and gives one result each, in the same order."""

    def __init__(self, work: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]], *, lot_max: int) -> None:
        self._work = work
        self._lot_max = lot_max
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._working: asyncio.Task[None] | None = None
        # Of the lots, one after the other.
        self._began = self._usual_seconds = 0.0
        self._lone = LONE_LOTS

    async def run(self, item: Item) -> Result:
        """Have this item worked on, with others where there are any, and return its result. Raises what the lot did."""
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, result))
        if self._working is None:
            self._working = asyncio.create_task(self._work_off())
        return await result

    async def _work_off(self) -> None:
        while self._waiting:
            if (ahead := self._ahead_seconds()) > 0:
                await sleep(ahead)
            lot = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._lot_max))]
            self._lone = self._lone + 1 if len(lot) == 1 else 0
            self._began = time.monotonic()
            try:
                results = await self._work([item for item, _ in lot])
                for (_, waiting), result in zip(lot, results, strict=True):
                    # That of a client who has gone is done already.
                    if not waiting.done():
                        waiting.set_result(result)
            except Exception as error:
                for _, waiting in lot:
                    if not waiting.done():
                        waiting.set_exception(error)
            self._usual_seconds += NEWEST_PART * (time.monotonic() - self._began - self._usual_seconds)
        self._working = None

    def _ahead_seconds(self) -> float:
        if self._lone >= LONE_LOTS:
            return 0.0
        return self._began + min(self._usual_seconds * PACE_TIMES, PACE_SECONDS_MAX) - time.monotonic()
