"""The front, without a server: a refusal leaves nothing of its request behind."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from bankcore.messaging import backpressure


class _Scope(SimpleNamespace):
    """What granian says of a request."""


class _Exchange:
    """One request: its body comes in pieces, and its answer is kept."""

    def __init__(self, pieces: list[bytes], *, stuck: bool = False) -> None:
        self.pieces, self.stuck, self.answers = pieces, stuck, list[int]()

    async def __call__(self) -> bytes:
        if self.stuck:
            await asyncio.Event().wait()
        return b"".join(self.pieces)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece

    def response_bytes(self, status: int, headers: Any, body: bytes) -> None:
        self.answers.append(status)


@pytest.fixture(scope="module")
def front() -> Any:
    thresholds = gc.get_threshold()
    from bankcore import front

    # A process of web looks for garbage rarely; this one goes on as it did.
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    return front


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
    monkeypatch.setattr(front, "GATHERED_BYTES_MAX", 1)
    return front.Front(None, threads=1, queue_max=1), _Exchange([b" " * 99_000]), 99_000


def _turned_away(front: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, _Exchange, int]:
    monkeypatch.setattr(backpressure, "turned_away", lambda _: 1)
    return front.Front(None, threads=1, queue_max=1), _Exchange([b" " * 99_000]), 99_000


def _no_turn(front: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, _Exchange, int]:
    settings.WEB_BATCHES_AT_ONCE, settings.BATCH_ANSWER_SECONDS = 0, 0.001
    return front.Front(None, threads=1, queue_max=1), _Exchange([b" " * 99_000]), 99_000


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
