"""Two customers with accounts, their tokens, and a caller that speaks the API."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import Client as HttpClient

from accounts.access import SCOPES, BearerAuthentication
from accounts.models import Account, ApiToken, Customer
from bankcore.messaging.models import Event
from transfers import states
from transfers.models import Batch, Transfer
from transfers.states import Change, Status

CUSTOMER_SCOPES = ["accounts:read", "accounts:write", "transfers:read", "transfers:write"]
_numbers = count(1)


@dataclass
class Caller:
    """One client of the API with its token."""

    token: str

    def get(self, path: str, **headers: str) -> Any:
        return HttpClient().get(f"/api/v1/{path}", headers=self._headers(headers))

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        content_type = headers.pop("content_type", "application/json")
        return HttpClient().post(f"/api/v1/{path}", raw, content_type=content_type, headers=self._headers(headers))

    def order(self, body: Any, key: str | None = None, **headers: str) -> Any:
        return self.post("transfers", body, idempotency_key=key or f"key-{next(_numbers)}", **headers)

    def _headers(self, headers: dict[str, str]) -> dict[str, str]:
        spelled = {name.replace("_", "-"): value for name, value in headers.items()}
        return {"Authorization": f"Bearer {self.token}", **spelled}


@dataclass
class Bank:
    """Anna and Bruno, who hold an account each, and somebody of staff."""

    anna: Customer
    bruno: Customer
    annas: Account
    brunos: Account
    as_anna: Caller
    as_bruno: Caller
    as_staff: Caller

    def body(self, **changes: Any) -> dict[str, Any]:
        body = {
            "debit_account": str(self.annas.id),
            "credit_account": str(self.brunos.id),
            "amount_minor": 1234,
            "currency": "EUR",
        }
        return {name: value for name, value in {**body, **changes}.items() if value is not ...}


def issue(name: str, scopes: list[str], **bound: Any) -> Caller:
    return Caller(ApiToken.objects.create_key(name=name, scopes=scopes, **bound)[1])


@pytest.fixture(autouse=True)
def _forget_tokens() -> Iterator[None]:
    BearerAuthentication.forget()
    yield
    BearerAuthentication.forget()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the bank: a test database is made only if a test that was collected says that it needs one."""
    here = Path(__file__).parent
    using = [item for item in items if here in item.path.parents and "bank" in getattr(item, "fixturenames", ())]
    for item in using:
        if item.get_closest_marker("django_db") is None:
            item.add_marker(pytest.mark.django_db)


@pytest.fixture
def bank(request: pytest.FixtureRequest) -> Bank:
    request.getfixturevalue("transactional_db" if _wants_commits(request) else "db")
    anna, bruno = Customer.objects.create(name="Anna"), Customer.objects.create(name="Bruno")
    user = get_user_model().objects.create_user("sam", password=None, is_staff=True)
    return Bank(
        anna=anna,
        bruno=bruno,
        annas=Account.objects.create(customer=anna, currency="EUR"),
        brunos=Account.objects.create(customer=bruno, currency="EUR"),
        as_anna=issue("shop", CUSTOMER_SCOPES, customer=anna),
        as_bruno=issue("shop", CUSTOMER_SCOPES, customer=bruno),
        as_staff=issue("desk", list(SCOPES), staff_user=user),
    )


def _wants_commits(request: pytest.FixtureRequest) -> bool:
    marker = request.node.get_closest_marker("django_db")
    return bool(marker and marker.kwargs.get("transaction"))


def written() -> tuple[int, int, int]:
    return Transfer.objects.count(), Batch.objects.count(), Event.objects.count()


@pytest.fixture
def assert_refused() -> Callable[..., dict[str, Any]]:
    def check(response: Any, status: int, code: str, *, before: tuple[int, int, int] = (0, 0, 0)) -> dict[str, Any]:
        assert response["Content-Type"] == "application/problem+json", response.content
        problem = response.json()
        assert (response.status_code, problem["code"]) == (status, code), problem
        assert set(problem) == {"type", "title", "status", "detail", "code", "request_id", "retryable", "errors"}
        # What to do, and not the title once more.
        assert problem["detail"] not in ("", problem["title"]), problem
        assert problem["request_id"] == response["X-Request-Id"]
        assert written() == before
        return problem

    return check


def move(transfer_id: str, *path: Status) -> None:
    for status in path:
        claimed = states.claim([Transfer.objects.get(id=transfer_id).id], status=list(Status))
        states.move(claimed, [Change(claimed[0].id, status, "because" if status == Status.REJECTED else "")])
