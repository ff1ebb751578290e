"""The transfer calls of the API: parse, authorize, call the verb, answer."""

import re
from contextvars import copy_context
from datetime import UTC, datetime
from functools import partial
from typing import Any

from django.conf import settings
from django.db import connection
from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema

from accounts.access import find_account
from accounts.balances import posted_minor_at
from bankcore.api import problem_response, read_model, read_query
from bankcore.combining import OFFER, Part
from bankcore.cursors import NewestFirst, OldestFirst
from bankcore.errors import BankError, FieldError, Invalid, NotFound
from bankcore.messaging.backpressure import Priority, admit, check, priority_of
from bankcore.messaging.models import Event
from bankcore.moments import parse_moment
from bankcore.seats import PATIENCE
from bankcore.view import View
from bankcore.wire import Problem, body_bytes, json_response
from transfers import intake
from transfers import serializers as shapes
from transfers.batches import accept_batch, status_counts
from transfers.cancellation import cancel_transfer
from transfers.errors import BatchTooLarge, IdempotencyKeyInvalid, IdempotencyKeyMissing
from transfers.intake import Accepted, Intake
from transfers.orders import TransferOrder, too_late
from transfers.pending import read_balance
from transfers.search import find_batch, find_transfer, is_payer, transfer_sources
from transfers.states import Status
from transfers.waiting import WAIT_SECONDS_MAX, is_over

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_WAIT = re.compile(r"(?:^|,)\s*wait\s*=\s*([0-9]{1,4})\s*(?:$|[,;])")
DRAFT = "draft-ietf-httpapi-ratelimit-headers-10"
PAGES = [OpenApiParameter("cursor", str), OpenApiParameter("page_size", int, description="1 to 200, 50 by default.")]
FILTERS = [
    OpenApiParameter(name, str)
    for name in ("account", "status", "created_from", "created_to", "reference", "external_id", "batch")
]
KEY = OpenApiParameter("Idempotency-Key", str, OpenApiParameter.HEADER, required=True)
KEY_OPTIONAL = OpenApiParameter("Idempotency-Key", str, OpenApiParameter.HEADER)
PREFER = OpenApiParameter("Prefer", str, OpenApiParameter.HEADER, description="`wait=N`: up to N (20) seconds.")
# What says how to go on: sent with the answers that are named.
HEADERS = [
    OpenApiParameter(
        "Retry-After", int, OpenApiParameter.HEADER, response=[202, 429, 503], description="Seconds to wait."
    ),
    *(
        OpenApiParameter(name, str, OpenApiParameter.HEADER, response=[202, 429], description=f"As {DRAFT} has it.")
        for name in ("RateLimit", "RateLimit-Policy")
    ),
]
PROBLEMS = dict.fromkeys((400, 401, 403, 404, 503), Problem)
ORDER_PROBLEMS = dict.fromkeys((408, 409, 413, 415, 422, 429), Problem) | PROBLEMS


def _idempotency_key(request: Any, *, required: bool) -> str | None:
    key = request.META.get("HTTP_IDEMPOTENCY_KEY")
    if key is None:
        if required:
            raise IdempotencyKeyMissing
        return None
    if not _KEY.fullmatch(key):
        raise IdempotencyKeyInvalid
    return key


def _seconds_to_wait(request: Any) -> int:
    asked = _WAIT.search(request.META.get("HTTP_PREFER", "").lower())
    return min(int(asked[1]), WAIT_SECONDS_MAX) if asked else 0


def _status(text: str) -> str:
    if text not in Status.values:
        raise ValueError("Give one of " + ", ".join(Status.values) + ".")
    return text


def _accepted(content: Any, location: str, *, replayed: bool) -> HttpResponse:
    headers = {"Location": location, "Retry-After": "1"}
    return json_response(content, 202, headers | {"Idempotent-Replayed": "true"} if replayed else headers)


