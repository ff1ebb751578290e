"""Taking transfers: one order becomes one transfer and one event, however often and however parallel it is sent."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, connections

from accounts.models import Account
from bankcore.messaging.models import Event
from tests.api.conftest import CUSTOMER_SCOPES, issue, move, written
from transfers import intake
from transfers.models import Transfer
from transfers.states import Status


def test_an_order_becomes_a_transfer_and_an_event(bank: Any) -> None:
    response = bank.as_anna.order(bank.body(reference="rent", external_id="x-1", metadata={"b": 1, "a": None}))

    shown = response.json()
    assert response.status_code == 202
    assert response["Location"] == f"/api/v1/transfers/{shown['id']}"
    assert response["Retry-After"] == "1"
    assert {name: shown[name] for name in shown if name not in ("id", "created_at", "updated_at")} == {
        **bank.body(), "status": "accepted", "status_reason": None, "reference": "rent", "external_id": "x-1",
        "metadata": {"a": None, "b": 1}, "posted_at": None, "batch": None, "reversal_of": None, "reversed_minor": 0,
        "execute_on": None, "expires_at": None,
    }  # fmt: skip
    event = Event.objects.get()
    assert (event.type, event.partition_key, event.subject) == ("transfer.accepted", str(bank.annas.id), shown["id"])
    assert (event.actor, event.request_id, event.published_at) == ("shop", response["X-Request-Id"], None)
    assert bank.as_anna.get(f"transfers/{shown['id']}").json() == shown


def test_an_order_for_a_later_day_is_scheduled(bank: Any) -> None:
    day = (datetime.now(UTC) + timedelta(days=3)).date()

    response = bank.as_anna.order(bank.body(execute_on=str(day)))

    assert response.json()["status"] == "scheduled"
    assert Event.objects.get().due_at == datetime(day.year, day.month, day.day, tzinfo=UTC)


def test_an_order_for_today_is_accepted_at_once(bank: Any) -> None:
    response = bank.as_anna.order(bank.body(execute_on=str(datetime.now(UTC).date())))

    assert response.json()["status"] == "accepted"
    assert Event.objects.get().due_at <= datetime.now(UTC)


def test_staff_may_debit_any_account(bank: Any) -> None:
    assert bank.as_staff.order(bank.body()).status_code == 202
    assert Transfer.objects.get().initiator.username == "sam"


def test_the_same_order_again_gets_the_same_bytes(bank: Any) -> None:
    body = bank.body(metadata={"a": 1, "b": 2}, expires_at="2099-01-01T00:00:00Z")
    first = bank.as_anna.order(body, "k")
    move(first.json()["id"], Status.REJECTED)
    Account.objects.filter(id=bank.annas.id).update(status="frozen")

    spelled_otherwise = json.dumps(
        {**dict(reversed(body.items())), "metadata": {"b": 2, "a": 1}, "expires_at": "2099-01-01T01:00:00+01:00"},
        indent=2,
    )
    again = bank.as_anna.order(spelled_otherwise.encode(), "k")

    assert (again.status_code, again.content) == (202, first.content)
    assert again["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first
    assert written() == (1, 0, 1)


def test_a_key_with_another_order_is_refused(bank: Any, assert_refused: Any) -> None:
    bank.as_anna.order(bank.body(), "k")

    assert_refused(bank.as_anna.order(bank.body(amount_minor=2), "k"), 422, "idempotency_key_reused", before=(1, 0, 1))


def test_a_refused_order_burns_no_key(bank: Any) -> None:
    assert bank.as_anna.order(bank.body(amount_minor=0), "k").status_code == 400
    assert bank.as_anna.order(bank.body(currency="USD"), "k").status_code == 422

    assert bank.as_anna.order(bank.body(), "k").status_code == 202


def test_equal_keys_of_two_customers_never_meet(bank: Any) -> None:
    theirs = bank.as_anna.order(bank.body(), "k").json()
    body = bank.body(debit_account=str(bank.brunos.id), credit_account=str(bank.annas.id))

    assert bank.as_bruno.order(body, "k").json()["id"] != theirs["id"]


def test_an_external_id_is_used_once(bank: Any, assert_refused: Any) -> None:
    bank.as_anna.order(bank.body(external_id="x"))

    assert_refused(bank.as_anna.order(bank.body(external_id="x")), 409, "external_id_reused", before=(1, 0, 1))


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("external_id", [..., "x-1"])
def test_fifty_parallel_repetitions_make_one_transfer(bank: Any, external_id: Any) -> None:
    body = bank.body(external_id=external_id)

    def send(_: int) -> tuple[int, bytes, bool]:
        try:
            response = bank.as_anna.order(body, "k")
            return response.status_code, response.content, "Idempotent-Replayed" in response
        finally:
            connections.close_all()

    with ThreadPoolExecutor(25) as pool:
        answers = list(pool.map(send, range(50)))

    assert Counter(status for status, _, _ in answers) == {202: 50}
    assert len({content for _, content, _ in answers}) == 1
    assert Counter(replayed for _, _, replayed in answers) == {True: 49, False: 1}
    assert written() == (1, 0, 1)


def test_accepting_takes_one_statement(bank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bank.as_anna.get("accounts")
    statements = []
    fetch = intake.fetch_all
    for module in ("transfers.intake", "transfers.orders"):
        monkeypatch.setattr(
            f"{module}.fetch_all",
            lambda sql, params=(), **options: (statements.append(sql), fetch(sql, params, **options))[1],
        )

    with connection.execute_wrapper(lambda execute, sql, *rest: (statements.append(sql), execute(sql, *rest))[1]):
        assert bank.as_anna.order(bank.body()).status_code == 202

    assert len(statements) == 1


def test_the_statement_of_an_order_is_planned_once_for_each_connection_and_no_other_is(bank: Any) -> None:
    for _ in range(10):
        assert bank.as_anna.order(bank.body()).status_code == 202

    with connection.cursor() as cursor:
        cursor.execute("SELECT statement ~ 'INSERT INTO transfers_transfer', generic_plans FROM pg_prepared_statements")
        ((is_the_orders, plans_kept),) = cursor.fetchall()
    assert is_the_orders
    assert plans_kept >= 4


def test_a_connection_remembers_no_text_but_the_orders(bank: Any) -> None:
    """Django writes the values into the text: a remembered text of a dead letter is as large as the letter."""
    assert bank.as_anna.order(bank.body()).status_code == 202
    with connection.cursor() as cursor:
        for number in range(200):
            cursor.execute("SELECT %s", (f"letter {number}",))
    assert bank.as_anna.order(bank.body()).status_code == 202

    remembered = connection.connection._prepared
    assert not remembered._counts
    assert ["INSERT INTO transfers_transfer" in text.decode() for text, _ in remembered._names] == [True]


def test_nothing_is_prepared_where_a_pooler_cannot_have_it(bank: Any, settings: Any) -> None:
    settings.DATABASE_PREPARE = False
    with connection.cursor() as cursor:
        cursor.execute("DEALLOCATE ALL")
    connection.connection._prepared.clear()

    assert bank.as_anna.order(bank.body()).status_code == 202

    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_prepared_statements")
        assert cursor.fetchone() == (0,)


def test_the_database_being_away_is_a_503(bank: Any, assert_refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise OperationalError("connection to 10.0.0.7 refused")

    monkeypatch.setattr("transfers.intake.fetch_all", away)
    response = bank.as_anna.order(bank.body())

    problem = assert_refused(response, 503, "temporarily_unavailable")
    assert (problem["retryable"], response["Retry-After"]) == (True, "2")
    assert "10.0.0.7" not in response.content.decode()


@pytest.mark.django_db(transaction=True)
def test_a_database_that_only_reads_since_a_failover_is_a_503(bank: Any, assert_refused: Any) -> None:
    body = bank.body()
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
    try:
        response = bank.as_anna.order(body)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SET default_transaction_read_only = off")

    assert assert_refused(response, 503, "temporarily_unavailable")["retryable"]


def test_a_bug_tells_nothing(bank: Any, assert_refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("secret")

    monkeypatch.setattr("transfers.intake.fetch_all", broken)
    response = bank.as_anna.order(bank.body())

    assert_refused(response, 500, "internal_error")
    assert "secret" not in response.content.decode()


def test_pages_are_newest_first_and_stable(bank: Any) -> None:
    ids = [bank.as_anna.order(bank.body(reference=f"r{n}")).json()["id"] for n in range(5)]

    first = bank.as_anna.get("transfers?page_size=2").json()
    new = bank.as_anna.order(bank.body()).json()["id"]
    second = bank.as_anna.get(first["next"].partition("/api/v1/")[2]).json()
    third = bank.as_anna.get(second["next"].partition("/api/v1/")[2]).json()
    back = bank.as_anna.get(second["previous"].partition("/api/v1/")[2]).json()

    assert [t["id"] for page in (first, second, third) for t in page["results"]] == ids[::-1]
    assert (first["previous"], third["next"]) == (None, None)
    assert [t["id"] for t in back["results"]] == ids[:2:-1]
    assert bank.as_anna.get(back["previous"].partition("/api/v1/")[2]).json()["results"][0]["id"] == new


def test_filters_find_what_they_say(bank: Any) -> None:
    one = bank.as_anna.order(bank.body(reference="rent", external_id="x")).json()
    two = bank.as_anna.order(bank.body(reference="food")).json()
    move(two["id"], Status.REJECTED)

    def found(query: str) -> list[str]:
        return [t["id"] for t in bank.as_anna.get(f"transfers?{query}").json()["results"]]

    assert found("reference=rent") == found("external_id=x") == found("status=accepted") == [one["id"]]
    assert found("status=rejected") == [two["id"]]
    assert found(f"account={bank.annas.id}") == [two["id"], one["id"]]
    assert found(f"account={bank.brunos.id}") == [two["id"], one["id"]]
    assert found(f"account={bank.anna.id}") == found("account=x") == found("batch=x") == []
    assert found(f"created_from={one['created_at']}&created_to={two['created_at']}") == [one["id"]]
    assert found("created_from=2099-01-01T00:00:00Z") == found("created_to=0001-01-01T00:00:00Z") == []


def test_pending_debits_lower_what_is_available(bank: Any) -> None:
    for path in [[], [Status.IN_REVIEW], [Status.APPROVED], [Status.REJECTED]]:
        move(bank.as_anna.order(bank.body(amount_minor=100)).json()["id"], *path)

    balance = bank.as_anna.get(f"accounts/{bank.annas.id}/balance").json()

    assert balance.pop("as_of").endswith("Z")
    assert balance == {
        "currency": "EUR", "posted_minor": 0, "held_minor": 0, "pending_minor": 300, "available_minor": -300,
    }  # fmt: skip


def test_a_token_sees_its_customer_and_no_other(bank: Any, assert_refused: Any) -> None:
    mine = Account.objects.create(customer=bank.anna, currency="EUR")
    transfer_id = bank.as_anna.order(bank.body(credit_account=str(mine.id))).json()["id"]
    unbound = issue("nobody", CUSTOMER_SCOPES)

    for caller in (bank.as_bruno, unbound):
        assert caller.get("transfers").json()["results"] == []
        for path in (f"transfers/{transfer_id}", f"transfers/{transfer_id}/timeline", "transfers/no-id"):
            assert_refused(caller.get(path), 404, "not_found", before=(1, 0, 1))
        assert_refused(caller.post(f"transfers/{transfer_id}/cancel"), 404, "not_found", before=(1, 0, 1))
    assert len(bank.as_staff.get("transfers").json()["results"]) == 1
    assert len(bank.as_anna.get("transfers").json()["results"]) == 1


def test_an_order_is_never_lost_to_a_filter_on_many_accounts(bank: Any) -> None:
    Account.objects.bulk_create(Account(customer=bank.anna, currency="EUR") for _ in range(20))
    transfer_id = bank.as_anna.order(bank.body()).json()["id"]

    assert [t["id"] for t in bank.as_anna.get("transfers").json()["results"]] == [transfer_id]


@pytest.mark.django_db(transaction=True)
def test_the_payee_sees_the_money_and_not_the_payers_notes(bank: Any) -> None:
    body = bank.body(reference="rent", external_id="x-9", metadata={"note": "private"})
    transfer_id = bank.as_anna.order(body).json()["id"]
    assert bank.as_bruno.get("transfers").json()["results"] == []

    move(transfer_id, Status.APPROVED)
    move(transfer_id, Status.POSTED)

    seen, listed = (
        bank.as_bruno.get(f"transfers/{transfer_id}").json(),
        bank.as_bruno.get("transfers").json()["results"],
    )
    assert listed == [seen]
    assert (seen["status"], seen["reference"]) == ("posted", "rent")
    assert (seen["external_id"], seen["metadata"], seen["batch"]) == (None, {}, None)
    assert bank.as_bruno.get(f"transfers/{transfer_id}/timeline").status_code == 404
    assert bank.as_anna.get(f"transfers/{transfer_id}").json()["metadata"] == {"note": "private"}
