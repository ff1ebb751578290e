"""Game day's clients: an order without a definite answer is asked again under its key; each attempt is written down."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from compose.client import Target
from compose.gameday.driver import Client
from compose.gameday.history import History, read
from compose.gameday.workload import POOR_SHARE, SHARES, Cast, Mix, Purpose, Request

CAST = Cast(rich=["r1", "r2", "hot"], poor=["p1"], hot="hot", currency="EUR", review_amount_minor=1_000_000)
PROBLEM = "application/problem+json"


@contextmanager
def bank_that_answers(*script: tuple[int, str, bytes, dict[str, str]] | None) -> Iterator[tuple[str, list[str]]]:
    """A server that answers one request after the other as told, None being a connection cut off; notes the keys."""
    keys: list[str] = []
    answers = iter(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            keys.append(self.headers["Idempotency-Key"])
            told = next(answers)
            if told is None:
                self.close_connection = True
                self.connection.close()
                return
            status, kind, body, headers = told
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", keys
        server.shutdown()


def settle(folder: Path, address: str) -> None:
    async def go() -> None:
        history = History(folder / "history-load.jsonl")
        client = Client([Target(address)], history, asyncio.Event())
        request = Request("transfer", "/api/v1/transfers", (202,), {"reference": "a"}, b"{}")
        await client.settle("a", request, key="a", purpose="plain")
        client.close()

    asyncio.run(go())


def test_an_order_is_repeated_under_its_key_until_the_answer_is_definite(tmp_path):
    busy = (503, PROBLEM, b'{"retryable":true}', {"Retry-After": "1"})
    taken = (202, "application/json", json.dumps({"id": "t1", "status": "accepted"}).encode(), {})

    with bank_that_answers(None, busy, taken) as (address, keys):
        settle(tmp_path, address)

    record = read(tmp_path)
    assert keys == ["a", "a", "a"]
    assert (record.operations["a"].accepted, record.operations["a"].attempts) == (True, 3)
    assert record.operations["a"].answer["id"] == "t1"
    assert record.complaints == []


def test_a_definite_no_is_not_repeated(tmp_path):
    refused = (422, PROBLEM, b'{"code":"account_frozen","retryable":false}', {})

    with bank_that_answers(refused) as (address, keys):
        settle(tmp_path, address)

    operation = read(tmp_path).operations["a"]
    assert (keys, operation.outcome, operation.answer["code"]) == (["a"], "fail", "account_frozen")


def test_a_server_error_is_complained_about_and_asked_again(tmp_path):
    broken = (500, "text/html", b"<h1>Oops</h1>", {})
    taken = (202, "application/json", b'{"id":"t1"}', {})

    with bank_that_answers(broken, taken) as (address, _):
        settle(tmp_path, address)

    record = read(tmp_path)
    assert record.operations["a"].accepted
    assert len(record.complaints) == 1


def test_the_same_seed_orders_the_same():
    def drawn(seed: int) -> list[object]:
        mix = Mix(CAST, seed)
        return [mix.order("r1", f"{n}", mix.purpose("r1")) | {"expires_at": None} for n in range(200)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@pytest.mark.parametrize(("purpose", "share"), SHARES.items())
def test_the_mix_has_its_shares(purpose, share):
    mix = Mix(CAST, 5)
    drawn = [mix.purpose("r1") for _ in range(20_000)]

    assert abs(drawn.count(purpose) / 200 - share) < 0.6


def test_a_hot_account_and_poor_ones_get_their_part():
    mix = Mix(CAST, 5)
    lanes = [mix.lane(14, 3, 1) for _ in range(20_000)]

    assert abs(sum(lane < 3 for lane in lanes) / 200 - 20) < 2
    assert abs(lanes.count(3) / 200 - POOR_SHARE) < 1
    assert set(lanes) == set(range(14))


def test_poor_accounts_only_ask_for_too_much_and_nobody_pays_them():
    mix = Mix(CAST, 5)

    assert {mix.purpose("p1") for _ in range(100)} == {Purpose.TOO_MUCH}
    assert "p1" not in {mix.order(a, "x", Purpose.PLAIN)["credit_account"] for a in ("r1", "hot") for _ in range(200)}


def test_a_clock_that_is_behind_may_be_told_that_its_order_has_expired():
    mix = Mix(CAST, 5)
    assert mix.transfer(mix.order("r1", "x", Purpose.EXPIRING)).expected == (202,)

    mix.shift_seconds = -7200

    assert mix.transfer(mix.order("r1", "x", Purpose.EXPIRING)).expected == (202, 400)
