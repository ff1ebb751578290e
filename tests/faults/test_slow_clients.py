"""Clients that send slowly, send too much, or stop sending: they get an answer, and nobody else waits for them."""

import contextlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from compose import local
from compose.roles import WEB_WORKERS
from compose.stack_commands import seed_demo
from tests.messaging.broker_view import PATIENCE_SECONDS

BODY_SECONDS_MAX = 4


@pytest.fixture(scope="module")
def web() -> Iterator[dict[str, Any]]:
    environment = {"BODY_SECONDS_MAX": str(BODY_SECONDS_MAX), "PROMISE_SECONDS": "100000", "BACKLOG_MAX": "1000000"}
    with pytest.MonkeyPatch.context() as patch:
        # Servers of its own: on those of the test run another stack's workers end the orders that are to wait here.
        for name in ("DATABASE_URL", "BROKER_URL"):
            patch.delenv(name, raising=False)
        with local.stack(name="slow", roles={"web": 1}, environment=environment) as stack:
            yield {**stack, "seed": seed_demo(stack, accounts=2, opening_minor=100_000)}


@pytest.fixture
def client(web: dict[str, Any]) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {web['seed'].token}"}
    with httpx.Client(base_url=f"{web['api']}/api/v1/", headers=headers, timeout=PATIENCE_SECONDS) as client:
        yield client


def _head(web: dict[str, Any], length: int, path: str = "/api/v1/transfers", **more: str) -> bytes:
    headers = {
        "Host": "127.0.0.1",
        "Authorization": f"Bearer {web['seed'].token}",
        "Idempotency-Key": str(uuid4()),
        "Content-Type": "application/json",
        "Content-Length": str(length),
        **more,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value)
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode()


def _connect(web: dict[str, Any]) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(web["api"].rpartition(":")[2])), timeout=PATIENCE_SECONDS)


def _answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(65536):
            received += chunk
            if received.endswith(b"}"):
                break
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head[9:12]), json.loads(body)


def _order(web: dict[str, Any]) -> dict[str, Any]:
    debit, credit = web["seed"].accounts
    return {"debit_account": debit, "credit_account": credit, "amount_minor": 1, "currency": "EUR"}


def test_two_hundred_slow_clients_hold_up_nobody(web: dict[str, Any], client: httpx.Client) -> None:
    for _ in range(20):
        # Each process connects to the database with its first request.
        client.get("accounts", headers={"Connection": "close"})
    with contextlib.ExitStack() as connections:
        # On a slow machine their time may be up before the others have had their turn: then once more.
        for _ in range(5):
            slow = [connections.enter_context(_connect(web)) for _ in range(200)]
            if _others_are_served_meanwhile(web, client, slow):
                break
        else:
            pytest.fail("nobody was served before the slow ones were told that their time is up")
        # Each of them is told, once its time is up.
        answers = [_answer(connection) for connection in slow]
    assert {(status, problem["code"], problem["retryable"]) for status, problem in answers} == {
        (408, "body_too_slow", True)
    }


def _others_are_served_meanwhile(web: dict[str, Any], client: httpx.Client, slow: list[socket.socket]) -> bool:
    """Whether ten orders were taken while every slow client was still at its body, and had been told nothing."""
    told = select.poll()
    for connection in slow:
        connection.sendall(_head(web, 60_000) + b"{")
        told.register(connection, select.POLLIN)
    for _ in range(10):
        answer = client.post("transfers", json=_order(web), headers={"Idempotency-Key": str(uuid4())})
        assert answer.status_code == 202
        if told.poll(0):
            return False
        for connection in slow[:50]:
            connection.sendall(b" ")
    return True


def test_a_body_that_comes_in_pieces_is_taken_whole(web: dict[str, Any]) -> None:
    body = json.dumps(_order(web)).encode()
    with _connect(web) as connection:
        connection.sendall(_head(web, len(body)))
        for place in range(0, len(body), 40):
            time.sleep(0.05)
            connection.sendall(body[place : place + 40])

        status, transfer = _answer(connection)

    assert (status, transfer["amount_minor"]) == (202, 1)


def test_a_client_that_leaves_half_way_leaves_nothing(web: dict[str, Any], client: httpx.Client) -> None:
    before = len(client.get("transfers", params={"page_size": 200}).json()["results"])
    for _ in range(20):
        with _connect(web) as connection:
            connection.sendall(_head(web, 300) + b'{"debit_account"')

    assert len(client.get("transfers", params={"page_size": 200}).json()["results"]) == before