class Transfers(View):
    scopes = {"GET": "transfers:read", "POST": "transfers:write"}

    @extend_schema(
        operation_id="list_transfers",
        tags=["transfers"],
        description="List transfers from or to the caller's accounts, newest first.",
        parameters=[*FILTERS, *PAGES],
        responses={200: shapes.TransferPage, **PROBLEMS},
    )
    def get(self, request: Any) -> HttpResponse:
        parsers = dict.fromkeys(("account", "reference", "external_id", "batch"), str)
        moments = {"created_from": parse_moment, "created_to": parse_moment}
        filters, page = read_query(request, {**parsers, **moments, "status": _status}), NewestFirst()
        transfers = page.paginate(transfer_sources(request.user, filters), request)
        shown = [shapes.show_transfer(t, to_payer=is_payer(request.user, t)) for t in transfers]
        return page.get_paginated_response(shown)

    @extend_schema(
        operation_id="create_transfer",
        tags=["transfers"],
        description="Order a transfer. 202 means that it is durable; repeating key and body is safe. The answer never "
        "waits for the transfer's end (a `Prefer` header is ignored here): follow `Location` with `Prefer: wait=N`.",
        parameters=[KEY, *HEADERS],
        request=TransferOrder,
        responses={202: shapes.TransferShown, **ORDER_PROBLEMS},
    )
    def post(self, request: Any) -> HttpResponse:
        key = _idempotency_key(request, required=True) or ""
        self.spend("transfers", request.user.namespace)
        admit(request.user.namespace, 1, Priority.INTERACTIVE)
        order = read_model(request, TransferOrder, settings.REQUEST_BYTES_MAX)
        asked = Intake.of(order, client=request.user, idempotency_key=key)
        if (offer := request.META.get(OFFER)) is None or too_late(order):
            return _taken(asked.accept())
        offer.part = _part(asked)
        return HttpResponse()


def _taken(done: Accepted) -> HttpResponse:
    content = shapes.show_transfer(done.transfer)
    return _accepted(content, f"/api/v1/transfers/{done.transfer.id}", replayed=done.replayed)


def _part(asked: Intake) -> Part:
    """Leave the writing of an order to be done together with others'."""

    def answer(created_at: datetime | None) -> HttpResponse | None:
        return None if created_at is None else _taken(asked.accepted(created_at))

    def alone() -> HttpResponse:
        connection.close_if_unusable_or_obsolete()
        try:
            return _taken(asked.accept())
        except Exception as error:
            return problem_response(error)

    def failed(error: Exception) -> HttpResponse:
        return context.run(problem_response, error)

    context = copy_context()
    return Part(intake.write, asked.row(), answer, partial(context.run, alone), failed)


class OneTransfer(View):
    scopes = {"GET": "transfers:read"}

    @extend_schema(
        operation_id="get_transfer",
        tags=["transfers"],
        description="Show a transfer; with `Prefer: wait=N`, once it has ended (posted, rejected or cancelled) or the "
        "time is up: it may still be in review, parked or scheduled then. Where too many wait already, the answer "
        "comes at once and without `Preference-Applied`.",
        parameters=[PREFER],
        responses={200: shapes.TransferShown, **PROBLEMS},
    )
    def get(self, request: Any, transfer_id: str) -> HttpResponse:
        read_query(request, {})
        transfer, headers = find_transfer(request.user, transfer_id), {}
        seconds = _seconds_to_wait(request)
        # Only here, where the caller is known to see it: to others no wait may tell that there is such a transfer.
        if seconds and is_over(transfer, request.META.get(PATIENCE), seconds=seconds):
            headers["Preference-Applied"] = f"wait={seconds}"
        content = shapes.show_transfer(transfer, to_payer=is_payer(request.user, transfer))
        return json_response(content, headers=headers)


class Cancel(View):
    scopes = {"POST": "transfers:write"}

    @extend_schema(
        operation_id="cancel_transfer",
        tags=["transfers"],
        description="Cancel a transfer whose money has not moved yet.",
        request=None,
        responses={200: shapes.TransferShown, 409: Problem, **PROBLEMS},
    )
    def post(self, request: Any, transfer_id: str) -> HttpResponse:
        transfer = find_transfer(request.user, transfer_id)
        return json_response(shapes.show_transfer(cancel_transfer(transfer.id, client=request.user)))


class TransferTimeline(View):
    scopes = {"GET": "transfers:read"}

    @extend_schema(
        operation_id="get_timeline",
        tags=["transfers"],
        description="Show what has happened to a transfer, oldest first.",
        parameters=PAGES,
        responses={200: shapes.Timeline, **PROBLEMS},
    )
    def get(self, request: Any, transfer_id: str) -> HttpResponse:
        read_query(request, {})
        transfer = find_transfer(request.user, transfer_id)
        if not is_payer(request.user, transfer):
            raise NotFound
        events, page = Event.objects.filter(subject=str(transfer.id), type__startswith="transfer."), OldestFirst()
        shown = [shapes.show_step(event) for event in page.paginate_queryset(events, request)]
        return page.get_paginated_response(shown)


