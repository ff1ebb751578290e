"""Single orders that arrive at once, through the front: written down together, answered each for itself."""

import asyncio
import gc
import json
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import OperationalError, connections

from accounts.models import Account
from bankcore.lanes import Lanes
from bankcore.messaging.models import Event
from tests.api.conftest import Bank, Caller, written
from transfers import intake
from transfers.models import Transfer

pytestmark = pytest.mark.django_db(transaction=True)

_keys = count(1)


class Exchange:
    """One request's side of the server: has the body, and keeps the answer."""

    def __init__(self, body: Any) -> None:
        self.body = json.dumps(body).encode()
        self.status, self.headers, self.content = 0, dict[str, str](), dict[str, Any]()
        # What became of the request instead of an answer.
        self.error: BaseException | None = None

    async def __call__(self) -> bytes:
        return self.body

    def response_bytes(self, status: int, headers: Any, body: bytes) -> None:
        assert not self.status, "answered twice"
        assert len(dict(headers)) == len(headers), "a header came twice"
        self.status, self.headers, self.content = status, dict(headers), json.loads(body)


Order = tuple[Caller, Any, str]


@pytest.fixture
def send_at_once() -> Callable[..., list[Exchange]]:
    """Send orders (caller, body, key) to a web process in this one, all in the same moment.

    `application` is its Django.
    """
    thresholds = gc.get_threshold()
    from bankcore import front

    # A process of web looks for garbage rarely; this one goes on as it did.
    gc.set_threshold(*thresholds)
    gc.unfreeze()

    async def send_all(orders: Sequence[Order], application: Any = None, threads: int = 1) -> list[Exchange]:
        web = front.Front(application or Lanes(), threads=threads, queue_max=100)
        exchanges = [Exchange(body) for _, body, _ in orders]
        requests = [
            web.__rsgi__(_scope(caller, key, exchange), exchange)
            for (caller, _, key), exchange in zip(orders, exchanges, strict=True)
        ]
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*requests, return_exceptions=True)
            for exchange, answer in zip(exchanges, answers, strict=True):
                exchange.error = answer
            # The threads outlive the test, and their connections would keep its database.
            together = threading.Barrier(threads, timeout=30)
            await asyncio.gather(*(web._pool.run(partial(_close, together)) for _ in range(threads)))
            await web._writer.run(connections.close_all)
        return exchanges

    return lambda *orders, **changes: asyncio.run(send_all(*orders, **changes))


def _close(together: threading.Barrier) -> None:
    together.wait()
    connections.close_all()


def _scope(caller: Caller, key: str, exchange: Exchange) -> SimpleNamespace:
    headers = {
        "authorization": f"Bearer {caller.token}", "content-type": "application/json", "idempotency-key": key,
        "content-length": str(len(exchange.body)), "x-request-id": f"request-{key}",
    }  # fmt: skip
    return SimpleNamespace(
        method="POST", path="/api/v1/transfers", query_string="", server="127.0.0.1:80", client="127.0.0.1:9",
        http_version="1.1", scheme="http", authority="127.0.0.1", headers=headers,
    )  # fmt: skip


