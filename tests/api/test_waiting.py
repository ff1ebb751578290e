"""`Prefer: wait=N` through the front: who waits holds no thread, and learns no more than who does not."""

import asyncio
import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4
from weakref import WeakSet

import pytest
from django.db import OperationalError, connections

from accounts.access import BearerAuthentication
from accounts.models import ApiToken
from bankcore import seats
from bankcore.lanes import Lanes
from bankcore.seats import Room
from tests.api.conftest import Bank, Caller, move
from transfers import waiting
from transfers.states import Status

pytestmark = pytest.mark.django_db(transaction=True)

THREADS = 2
# No slow machine takes so long for what should come at once.
AT_ONCE_SECONDS = 15
LONG = "wait=20"


class Exchange:
    """One request's side of the server: keeps the answer, and knows when the client goes away."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.status, self.headers, self.content = 0, dict[str, str](), dict[str, Any]()
        self.seconds = 0.0

    async def client_disconnect(self) -> None:
        await self.gone.wait()

    def response_bytes(self, status: int, headers: Any, body: bytes) -> None:
        assert not self.status, "answered twice"
        self.status, self.headers, self.content = status, dict(headers), json.loads(body)


class Web:
    """A web process with few threads, in this one."""

    def __init__(self, front: Any) -> None:
        lanes = Lanes()
        # How many were asked again at the same time, and at most.
        self.again, self.again_max = 0, 0

        def application(environ: dict[str, Any], start_response: Any) -> Any:
            is_again = environ[seats.PATIENCE].is_over
            self.again += is_again
            self.again_max = max(self.again, self.again_max)
            try:
                return lanes(environ, start_response)
            finally:
                self.again -= is_again
                # These threads outlive the test, and their connections would keep its database.
                connections.close_all()

        self._module, self._application = front, application
        self.start(queue_max=100)

    def start(self, *, queue_max: int) -> None:
        self.front = self._module.Front(self._application, threads=THREADS, queue_max=queue_max)

    async def get(self, caller: Caller, transfer_id: Any, prefer: str = "", as_: Exchange | None = None) -> Exchange:
        exchange, began = as_ or Exchange(), time.monotonic()
        headers = {"authorization": f"Bearer {caller.token}"} | ({"prefer": prefer} if prefer else {})
        scope = SimpleNamespace(
            method="GET", path=f"/api/v1/transfers/{transfer_id}", query_string="", server="127.0.0.1:80",
            client="127.0.0.1:9", http_version="1.1", scheme="http", authority="127.0.0.1", headers=headers,
        )  # fmt: skip
        await self.front.__rsgi__(scope, exchange)
        exchange.seconds = time.monotonic() - began
        return exchange


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(seats, "LINGER_SECONDS", 0.0)
    thresholds = gc.get_threshold()
    from bankcore import front

    # A process of web looks for garbage rarely; this one goes on as it did.
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    yield Web(front)
    for thread in threading.enumerate():
        if thread.name == "seats":
            thread.join()


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Room]:
    def of(seats_max: int, find_ended: Any = waiting._ended) -> Room:
        # Of the process, which a test may stop, it has only this one.
        monkeypatch.setattr(seats, "_rooms", WeakSet[Room]())
        made = Room(find_ended, seats_max=seats_max)
        monkeypatch.setattr(waiting, "_room", made)
        return made

    return of


def _ordered(bank: Bank) -> str:
    return str(bank.as_anna.order(bank.body()).json()["id"])


async def _moved(transfer_id: str, *path: Status) -> None:
    def in_a_thread() -> None:
        try:
            move(transfer_id, *path)
        finally:
            connections.close_all()

    await asyncio.to_thread(in_a_thread)


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():
            await asyncio.sleep(0.01)


def test_many_more_wait_than_there_are_threads(bank: Bank, web: Web, room: Any, statements: list[str]) -> None:
    transfer_id, other_id, seated = _ordered(bank), _ordered(bank), room(100)

    async def crowd() -> tuple[list[Exchange], Exchange, Exchange, int]:
        callers = [asyncio.create_task(web.get(bank.as_anna, transfer_id, "respond-async, wait=20")) for _ in range(24)]
        patient = asyncio.create_task(web.get(bank.as_anna, other_id, "wait=3"))
        await _until(lambda: len(seated._seats) == 25)
        statements.clear()
        plain = await web.get(bank.as_anna, transfer_id)
        looks = sum("= ANY" in sql for sql in statements)
        await _moved(transfer_id, Status.REJECTED)
        return list(await asyncio.gather(*callers)), await patient, plain, looks

    told, patient, plain, looks = asyncio.run(crowd())

    answers = {(t.status, t.content["status"], t.headers.get("preference-applied")) for t in told}
    assert answers == {(200, "rejected", "wait=20")}
    assert max(t.seconds for t in told) < AT_ONCE_SECONDS
    assert (plain.status, plain.content["status"], "preference-applied" in plain.headers) == (200, "accepted", False)
    assert (patient.content["status"], patient.headers["preference-applied"]) == ("accepted", "wait=3")
    assert patient.seconds >= 3
    # One look for all of them, whenever it is time for one.
    assert looks <= 1 + plain.seconds / seats.LOOK_SECONDS
    assert seated._seats == set()


def test_many_who_are_told_together_take_no_place_from_others(bank: Bank, web: Web, room: Any) -> None:
    transfer_id, seated, places = _ordered(bank), room(100), 8
    web.start(queue_max=places)

    async def crowd() -> tuple[list[Exchange], list[Exchange]]:
        callers = list[asyncio.Task[Exchange]]()
        for _ in range(5):
            callers.extend(asyncio.create_task(web.get(bank.as_anna, transfer_id, LONG)) for _ in range(places))
            await _until(lambda: len(seated._seats) == len(callers))
        await _moved(transfer_id, Status.REJECTED)
        await _until(lambda: web.again_max > 0)
        others = list[Exchange]()
        while not all(caller.done() for caller in callers):
            others += await asyncio.gather(*(web.get(bank.as_anna, transfer_id) for _ in range(places)))
        return list(await asyncio.gather(*callers)), others

    told, others = asyncio.run(crowd())

    assert {(t.status, t.content["status"], t.headers.get("preference-applied")) for t in told} == {
        (200, "rejected", "wait=20")
    }
    assert len(others) >= places
    assert {other.status for other in others} == {200}
    # One of the threads is for new requests only.
    assert web.again_max == 1
    assert seated._seats == set()


def test_a_seat_is_taken_until_its_caller_is_answered(room: Any) -> None:
    subject, never = uuid4(), Exchange()
    seated = room(2, lambda ids: [subject])

    async def wait() -> Any:
        assert seated.take(uuid4(), 5) is not None
        seat = seated.take(subject, 0.3)
        assert await seat.wait(never.client_disconnect())
        # Its time is up as well, and the room was looked through since.
        await asyncio.sleep(0.3 + 3 * seats.LOOK_SECONDS)
        assert seated.take(uuid4(), 1) is None
        seat.leave()
        return seated.take(uuid4(), 0.1)

    assert asyncio.run(wait()) is not None


def test_a_process_that_stops_answers_who_waits_and_seats_nobody(bank: Bank, web: Web, room: Any) -> None:
    transfer_id, seated = _ordered(bank), room(100)

    async def stopped() -> list[Exchange]:
        callers = [asyncio.create_task(web.get(bank.as_anna, transfer_id, LONG)) for _ in range(20)]
        await _until(lambda: len(seated._seats) == 20)
        web.front.stop()
        return [*await asyncio.gather(*callers), await web.get(bank.as_anna, transfer_id, LONG)]

    answers = asyncio.run(stopped())

    # None of them waited for as long as it asked for.
    assert {(a.status, a.content["status"], a.headers.get("preference-applied")) for a in answers} == {
        (200, "accepted", None)
    }
    assert max(answer.seconds for answer in answers) < AT_ONCE_SECONDS
    assert seated._seats == set()


@pytest.mark.parametrize("path", [[], [Status.IN_REVIEW], [Status.PARKED], [Status.APPROVED]])
def test_what_has_not_ended_is_waited_for(bank: Bank, web: Web, path: list[Status]) -> None:
    transfer_id = _ordered(bank)
    move(transfer_id, *path)

    answer = asyncio.run(web.get(bank.as_anna, transfer_id, "wait=1"))

    assert answer.seconds >= 1
    expected = str(path[-1]) if path else "accepted"
    assert (answer.content["status"], answer.headers["preference-applied"]) == (expected, "wait=1")


def test_a_decision_within_the_time_is_told(bank: Bank, web: Web, room: Any) -> None:
    transfer_id, seated = _ordered(bank), room(1)
    move(transfer_id, Status.IN_REVIEW)

    async def decided() -> Exchange:
        caller = asyncio.create_task(web.get(bank.as_anna, transfer_id, LONG))
        await _until(lambda: len(seated._seats) == 1)
        await _moved(transfer_id, Status.APPROVED, Status.POSTED)
        return await caller

    answer = asyncio.run(decided())

    assert (answer.content["status"], answer.headers["preference-applied"]) == ("posted", "wait=20")
    assert answer.seconds < AT_ONCE_SECONDS


def test_what_has_ended_is_shown_at_once(bank: Bank, web: Web, room: Any) -> None:
    transfer_id = _ordered(bank)
    move(transfer_id, Status.CANCELLED)
    # No seat is needed for it.
    room(0)

    answer = asyncio.run(web.get(bank.as_anna, transfer_id, LONG))

    assert (answer.content["status"], answer.headers["preference-applied"]) == ("cancelled", "wait=20")
    assert answer.seconds < AT_ONCE_SECONDS


def test_waiting_tells_nothing_of_what_the_caller_may_not_see(bank: Bank, web: Web, room: Any) -> None:
    def nobody(_: Any) -> list[UUID]:
        pytest.fail("somebody waits")

    transfer_id, seated = _ordered(bank), room(10, nobody)

    # Bruno is the payee, who sees it once it is posted.
    hidden = asyncio.run(web.get(bank.as_bruno, transfer_id, LONG))
    unknown = asyncio.run(web.get(bank.as_bruno, uuid4(), LONG))
    without = asyncio.run(web.get(Caller("no.token"), transfer_id, LONG))

    assert [hidden.status, unknown.status, without.status] == [404, 404, 401]
    for answer in (hidden, unknown):
        assert answer.content.pop("request_id") == answer.headers.pop("x-request-id")
    assert (hidden.content, hidden.headers) == (unknown.content, unknown.headers)
    assert "preference-applied" not in hidden.headers
    assert max(answer.seconds for answer in (hidden, unknown, without)) < AT_ONCE_SECONDS
    assert seated._seats == set()


def test_a_token_that_is_revoked_meanwhile_sees_nothing(bank: Bank, web: Web, room: Any, settings: Any) -> None:
    transfer_id, seated, settings.TOKEN_CACHE_SECONDS = _ordered(bank), room(1), 0.0

    async def revoked() -> Exchange:
        caller = asyncio.create_task(web.get(bank.as_anna, transfer_id, "wait=2"))
        await _until(lambda: len(seated._seats) == 1)
        await asyncio.to_thread(_revoke_all)
        return await caller

    assert asyncio.run(revoked()).status == 401


def test_it_is_told_so_also_by_a_process_that_stops(bank: Bank, web: Web, room: Any, settings: Any) -> None:
    transfer_id, seated, settings.TOKEN_CACHE_SECONDS = _ordered(bank), room(1), 0.0

    async def revoked() -> Exchange:
        caller = asyncio.create_task(web.get(bank.as_anna, transfer_id, LONG))
        await _until(lambda: len(seated._seats) == 1)
        await asyncio.to_thread(_revoke_all)
        BearerAuthentication.forget()
        web.front.stop()
        return await caller

    assert asyncio.run(revoked()).status == 401


def _revoke_all() -> None:
    try:
        ApiToken.objects.update(revoked=True)
    finally:
        connections.close_all()


def test_one_too_many_is_answered_at_once_and_a_client_who_goes_frees_its_seat(bank: Bank, web: Web, room: Any) -> None:
    transfer_id, seated = _ordered(bank), room(1)

    async def come_and_go() -> tuple[Exchange, Exchange, Exchange]:
        first = Exchange()
        caller = asyncio.create_task(web.get(bank.as_anna, transfer_id, LONG, first))
        await _until(lambda: len(seated._seats) == 1)
        too_many = await web.get(bank.as_anna, transfer_id, LONG)
        first.gone.set()
        await caller
        return first, too_many, await web.get(bank.as_anna, transfer_id, "wait=1")

    first, too_many, next_one = asyncio.run(come_and_go())

    assert (too_many.status, too_many.content["status"]) == (200, "accepted")
    assert "preference-applied" not in too_many.headers
    assert too_many.seconds < AT_ONCE_SECONDS
    assert (first.status, first.seconds < AT_ONCE_SECONDS) == (0, True)
    assert next_one.headers["preference-applied"] == "wait=1"


def test_who_waits_is_told_at_the_end_of_the_time_while_nobody_can_look(bank: Bank, web: Web, room: Any) -> None:
    looks = list[int]()

    def away(ids: list[UUID]) -> list[UUID]:
        looks.append(len(ids))
        if len(looks) == 1:
            raise OperationalError("away")
        return waiting._ended(ids)

    transfer_id = _ordered(bank)
    room(5, away)

    async def both() -> tuple[Exchange, Exchange]:
        early = await web.get(bank.as_anna, transfer_id, "wait=1")
        late = asyncio.create_task(web.get(bank.as_anna, transfer_id, LONG))
        await _until(lambda: len(looks) > 1)
        await _moved(transfer_id, Status.REJECTED)
        return early, await late

    early, late = asyncio.run(both())

    assert (early.content["status"], early.headers["preference-applied"]) == ("accepted", "wait=1")
    assert late.content["status"] == "rejected"
    assert late.seconds < AT_ONCE_SECONDS


def test_a_seat_that_nobody_gave_back_is_free_when_its_time_is_up(room: Any) -> None:
    seated = room(1, lambda ids: [])
    assert seated.take(uuid4(), 0.2) is not None
    assert seated.take(uuid4(), 0.2) is None

    deadline = time.monotonic() + AT_ONCE_SECONDS
    while seated.take(uuid4(), 0.0) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_without_a_front_nobody_waits(bank: Bank) -> None:
    response = bank.as_anna.get(f"transfers/{_ordered(bank)}", prefer=LONG)

    assert response.json()["status"] == "accepted"
    assert "Preference-Applied" not in response