def test_clients_that_wait_for_a_transfer_hold_no_thread_and_may_leave(
    web: dict[str, Any], client: httpx.Client
) -> None:
    order = client.post("transfers", json=_order(web), headers={"Idempotency-Key": str(uuid4())}).json()
    lines = (f"GET /api/v1/transfers/{order['id']} HTTP/1.1", "Host: 127.0.0.1", "Prefer: wait=20")
    asking = "\r\n".join((*lines, f"Authorization: Bearer {web['seed'].token}", "", "")).encode()
    began = time.monotonic()
    with contextlib.ExitStack() as connections:
        waiting = [connections.enter_context(_connect(web)) for _ in range(60)]
        told = select.poll()
        for connection in waiting:
            connection.sendall(asking)
            told.register(connection, select.POLLIN)
        _until(lambda: _lookers(web) > 0)

        # More wait than there are threads, and nobody else has to.
        assert client.get(f"transfers/{order['id']}").json()["status"] == "accepted"
        assert (told.poll(0), time.monotonic() - began < 20) == ([], True)

    # They have left, and so does who looked for them: earlier than the time that they asked for.
    _until(lambda: _lookers(web) == 0)
    assert time.monotonic() - began < 20


def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _lookers(web: dict[str, Any]) -> int:
    """Sessions of web that look for ends on behalf of those who wait."""
    look = "%transfers_transfer WHERE id = ANY%"
    with psycopg.connect(web["database_url"]) as database:
        found = database.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE %s AND pid <> pg_backend_pid()", (look,)
        )
        return int(found.fetchall()[0][0])


@pytest.mark.parametrize("sent", [0.1, 0.5])
def test_the_beginning_of_a_file_is_not_taken_for_the_file(
    web: dict[str, Any], client: httpx.Client, sent: float
) -> None:
    """A connection that breaks at the end of a row leaves what reads like a whole file with fewer rows."""
    accounts = web["seed"].accounts
    row = f"{accounts[0]},{accounts[1]},EUR,7\n".encode()
    file = b"debit_account,credit_account,currency,amount_minor\n" + row * 4_000
    part = file[: 51 + len(row) * int(4_000 * sent)]
    with _connect(web) as connection:
        connection.sendall(_head(web, len(file), "/api/v1/batches", **{"Content-Type": "text/csv"}) + part)
        connection.shutdown(socket.SHUT_WR)
        status, problem = _answer(connection)

    assert (status, problem["code"], problem["retryable"]) == (400, "body_incomplete", True)
    listed = client.get("transfers", params={"account": accounts[1], "page_size": 200}).json()["results"]
    assert not [transfer for transfer in listed if transfer["amount_minor"] == 7]


def _memory_bytes(web: dict[str, Any]) -> int:
    """What all processes of web hold, by their proportional share."""
    parents = json.loads(Path(web["file"]).read_text())["pids"]["web"]
    found, total = list(parents), 0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text().rpartition(")")[2].split()
            if int(fields[1]) in parents:
                found.append(int(entry.parent.name))
    for pid in found:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
    return total


@pytest.mark.parametrize("chunked", [False, True])
def test_fifty_megabytes_are_refused_without_being_held(
    web: dict[str, Any], client: httpx.Client, chunked: bool
) -> None:
    size, piece = 50_000_000, b" " * 65536
    client.post("batches", json={"transfers": [_order(web)]})
    before = _memory_bytes(web)

    def send(_: int) -> tuple[int, dict[str, Any]]:
        with _connect(web) as connection:
            length = {"Content-Length": "", "Transfer-Encoding": "chunked"} if chunked else {}
            connection.sendall(_head(web, size, "/api/v1/batches", **length))
            with contextlib.suppress(ConnectionError):
                for _ in range(size // len(piece)):
                    connection.sendall(b"10000\r\n" + piece + b"\r\n" if chunked else piece)
                connection.sendall(b"0\r\n\r\n" if chunked else b" " * (size % len(piece)))
            return _answer(connection)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(send, range(4)))

    assert {(status, problem["code"]) for status, problem in answers} == {(413, "payload_too_large")}
    assert _memory_bytes(web) - before < 50_000_000


