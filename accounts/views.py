"""The account calls of the API: parse, authorize, call the verb, answer."""

from typing import Any

from django.conf import settings
from django.http import HttpResponse
from drf_spectacular.utils import OpenApiParameter, extend_schema

from accounts.access import find_account, visible_accounts
from accounts.models import Account, JournalLine
from accounts.opening import open_account
from accounts.serializers import AccountOrder, AccountPage, AccountShown, LinePage, show_account, show_line
from bankcore.api import read_model, read_query
from bankcore.cursors import NewestFirst
from bankcore.errors import FieldError, Invalid
from bankcore.identifiers import parse_id
from bankcore.view import View
from bankcore.wire import Problem, json_response

PAGES = [OpenApiParameter("cursor", str), OpenApiParameter("page_size", int, description="1 to 200, 50 by default.")]
PROBLEMS = dict.fromkeys((400, 401, 403, 404, 503), Problem)


def _known(values: list[str]) -> Any:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError("Give one of " + ", ".join(values) + ".")
        return text

    return parse


class Accounts(View):
    scopes = {"GET": "accounts:read", "POST": "accounts:write"}

    @extend_schema(
        operation_id="list_accounts",
        tags=["accounts"],
        description="List the accounts the caller may see, newest first.",
        parameters=[OpenApiParameter("status", str), OpenApiParameter("currency", str), *PAGES],
        responses={200: AccountPage, **PROBLEMS},
    )
    def get(self, request: Any) -> HttpResponse:
        query = read_query(request, {"status": _known(Account.Status.values), "currency": str})
        page = NewestFirst()
        accounts = page.paginate_queryset(visible_accounts(request.user).filter(**query), request)
        return page.get_paginated_response([show_account(account) for account in accounts])

    @extend_schema(
        operation_id="open_account",
        tags=["accounts"],
        description="Open an account. Only staff name another customer or set a limit.",
        request=AccountOrder,
        responses={201: AccountShown, 413: Problem, 415: Problem, **PROBLEMS},
    )
    def post(self, request: Any) -> HttpResponse:
        order = read_model(request, AccountOrder, settings.REQUEST_BYTES_MAX)
        customer_id = parse_id(order.customer) if order.customer is not None else None
        if order.customer is not None and customer_id is None:
            raise Invalid(errors=[FieldError("customer", "unknown_customer", "There is no such customer.")])
        account = open_account(
            request.user,
            currency=order.currency,
            name=order.name,
            customer_id=customer_id,
            limit_minor=order.limit_minor,
        )
        return json_response(show_account(account), 201, {"Location": f"/api/v1/accounts/{account.id}"})


class OneAccount(View):
    scopes = {"GET": "accounts:read"}

    @extend_schema(
        operation_id="get_account",
        tags=["accounts"],
        description="Show one account.",
        responses={200: AccountShown, **PROBLEMS},
    )
    def get(self, request: Any, account_id: str) -> HttpResponse:
        read_query(request, {})
        return json_response(show_account(find_account(request.user, account_id)))


class Entries(View):
    scopes = {"GET": "accounts:read"}

    @extend_schema(
        operation_id="list_account_entries",
        tags=["accounts"],
        description="List the journal lines of an account, newest first.",
        parameters=PAGES,
        responses={200: LinePage, **PROBLEMS},
    )
    def get(self, request: Any, account_id: str) -> HttpResponse:
        read_query(request, {})
        account, page = find_account(request.user, account_id), NewestFirst(key="number")
        lines = JournalLine.objects.filter(account_id=account.id).select_related("entry")
        return page.get_paginated_response([show_line(line) for line in page.paginate_queryset(lines, request)])