class Batches(View):
    scopes = {"POST": "transfers:write"}

    @extend_schema(
        operation_id="create_batch",
        tags=["batches"],
        description="Order up to 10,000 transfers at once: all or none (`atomic`), or those that can be taken. NDJSON "
        "has a transfer a line; the first line of CSV names its columns, which are a transfer's fields but `metadata`. "
        "Send files as they are (curl: `--data-binary @FILE`; `-d` drops line breaks). Repeating is safe with an "
        "Idempotency-Key; without one it orders again.",
        parameters=[
            KEY_OPTIONAL,
            OpenApiParameter("atomic", bool, description="For NDJSON and CSV; true by default."),
            *HEADERS,
        ],
        request={
            "application/json": shapes.BatchOrderShown,
            "application/x-ndjson": OpenApiTypes.STR,
            "text/csv": OpenApiTypes.STR,
        },
        responses={202: shapes.BatchShown, **ORDER_PROBLEMS},
    )
    def post(self, request: Any) -> HttpResponse:
        key = _idempotency_key(request, required=False)
        # Before the body is read, so that a refusal is cheap; its rows are known only afterwards.
        self.see_what_is_left("transfers", request.user.namespace)
        size = body_bytes(request.META) or 0
        check(request.user.namespace, 1, priority_of(0, size))
        try:
            order, lines = shapes.read_batch_order(request)
            if len(order.transfers) > settings.BATCH_TRANSFERS_MAX:
                raise BatchTooLarge(f"At most {settings.BATCH_TRANSFERS_MAX:,} transfers come in one batch.")
        except BankError:
            # As much as a single transfer that cannot be read.
            self.spend("transfers", request.user.namespace)
            raise
        rows = len(order.transfers)
        priority = priority_of(rows, size)
        check(request.user.namespace, rows, priority)
        # At once, and not one before the body: a batch of more than the whole limit would never fit.
        self.spend("transfers", request.user.namespace, max(1, rows))
        admit(request.user.namespace, rows, priority)
        done = accept_batch(order.transfers, atomic=order.atomic, client=request.user, idempotency_key=key, lines=lines)
        content = shapes.show_batch(done.batch, done.status_counts)
        return _accepted(content, f"/api/v1/batches/{done.batch.id}", replayed=done.replayed)


class OneBatch(View):
    scopes = {"GET": "transfers:read"}

    @extend_schema(
        operation_id="get_batch",
        tags=["batches"],
        description="Show a batch with the number of its transfers in each status.",
        responses={200: shapes.BatchShown, **PROBLEMS},
    )
    def get(self, request: Any, batch_id: str) -> HttpResponse:
        read_query(request, {})
        batch = find_batch(request.user, batch_id)
        return json_response(shapes.show_batch(batch, status_counts(batch.id)))


class BatchTransfers(View):
    scopes = {"GET": "transfers:read"}

    @extend_schema(
        operation_id="list_batch_transfers",
        tags=["batches"],
        description="List the transfers of a batch, newest first.",
        parameters=PAGES,
        responses={200: shapes.TransferPage, **PROBLEMS},
    )
    def get(self, request: Any, batch_id: str) -> HttpResponse:
        read_query(request, {})
        batch, page = find_batch(request.user, batch_id), NewestFirst()
        transfers = page.paginate_queryset(batch.transfers.all(), request)
        return page.get_paginated_response([shapes.show_transfer(transfer) for transfer in transfers])


class AccountBalance(View):
    scopes = {"GET": "accounts:read"}

    @extend_schema(
        operation_id="get_account_balance",
        tags=["accounts"],
        description="Show what is posted, held, pending and available now; or what was posted at a past moment. "
        "Pending are debits that are accepted, in review, approved or parked: not yet posted, but they may be. One "
        "scheduled for a later day is not among them, and lowers available only once it is screened on that day.",
        parameters=[OpenApiParameter("at", datetime, description="A past moment: only posted_minor is known of it.")],
        responses={200: shapes.BalanceShown, **PROBLEMS},
    )
    def get(self, request: Any, account_id: str) -> HttpResponse:
        at = read_query(request, {"at": parse_moment}).get("at")
        account = find_account(request.user, account_id)
        if at is None:
            return json_response(shapes.show_balance(account, read_balance(account.id)))
        if at > datetime.now(UTC):
            raise Invalid(errors=[FieldError("at", "in_the_future", "Give a moment that has passed.")])
        return json_response(shapes.show_past_balance(account, posted_minor_at(account.id, at), at))
