"""The front, without a server: what it refuses, and that a refusal leaves nothing of its request behind."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from granian.rsgi import ProtocolClosed

from bankcore import metrics
from bankcore.environ import environ_of
from bankcore.messaging import backpressure


class _Scope(SimpleNamespace):
    """What granian says of a request."""


class _Exchange:
    """One request: its body comes in pieces, and its answer is kept."""

    def __init__(self, pieces: list[bytes], *, stuck: bool = False) -> None:
        self.pieces, self.stuck, self.answers = pieces, stuck, list[int]()
        self.headers: dict[str, str] = {}

    async def __call__(self) -> bytes:
        if self.stuck:
            await asyncio.Event().wait()
        return b"".join(self.pieces)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece

    def response_bytes(self, status: int, headers: Any, body: bytes) -> None:
        self.answers.append(status)
        self.headers = dict(headers)


@pytest.fixture(scope="module")
def front() -> Any:
    thresholds = gc.get_threshold()
    from bankcore import front

    # A process of web looks for garbage rarely; this one goes on as it did.
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    return front


@pytest.fixture(autouse=True)
def _open_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was measured in this process before."""
    monkeypatch.setattr(backpressure, "turned_away", lambda _: None)


def _scope(path: str, size: int, **headers: str) -> _Scope:
    return _Scope(
        method="POST", path=path, query_string="", server="127.0.0.1:80", client="127.0.0.1:9", http_version="1.1",
        scheme="http", authority="", headers={"content-length": str(size), **headers},
    )  # fmt: skip


def _full(front: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, _Exchange, int]:
    return front.Front(None, threads=0, queue_max=0), _Exchange([b"{}"]), 2


def _too_slow(front: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, _Exchange, int]:
    settings.BODY_SECONDS_MAX = 0.01
    return front.Front(None, threads=1, queue_max=1), _Exchange([b"{}"], stuck=True), 2


def _too_large(front: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, _Exchange, int]:
    settings.BATCH_BYTES_MAX = front.SMALL_BYTES + 1
    return front.Front(None, threads=1, queue_max=1), _Exchange([b" " * 99_000]), front.SMALL_BYTES + 1


def _much_at_once(front: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, _Exchange, int]:
    monkeypatch.setattr(front, "HELD_BYTES_MAX", 1)
    return front.Front(None, threads=1, queue_max=1), _Exchange([b" " * 99_000]), 99_000


def _turned_away(front: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, _Exchange, int]:
    monkeypatch.setattr(backpressure, "turned_away", lambda _: 1)
    return front.Front(None, threads=1, queue_max=1), _Exchange([b" " * 99_000]), 99_000


def _no_turn(front: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, _Exchange, int]:
    settings.WEB_BATCHES_AT_ONCE, settings.BATCH_ANSWER_SECONDS = 0, 0.001
    return front.Front(None, threads=1, queue_max=4), _Exchange([b" " * 99_000]), 99_000


@pytest.mark.parametrize(
    ("make", "status"),
    [(_full, 503), (_too_slow, 408), (_too_large, 413), (_much_at_once, 503), (_turned_away, 503), (_no_turn, 503)],
)
def test_a_refusal_keeps_nothing_of_its_request(
    front: Any, settings: Any, monkeypatch: pytest.MonkeyPatch, make: Any, status: int
) -> None:
    async def refused() -> weakref.ref[Any]:
        door, exchange, size = make(front, settings, monkeypatch)
        scope = _scope("/api/v1/batches", size)
        await door.__rsgi__(scope, exchange)
        assert exchange.answers == [status]
        kept = weakref.ref(exchange)
        del exchange, scope
        return kept

    gc.disable()
    try:
        kept = asyncio.run(refused())
        assert kept() is None, gc.get_referrers(kept())
    finally:
        gc.enable()