def test_a_batch_of_chunks_is_told_to_say_its_length(web: dict[str, Any]) -> None:
    with _connect(web) as connection:
        connection.sendall(_head(web, 0, "/api/v1/batches", **{"Content-Length": "", "Transfer-Encoding": "chunked"}))
        connection.sendall(b"2\r\n{}\r\n0\r\n\r\n")

        assert _answer(connection)[1]["code"] == "length_required"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/transfers/%00", 404),
        ("/api/v1/tr%61nsfers", 200),
        ("/api/v1/transfers/%C3%A9%FF", 404),
        ("/%2e/", 404),
        # Decoded once, as everybody on the way here does: else these were calls and pages by another name.
        ("/api/v1/tr%2561nsfers", 404),
        ("/%2561dmin/login/", 404),
    ],
)
def test_odd_addresses_reach_django_as_they_were_meant(web: dict[str, Any], path: str, status: int) -> None:
    lines = (f"GET {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {web['seed'].token}")
    with _connect(web) as connection:
        connection.sendall("\r\n".join((*lines, "Connection: close", "", "")).encode())
        received = b"".join(iter(lambda: connection.recv(65536), b""))

    assert int(received[9:12]) == status


@pytest.mark.parametrize(("key", "code"), [("k\u00e9", "idempotency_key_invalid"), ("", "idempotency_key_missing")])
def test_a_key_that_is_not_ascii_was_sent_all_the_same(web: dict[str, Any], key: str, code: str) -> None:
    body = json.dumps(_order(web)).encode()
    head = _head(web, len(body), **{"Idempotency-Key": ""}).decode().removesuffix("\r\n")
    if key:
        head += f"Idempotency-Key: {key}\r\n"
    with _connect(web) as connection:
        connection.sendall(f"{head}\r\n".encode() + body)
        status, problem = _answer(connection)

    assert (status, problem["code"]) == (400, code)


@pytest.mark.parametrize(
    "name", ["Cookie", "Accept-Language", "Authorization", "Referer", "User-Agent", "X-Request-Id"]
)
@pytest.mark.parametrize(("path", "status"), [("/admin/login/", 200), ("/livez", 200), ("/nowhere", 404)])
def test_a_header_that_is_not_ascii_breaks_no_page(web: dict[str, Any], path: str, status: int, name: str) -> None:
    lines = (f"GET {path} HTTP/1.1", "Host: 127.0.0.1", f"{name}: name=\u00e9\u20ac", "Connection: close")
    with _connect(web) as connection:
        connection.sendall("\r\n".join((*lines, "", "")).encode())
        received = b"".join(iter(lambda: connection.recv(65536), b""))

    assert int(received[9:12]) == status


def test_pages_files_and_heads_are_served(web: dict[str, Any]) -> None:
    with httpx.Client(base_url=web["api"], timeout=PATIENCE_SECONDS) as browser:
        page = browser.get("/admin/login/")
        assert (page.status_code, "csrftoken" in page.cookies) == (200, True)
        style = browser.get("/static/unfold/css/styles.css")
        assert (style.status_code, len(style.content)) == (200, int(style.headers["Content-Length"]))
        assert style.content
        head = browser.head("/livez")
        assert (head.status_code, head.content) == (200, b"")
        assert browser.get("/metrics").status_code == 200


def test_more_requests_than_can_wait_are_turned_away_at_once(web: dict[str, Any]) -> None:
    """Nobody gets a broken connection: 202 or 503, and each 503 says when to come again."""

    def send(_: int) -> int:
        body = json.dumps(_order(web)).encode()
        with _connect(web) as connection:
            connection.sendall(_head(web, len(body)) + body)
            return _answer(connection)[0]

    with ThreadPoolExecutor(400) as pool:
        statuses = set(pool.map(send, range(1200)))

    assert statuses <= {202, 503}
    assert 202 in statuses


def test_a_process_that_stops_answers_those_who_wait_first(web: dict[str, Any], client: httpx.Client) -> None:
    order = client.post("transfers", json=_order(web), headers={"Idempotency-Key": str(uuid4())}).json()
    lines = (f"GET /api/v1/transfers/{order['id']} HTTP/1.1", "Host: 127.0.0.1", "Prefer: wait=20")
    asking = "\r\n".join((*lines, f"Authorization: Bearer {web['seed'].token}", "", "")).encode()
    [server] = json.loads(Path(web["file"]).read_text())["pids"]["web"]
    with contextlib.ExitStack() as connections:
        waiting = [connections.enter_context(_connect(web)) for _ in range(60)]
        for connection in waiting:
            connection.sendall(asking)
        _until(lambda: _lookers(web) == WEB_WORKERS)
        os.kill(server, signal.SIGTERM)
        began = time.monotonic()
        answers = [_answer(connection) for connection in waiting]

    assert {(status, transfer["status"]) for status, transfer in answers} == {(200, "accepted")}
    assert time.monotonic() - began < 15