@pytest.fixture
def lots(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many orders were written down with each statement."""
    write, lots = intake.write, list[int]()

    def counted(rows: Any) -> Any:
        lots.append(len(rows))
        return write(rows)

    monkeypatch.setattr(intake, "write", counted)
    return lots


def _orders(caller: Caller, bodies: Sequence[Any]) -> list[Order]:
    return [(caller, body, f"key-{next(_keys)}") for body in bodies]


def test_they_share_statements_and_each_gets_its_own_answer(bank: Bank, send_at_once: Any, lots: list[int]) -> None:
    frozen = Account.objects.create(customer=bank.anna, currency="EUR", status="frozen")
    bodies = [
        *(bank.body(amount_minor=number, reference=f"r-{number}", metadata={"n": number}) for number in range(1, 21)),
        bank.body(debit_account=str(frozen.id)),
        bank.body(credit_account="nobody"),
        bank.body(debit_account=str(bank.brunos.id), credit_account=str(bank.annas.id)),
        bank.body(amount_minor=-1),
        bank.body(expires_at="2001-01-01T00:00:00Z"),
        *[bank.body(external_id="one", execute_on="2999-01-01")] * 2,
    ]

    answers = send_at_once(_orders(bank.as_anna, bodies))

    assert [a.status for a in answers[:20]] == [202] * 20
    shown = [(a.content["amount_minor"], a.content["reference"], a.content["metadata"]) for a in answers[:20]]
    assert shown == [(number, f"r-{number}", {"n": number}) for number in range(1, 21)]
    codes = ["account_frozen", "account_not_found", "account_not_found", "validation_error", "validation_error"]
    assert [a.content["code"] for a in answers[20:25]] == codes
    assert sorted(a.status for a in answers[25:]) == [202, 409]
    assert written() == (21, 0, 21)
    stored = Transfer.objects.values_list("id", "amount_minor", "status", "execute_on")
    assert {str(i): amount for i, amount, *_ in stored.filter(execute_on=None)} == {
        a.content["id"]: a.content["amount_minor"] for a in answers[:20]
    }
    assert stored.exclude(execute_on=None).values_list("status", flat=True).get() == "scheduled"
    # Event by event the transfer's own facts.
    for event in Event.objects.filter(type="transfer.accepted"):
        transfer = Transfer.objects.get(id=event.subject)
        assert event.data == {"amount_minor": transfer.amount_minor, "currency": "EUR"}
        assert (event.partition_key, event.request_id) == (str(bank.annas.id), transfer.request_id)
    # One statement for all that can be written, and one more for each that it left out.
    assert max(lots) >= 20


def test_each_answer_has_the_headers_of_its_own_request(bank: Bank, send_at_once: Any) -> None:
    orders = _orders(bank.as_anna, [bank.body(), bank.body(), bank.body(credit_account="nobody")])
    lone = bank.as_anna.order(bank.body())

    answers = send_at_once(orders)

    assert [a.headers["x-request-id"] for a in answers] == [f"request-{key}" for _, _, key in orders]
    assert answers[2].content["request_id"] == f"request-{orders[2][2]}"
    assert [a.headers["content-type"] for a in answers] == ["application/json"] * 2 + ["application/problem+json"]
    for answer in answers[:2]:
        assert answer.headers["location"] == f"/api/v1/transfers/{answer.content['id']}"
        assert answer.headers["retry-after"] == "1"
    # What Django's own server adds is not the application's.
    assert set(answers[0].headers) == {name.lower() for name in lone.headers} - {"content-length"}
    assert set(answers[2].headers) == set(answers[0].headers) - {"location", "retry-after"}
    # Each counted once, whatever became of it.
    left = sorted(int(a.headers["ratelimit"].partition(";r=")[2].partition(";")[0]) for a in answers)
    assert left == list(range(left[0], left[0] + 3))


def test_repetitions_get_the_first_answer(bank: Bank, send_at_once: Any) -> None:
    answers = send_at_once([(bank.as_anna, bank.body(), "the-same")] * 20)
    other = send_at_once([(bank.as_anna, bank.body(amount_minor=5), "the-same")] * 2)

    assert [a.status for a in answers] == [202] * 20
    assert len({json.dumps(a.content) for a in answers}) == 1
    assert sum("idempotent-replayed" in a.headers for a in answers) == 19
    assert [a.content["code"] for a in other] == ["idempotency_key_reused"] * 2
    assert written() == (1, 0, 1)


def test_one_orders_error_reaches_no_other(bank: Bank, send_at_once: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write = intake.write

    def fail_over_one(rows: Any) -> Any:
        if any(row.amount == 7 for row in rows):
            raise OperationalError("gone")
        return write(rows)

    monkeypatch.setattr(intake, "write", fail_over_one)

    answers = send_at_once(_orders(bank.as_anna, [bank.body(amount_minor=number) for number in range(1, 11)]))

    assert [a.status for a in answers] == [202] * 6 + [503] + [202] * 3
    assert answers[6].content["code"] == "temporarily_unavailable"
    assert written() == (9, 0, 9)


def test_one_that_fails_by_itself_is_not_tried_again(
    bank: Bank, send_at_once: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has waited for a lock as long as may be would wait as long again."""
    lots = list[int]()

    def fail(rows: Any) -> Any:
        lots.append(len(rows))
        raise OperationalError("gone")

    monkeypatch.setattr(intake, "write", fail)

    (answer,) = send_at_once([(bank.as_anna, bank.body(), "the-only-one")])

    assert (answer.status, answer.content["code"]) == (503, "temporarily_unavailable")
    assert answer.content["request_id"] == answer.headers["x-request-id"] == "request-the-only-one"
    assert "ratelimit" in answer.headers
    assert lots == [1]


def test_what_cannot_be_shown_is_an_error_of_its_own(
    bank: Bank, send_at_once: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted = intake.Intake.accepted

    def fail_over_one(asked: intake.Intake, created_at: Any) -> Any:
        if asked.order.amount_minor == 7:
            raise RuntimeError("a bug")
        return accepted(asked, created_at)

    monkeypatch.setattr(intake.Intake, "accepted", fail_over_one)

    answers = send_at_once(_orders(bank.as_anna, [bank.body(amount_minor=number) for number in range(1, 11)]))

    # It is written down; whoever asks for it again hears so.
    assert [a.status for a in answers] == [202] * 10
    assert "idempotent-replayed" in answers[6].headers


def test_who_waits_behind_a_slow_look_gets_a_thread(
    bank: Bank, send_at_once: Any, lots: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each token takes seconds to look up, all those of a lot one after the other would take minutes."""
    from bankcore import front

    monkeypatch.setattr(front, "LOOK_SECONDS_MAX", 0.1)
    django, first, others = Lanes(), list[str](), threading.Barrier(3, timeout=30)

    def slow(environ: Any, start_response: Any) -> Any:
        if not first:
            first.append(environ["HTTP_X_REQUEST_ID"])
            time.sleep(0.2)
        else:
            others.wait()
        return django(environ, start_response)

    orders = _orders(bank.as_anna, [bank.body(amount_minor=number) for number in range(1, 5)])
    answers = send_at_once(orders, application=slow, threads=3)

    assert [(a.status, a.content["amount_minor"]) for a in answers] == [(202, number) for number in range(1, 5)]
    assert [a.headers["x-request-id"] for a in answers] == [f"request-{key}" for _, _, key in orders]
    assert lots == [1] * 4
    assert written() == (4, 0, 4)


class _Panic(BaseException):
    """As what is raised by a library written in Rust that gives up."""


@pytest.mark.parametrize("error", [RuntimeError, _Panic])
def test_an_answer_that_cannot_be_sent_costs_no_other_its_own(
    bank: Bank, send_at_once: Any, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    send = Exchange.response_bytes

    def fail_over_one(exchange: Exchange, status: int, headers: Any, body: bytes) -> None:
        if b'"amount_minor": 7,' in exchange.body:
            raise error("it cannot be sent")
        send(exchange, status, headers, body)

    monkeypatch.setattr(Exchange, "response_bytes", fail_over_one)

    answers = send_at_once(_orders(bank.as_anna, [bank.body(amount_minor=number) for number in range(1, 11)]))

    assert [a.status for a in answers] == [202] * 6 + [0] + [202] * 3
    assert [a.error for a in answers[:6] + answers[7:]] == [None] * 9
    assert "it cannot be sent" in str(answers[6].error)
    assert written() == (10, 0, 10)


def test_a_look_that_panics_costs_no_other_its_answer(bank: Bank, send_at_once: Any) -> None:
    django = Lanes()

    def panic_over_one(environ: Any, start_response: Any) -> Any:
        if environ["HTTP_X_REQUEST_ID"] == f"request-{orders[2][2]}":
            raise _Panic("it gave up")
        return django(environ, start_response)

    orders = _orders(bank.as_anna, [bank.body(amount_minor=number) for number in range(1, 6)])
    answers = send_at_once(orders, application=panic_over_one)

    assert [a.status for a in answers] == [202, 202, 0, 202, 202]
    assert str(answers[2].error) == "_Panic: it gave up"
    assert written() == (4, 0, 4)