def _django(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("202 Accepted", [])
    return [b""]


class _Door:
    """A front with one thread, before which no batch ever gets a turn."""

    def __init__(self, front: Any, settings: Any, *, queue_max: int) -> None:
        settings.WEB_BATCHES_AT_ONCE, settings.BATCH_ANSWER_SECONDS = 0, 60
        self.front = front.Front(_django, threads=1, queue_max=queue_max)
        self.waiting: list[asyncio.Task[None]] = []

    async def batch(self, size: int) -> list[int]:
        """Send one; return its answers so far."""
        exchange = _Exchange([b" " * size])
        self.waiting.append(asyncio.create_task(self.front.__rsgi__(_scope("/api/v1/batches", size), exchange)))
        for _ in range(20):
            await asyncio.sleep(0)
        return exchange.answers

    async def single(self) -> list[int]:
        exchange = _Exchange([b"{}"])
        await self.front.__rsgi__(_scope("/api/v1/transfers", 2), exchange)
        return exchange.answers

    async def hang_up(self) -> None:
        for task in self.waiting:
            task.cancel()
        await asyncio.gather(*self.waiting, return_exceptions=True)


def test_batches_that_wait_for_a_turn_shut_out_no_single_transfer(front: Any, settings: Any) -> None:
    async def crowd() -> tuple[list[list[int]], list[int]]:
        door = _Door(front, settings, queue_max=4)
        batches = [await door.batch(100) for _ in range(6)]
        single = await door.single()
        await door.hang_up()
        return batches, single

    batches, single = asyncio.run(crowd())

    # A quarter of the queue stands in line, and the others need not wait to hear it.
    assert batches == [[], *[[503]] * 5]
    assert single == [202]


@pytest.mark.parametrize("method", ["POST", "post", "pOST"])
def test_a_batch_is_one_however_its_method_is_written(front: Any, method: str) -> None:
    scope = _scope("/api/v1/batches", 100)
    scope.method = method

    assert front.intake_of(scope, 100) is backpressure.Priority.BATCH


def test_large_bodies_count_until_they_are_answered(front: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "HELD_BYTES_MAX", 150_000)

    async def two() -> tuple[list[Any], int]:
        door = _Door(front, settings, queue_max=40)
        answers = [await door.batch(99_000), await door.batch(99_000), await door.batch(100), await door.single()]
        await door.hang_up()
        return answers, door.front._held_bytes

    assert asyncio.run(two()) == ([[], [503], [], [202]], 0)


@pytest.mark.parametrize(("client", "address"), [("127.0.0.1:9", "127.0.0.1"), ("[::1]:9", "::1")])
def test_an_address_is_known_by_its_number_alone(client: str, address: str) -> None:
    scope = _scope("/metrics", 0)
    scope.client = client

    assert environ_of(scope)["REMOTE_ADDR"] == address


def test_a_path_is_what_granian_has_decoded() -> None:
    assert environ_of(_scope("/%61dmin/é", 0))["PATH_INFO"] == "/%61dmin/é".encode().decode("latin-1")


@pytest.mark.parametrize(("size", "pieces"), [(100_000, [b" " * 99_999]), (100_000, []), (10, [b"{}"])])
def test_a_body_of_which_not_all_has_come_goes_no_further(front: Any, size: int, pieces: list[bytes]) -> None:
    async def broken_off() -> list[int]:
        exchange = _Exchange(pieces)
        await front.Front(_django, threads=1, queue_max=1).__rsgi__(_scope("/api/v1/batches", size), exchange)
        return exchange.answers

    assert asyncio.run(broken_off()) == [400]


def test_a_client_that_leaves_half_way_is_no_error(front: Any) -> None:
    class _Left(_Exchange):
        async def __call__(self) -> bytes:
            raise ProtocolClosed

    async def left() -> list[int]:
        exchange = _Left([])
        await front.Front(_django, threads=1, queue_max=1).__rsgi__(_scope("/api/v1/transfers", 10), exchange)
        return exchange.answers

    assert asyncio.run(left()) == [400]


def test_the_same_token_is_the_same_client_however_it_is_written(front: Any) -> None:
    written = ["Bearer abc.def", "bearer abc.def", "BEARER  abc.def", "Bearer abc.def "]

    assert {front._client_of({"HTTP_AUTHORIZATION": text}) for text in written} == {"abc.def"}


def test_those_who_are_too_many_are_counted_and_come_again_at_different_times(front: Any) -> None:
    door, counter = front.Front(None, threads=0, queue_max=0), metrics.admission.labels("overloaded")
    before = counter._value.get()

    async def refused() -> str:
        exchange = _Exchange([b"{}"])
        await door.__rsgi__(_scope("/api/v1/transfers", 2), exchange)
        return exchange.headers["retry-after"]

    async def all_of_them() -> set[str]:
        return {await refused() for _ in range(200)}

    assert asyncio.run(all_of_them()) == {"1", "2"}
    assert counter._value.get() - before == 200
