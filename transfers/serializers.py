"""What the transfer calls take and give, as JSON."""

from datetime import date, datetime
from typing import Annotated, Any

from django.conf import settings
from pydantic import BaseModel, Field
from rest_framework.exceptions import UnsupportedMediaType

from accounts.models import Account
from bankcore.api import media_type_of, read_body, read_model, read_query
from bankcore.errors import FieldError, Invalid
from bankcore.messaging.models import Event
from bankcore.moments import format_moment
from bankcore.wire import Problem
from transfers.intake import Beginning
from transfers.models import Batch, Transfer
from transfers.orders import BatchOrder, TransferOrder
from transfers.pending import Balance
from transfers.rowfiles import rows_of_csv, rows_of_ndjson
from transfers.states import Status

_ROW_READERS = {"application/x-ndjson": rows_of_ndjson, "text/csv": rows_of_csv}
_JSON = "application/json"
# RFC 4180 has a parameter that says whether the first line names the columns. Here it always does.
_CSV_PARAMETERS = {"header": "present"}


def read_batch_order(request: Any) -> tuple[BatchOrder, list[int]]:
    """Read a batch as one JSON object, or its rows alone as NDJSON or CSV, with `?atomic=` in the address.

    Returns the order and, of a file, the line on which each row begins.
    """
    bytes_max = settings.BATCH_BYTES_MAX
    media_type, given = media_type_of(request)
    if media_type == _JSON:
        read_query(request, {})
        return read_model(request, BatchOrder, bytes_max), []
    if media_type not in _ROW_READERS:
        known = ", ".join([_JSON, *_ROW_READERS])
        raise UnsupportedMediaType(media_type[:100], f"Send one of {known}, in UTF-8.")
    if media_type == "text/csv" and given.get("header") == "absent":
        raise UnsupportedMediaType(media_type, "The first line of CSV names the columns here: send header=present.")
    atomic = read_query(request, {"atomic": _flag}).get("atomic", True)
    parameters = _CSV_PARAMETERS if media_type == "text/csv" else {}
    file = _ROW_READERS[media_type](read_body(request, bytes_max, content_types=[media_type], parameters=parameters))
    if not file.rows:
        raise Invalid(errors=[FieldError("transfers", "too_short", "There is no row.")])
    return BatchOrder(atomic=atomic, transfers=file.rows), file.lines


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("Give true or false.")
    return text == "true"


class BatchOrderShown(BatchOrder):
    """A batch to make, as documented: each row is a transfer order."""

    transfers: Annotated[list[TransferOrder], Field(min_length=1, max_length=10_000)]


class TransferShown(BaseModel):
    id: str
    status: Status
    status_reason: str | None
    debit_account: str
    credit_account: str
    amount_minor: int
    currency: str
    reference: str
    external_id: str | None
    metadata: dict[str, str | int | bool | None]
    created_at: datetime
    updated_at: datetime
    posted_at: datetime | None
    batch: str | None
    reversal_of: str | None
    reversed_minor: int
    execute_on: date | None
    expires_at: datetime | None


class TransferPage(BaseModel):
    results: list[TransferShown]
    next: str | None
    previous: str | None


class BatchShown(BaseModel):
    id: str
    atomic: bool
    accepted: int
    refused: list[Problem.Place]
    status_counts: dict[str, int]
    created_at: datetime


class TimelineStep(BaseModel):
    type: str
    at: datetime
    reason: str | None
    request_id: str


class Timeline(BaseModel):
    results: list[TimelineStep]
    next: str | None
    previous: str | None


class BalanceShown(BaseModel):
    currency: str
    posted_minor: int
    held_minor: int | None
    pending_minor: int | None
    available_minor: int | None
    as_of: datetime


def show_transfer(transfer: Transfer | Beginning, *, to_payer: bool = True) -> dict[str, Any]:
    """Show a transfer; the payee does not see what the payer wrote down for themselves."""
    return {
        "id": str(transfer.id),
        "status": str(transfer.status),
        "status_reason": transfer.status_reason or None,
        "debit_account": str(transfer.debit_account_id),
        "credit_account": str(transfer.credit_account_id),
        "amount_minor": transfer.amount_minor,
        "currency": transfer.currency,
        "reference": transfer.reference,
        "external_id": transfer.external_id if to_payer else None,
        "metadata": dict(sorted(transfer.metadata.items())) if to_payer else {},
        "created_at": format_moment(transfer.created_at),
        "updated_at": format_moment(transfer.updated_at),
        "posted_at": transfer.posted_at and format_moment(transfer.posted_at),
        "batch": str(transfer.batch_id) if transfer.batch_id and to_payer else None,
        "reversal_of": transfer.reversal_of_id and str(transfer.reversal_of_id),
        "reversed_minor": transfer.reversed_minor,
        "execute_on": transfer.execute_on and str(transfer.execute_on),
        "expires_at": transfer.expires_at and format_moment(transfer.expires_at),
    }


def show_batch(batch: Batch, status_counts: dict[str, int]) -> dict[str, Any]:
    return {
        "id": str(batch.id),
        "atomic": batch.atomic,
        "accepted": batch.accepted,
        "refused": [{name: row[name] for name in ("field", "code", "message")} for row in batch.refused],
        "status_counts": status_counts,
        "created_at": format_moment(batch.created_at),
    }


def show_step(event: Event) -> dict[str, Any]:
    """Show what happened and when; who did it and why in detail is for staff, in the admin."""
    return {
        "type": event.type,
        "at": format_moment(event.created_at),
        "reason": event.data.get("reason") or None,
        "request_id": event.request_id,
    }


def show_balance(account: Account, balance: Balance) -> dict[str, Any]:
    return {
        "currency": account.currency,
        "posted_minor": balance.posted_minor,
        "held_minor": balance.held_minor,
        "pending_minor": balance.pending_minor,
        "available_minor": balance.available_minor,
        "as_of": format_moment(balance.as_of),
    }


def show_past_balance(account: Account, posted_minor: int, as_of: datetime) -> dict[str, Any]:
    """Only posted money has a history; holds and what was pending are of the moment."""
    return {
        "currency": account.currency,
        "posted_minor": posted_minor,
        "held_minor": None,
        "pending_minor": None,
        "available_minor": None,
        "as_of": format_moment(as_of),
    }
