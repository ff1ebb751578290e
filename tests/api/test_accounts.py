"""Accounts and tokens: who may see, who may open, and what a token is worth."""

import io
import time
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from accounts.access import SCOPES, BearerAuthentication
from accounts.models import Account, ApiToken
from bankcore.messaging.models import Event
from tests.api.conftest import Caller, issue
from tests.api.test_transfers import move
from transfers.posting import post_transfers
from transfers.states import Status

PATHS = ["accounts", "transfers", "accounts/x", "accounts/x/balance", "accounts/x/entries", "batches/x", "transfers/x"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("token", ["", "x", "abcdefgh." + "a" * 32, "a\x00b", "é"])
def test_without_a_good_token_nothing_is_told(bank: Any, assert_refused: Any, path: str, token: str) -> None:
    response = Caller(token).get(path)

    assert_refused(response, 401, "authentication_failed")
    assert response["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("path", PATHS)
def test_without_any_token_a_caller_is_asked_for_one(bank: Any, assert_refused: Any, client: Any, path: str) -> None:
    response = client.get(f"/api/v1/{path}")

    assert_refused(response, 401, "not_authenticated")
    assert response["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("path", PATHS)
def test_a_token_needs_the_scope(bank: Any, assert_refused: Any, path: str) -> None:
    caller = issue("narrow", ["ops:replay"], customer=bank.anna)

    assert_refused(caller.get(path), 403, "scope_missing")


def test_reading_is_not_writing(bank: Any, assert_refused: Any) -> None:
    caller = issue("reader", ["accounts:read", "transfers:read"], customer=bank.anna)

    assert_refused(caller.order(bank.body()), 403, "scope_missing")
    assert_refused(caller.post("accounts", {"currency": "EUR"}), 403, "scope_missing")
    assert_refused(caller.post("batches", {"transfers": [bank.body()]}), 403, "scope_missing")


def test_a_revoked_token_stops_within_the_cache_time(bank: Any, settings: Any) -> None:
    settings.TOKEN_CACHE_SECONDS = 0.2
    BearerAuthentication.forget()
    assert bank.as_anna.get("accounts").status_code == 200

    ApiToken.objects.filter(customer=bank.anna).update(revoked=True)
    time.sleep(0.25)

    assert bank.as_anna.get("accounts").status_code == 401


def test_expired_and_inactive_tokens_are_refused(bank: Any) -> None:
    expired = issue("old", list(SCOPES), customer=bank.anna, expiry_date=timezone.now() - timedelta(seconds=1))
    token = ApiToken.objects.get(name="desk")
    token.staff_user.is_active = False
    token.staff_user.save()

    assert expired.get("accounts").status_code == 401
    assert bank.as_staff.get("accounts").status_code == 401


def test_a_customer_opens_an_account_for_itself(bank: Any) -> None:
    response = bank.as_anna.post("accounts", {"currency": "JPY", "name": "Trips"})

    shown = response.json()
    assert (response.status_code, response["Location"]) == (201, f"/api/v1/accounts/{shown['id']}")
    assert {name: value for name, value in shown.items() if name not in ("id", "created_at")} == {
        "customer": str(bank.anna.id), "name": "Trips", "currency": "JPY", "status": "open", "posted_minor": 0,
        "held_minor": 0, "limit_minor": 0,
    }  # fmt: skip
    event = Event.objects.get()
    assert (event.type, event.subject, event.actor) == ("account.opened", shown["id"], "shop")
    assert bank.as_anna.get(f"accounts/{shown['id']}").json() == shown
    assert bank.as_bruno.get(f"accounts/{shown['id']}").status_code == 404


@pytest.mark.parametrize(
    "changes",
    [
        {"currency": "eur"}, {"limit_minor": 5}, {"posted_minor": 5}, {"name": "a\nb"}, {"customer": "x"},
        {"customer": "other"}, {"currency": ...},
    ],
)  # fmt: skip
def test_what_a_customer_may_not_say_opens_nothing(bank: Any, assert_refused: Any, changes: dict[str, Any]) -> None:
    body = {"currency": "EUR", **changes}
    if changes.get("customer") == "other":
        body["customer"] = str(bank.bruno.id)
    body = {name: value for name, value in body.items() if value is not ...}

    assert_refused(bank.as_anna.post("accounts", body), 400, "validation_error")
    assert Account.objects.count() == 2


def test_staff_opens_an_account_for_anyone(bank: Any) -> None:
    body = {"currency": "EUR", "customer": str(bank.bruno.id), "limit_minor": 500}

    shown = bank.as_staff.post("accounts", body).json()

    assert (shown["customer"], shown["limit_minor"]) == (str(bank.bruno.id), 500)


def test_lists_show_the_callers_accounts(bank: Any) -> None:
    assert [a["id"] for a in bank.as_anna.get("accounts").json()["results"]] == [str(bank.annas.id)]
    assert len(bank.as_staff.get("accounts?currency=EUR&status=open").json()["results"]) == 2
    assert bank.as_anna.get("accounts?status=frozen").json()["results"] == []


@pytest.mark.parametrize("what", ["", "/balance", "/entries"])
def test_another_customers_account_is_not_there(bank: Any, what: str) -> None:
    foreign = bank.as_anna.get(f"accounts/{bank.brunos.id}{what}")
    absent = bank.as_anna.get(f"accounts/{bank.anna.id}{what}")

    assert foreign.status_code == absent.status_code == 404
    assert {**foreign.json(), "request_id": ""} == {**absent.json(), "request_id": ""}


def test_a_balance_of_the_future_is_refused(bank: Any, assert_refused: Any) -> None:
    assert_refused(
        bank.as_anna.get(f"accounts/{bank.annas.id}/balance?at=2099-01-01T00:00:00Z"), 400, "validation_error"
    )
    past = bank.as_anna.get(f"accounts/{bank.annas.id}/balance?at=2020-01-01T00:00:00Z").json()
    assert (past["posted_minor"], past["available_minor"], past["as_of"]) == (0, None, "2020-01-01T00:00:00.000000Z")


def test_the_command_prints_a_working_token_alone(bank: Any) -> None:
    out = io.StringIO()
    call_command(
        "issue_token", client="till", scopes="accounts:read, transfers:read", customer=str(bank.anna.id), stdout=out
    )

    token = out.getvalue().removesuffix("\n")
    assert "\n" not in token
    assert Caller(token).get("accounts").status_code == 200


@pytest.mark.parametrize(("scopes", "said"), [("transfers:write", True), ("transfers:write staff", False)])
def test_the_command_says_of_a_token_that_it_sees_nothing(bank: Any, scopes: str, said: bool) -> None:
    err = io.StringIO()

    call_command("issue_token", client="till", scopes=scopes, stdout=io.StringIO(), stderr=err)

    assert ("It sees no account" in err.getvalue()) is said


@pytest.mark.parametrize(
    "options",
    [
        {"scopes": "accounts:read everything"}, {"scopes": ""}, {"customer": "x"}, {"staff_user": "nobody"},
        {"expires_days": 0}, {"client": "a@b"}, {"client": "n" * 51},
    ],
)  # fmt: skip
def test_the_command_refuses_nonsense(bank: Any, options: dict[str, Any]) -> None:
    before = ApiToken.objects.count()

    with pytest.raises(CommandError):
        call_command("issue_token", **{"client": "till", "scopes": "accounts:read", **options})

    assert ApiToken.objects.count() == before


def test_unknown_scopes_are_answered_with_the_valid_ones(bank: Any) -> None:
    with pytest.raises(CommandError, match="transfers:write"):
        call_command("issue_token", client="till", scopes="everything")


def test_what_may_still_be_posted_is_pending(bank: Any) -> None:
    paths: list[list[Status]] = [[], [Status.IN_REVIEW], [Status.APPROVED], [Status.PARKED], [Status.CANCELLED]]
    for amount_minor, path in zip((1, 10, 100, 1000, 10_000), paths, strict=True):
        move(bank.as_anna.order(bank.body(amount_minor=amount_minor)).json()["id"], *path)
    bank.as_anna.order(bank.body(amount_minor=100_000, execute_on="2099-01-01"))

    balance = bank.as_anna.get(f"accounts/{bank.annas.id}/balance").json()

    assert (balance["pending_minor"], balance["available_minor"]) == (1111, -1111)


def test_posted_money_shows_in_the_balance_and_the_lines(bank: Any) -> None:
    vault = Account.objects.create(customer=None, currency="EUR", limit_minor=None)
    references = []
    for amount_minor in (700, 300):
        body = bank.body(debit_account=str(vault.id), credit_account=str(bank.annas.id), amount_minor=amount_minor)
        transfer_id = bank.as_staff.order(body).json()["id"]
        move(transfer_id, Status.APPROVED)
        post_transfers([UUID(transfer_id)])
        references.append(f"transfer:{transfer_id}")

    balance = bank.as_anna.get(f"accounts/{bank.annas.id}/balance").json()
    lines = bank.as_anna.get(f"accounts/{bank.annas.id}/entries").json()["results"]
    older = bank.as_anna.get(f"accounts/{bank.annas.id}/entries?page_size=1").json()["next"].partition("/api/v1/")[2]
    first_at = lines[1]["created_at"]

    assert (balance["posted_minor"], balance["available_minor"], balance["pending_minor"]) == (1000, 1000, 0)
    assert [(n["number"], n["entry"], n["side"], n["amount_minor"], n["balance_after_minor"]) for n in lines] == [
        (2, references[1], "C", 300, 1000),
        (1, references[0], "C", 700, 700),
    ]
    assert bank.as_anna.get(older).json()["results"] == lines[1:]
    assert bank.as_anna.get(f"accounts/{bank.annas.id}/balance?at={first_at}").json()["posted_minor"] == 700
    assert bank.as_anna.get(f"accounts/{vault.id}/entries").status_code == 404
