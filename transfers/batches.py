"""Taking many orders in one request and one transaction: all or nothing, or the good ones only."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import transaction
from psycopg.types.json import Jsonb
from pydantic import ValidationError

from accounts.access import Client
from bankcore.api import ERRORS_MAX, field_errors
from bankcore.database import fetch_all
from bankcore.errors import BankError, FieldError, Invalid
from bankcore.identifiers import new_id
from bankcore.logs import current_request_id
from bankcore.metrics import admission, count_transfers, stage_seconds
from transfers.errors import BatchRefused, ExternalIdReused, IdempotencyKeyReused
from transfers.models import Batch
from transfers.orders import TransferOrder, fingerprint, read_accounts, refusal
from transfers.rowfiles import BrokenRow, WrongAmount

# Ten thousand rows that are wrong all over must not fill the memory with what is wrong.
ROW_ERRORS_MAX = 20
ROW_FIELDS_MAX = 50


@dataclass(frozen=True, slots=True)
class BatchAccepted:
    """The batch as it was when it was accepted, with how many transfers began in which status."""

    batch: Batch
    status_counts: dict[str, int]
    replayed: bool
    # What is wrong with the rows that were not accepted: up to `errors_max`, or those that the batch keeps.
    errors: Sequence[FieldError]


@dataclass(slots=True)
class _Rows:
    """The orders still standing, by their place in the request, and what is wrong with the others."""

    orders: dict[int, TransferOrder]
    malformed: list[FieldError]
    refused: list[FieldError]
    # Of a file: the line on which each row begins.
    lines: Sequence[int] = ()

    @property
    def errors(self) -> list[FieldError]:
        errors = sorted([*self.malformed, *self.refused], key=_place)
        if not self.lines:
            return errors
        return [FieldError(e.field, e.code, f"Line {self.lines[_place(e)]}: {e.message}") for e in errors]

    def refuse(self, place: int, error: BankError) -> None:
        del self.orders[place]
        for found in error.errors or [FieldError("external_id", error.code, f"{error.title}.")]:
            inner = FieldError(f"transfers.{place}.{found.field}", found.code, found.message)
            (self.malformed if isinstance(error, Invalid) else self.refused).append(inner)


def _place(error: FieldError) -> int:
    return int(error.field.split(".")[1])


def accept_batch(
    rows: Sequence[Any],
    *,
    atomic: bool,
    client: Client,
    idempotency_key: str | None,
    lines: Sequence[int] = (),
    errors_max: int = ERRORS_MAX,
) -> BatchAccepted:
    """Write down every order of `rows` (parsed JSON), or with `atomic` false every good one, in one transaction.

    `lines` says on which line of a file each row begins; what is wrong with it then says so.
    The batch keeps up to ERRORS_MAX errors; `errors_max` is for those that are answered or raised.

    Raises:
        Invalid: atomic, and some rows are malformed.
        BatchRefused: atomic, and some rows cannot be taken; or not atomic, and none can.
        IdempotencyKeyReused: the key came with another batch.
    """
    started = time.monotonic()
    digest = fingerprint([atomic, rows])
    if idempotency_key is not None and (earlier := _replay(client, idempotency_key, digest)):
        return earlier
    good = _checked(rows, client, lines)
    _decide(good, atomic=atomic, errors_max=errors_max)
    with transaction.atomic():
        batch = Batch(
            id=new_id(), client=client.namespace, idempotency_key=idempotency_key, fingerprint=digest, atomic=atomic
        )
        if not _claim_key(batch):
            # Another request with this key was faster; its answer is this one's as well.
            earlier = _replay(client, idempotency_key or "", digest)
            if earlier is not None:
                return earlier
        _insert(batch, good, client)
        _decide(good, atomic=atomic, errors_max=errors_max)
        _complete(batch, good)
    counts = _counts_at_acceptance(batch.id)
    count_transfers((status, "") for status in Counter(counts).elements())
    admission.labels("accepted").inc(len(good.orders))
    stage_seconds.labels("accept").observe(time.monotonic() - started)
    return BatchAccepted(batch, counts, replayed=False, errors=_capped(good.errors, errors_max))


def _checked(rows: Sequence[Any], client: Client, lines: Sequence[int]) -> _Rows:
    checked = _Rows(orders={}, malformed=[], refused=[], lines=lines)
    for place, row in enumerate(rows):
        if unreadable := _unreadable(row):
            checked.malformed.append(FieldError(f"transfers.{place}", "malformed_row", unreadable))
            continue
        try:
            checked.orders[place] = TransferOrder.model_validate(row)
        except ValidationError as error:
            found = field_errors(error, prefix=("transfers", str(place)))[:ROW_ERRORS_MAX]
            checked.malformed.extend(_with_amount_explained(found, row))
    accounts = read_accounts({a for o in checked.orders.values() for a in (o.debit_account, o.credit_account)})
    seen: set[str] = set()
    for place, order in list(checked.orders.items()):
        refused = refusal(order, accounts, client)
        if refused is None and order.external_id is not None:
            if order.external_id in seen:
                refused = ExternalIdReused()
            seen.add(order.external_id)
        if refused is not None:
            checked.refuse(place, refused)
    return checked


def _with_amount_explained(errors: list[FieldError], row: Any) -> list[FieldError]:
    """Say of an amount in CSV, which is text until it is read, what is wrong with it as it stands there."""
    amount = row.get("amount_minor") if isinstance(row, dict) else None
    if not isinstance(amount, WrongAmount):
        return errors
    return [FieldError(e.field, e.code, amount.why) if e.code == "int_type" else e for e in errors]


def check_rows(rows: Sequence[Any], *, client: Client, lines: Sequence[int] = ()) -> tuple[int, Sequence[FieldError]]:
    """Say how many of the rows accept_batch would take now, and all that is wrong with the others. Writes nothing."""
    checked = _checked(rows, client, lines)
    external_ids = {order.external_id: place for place, order in checked.orders.items() if order.external_id}
    for (taken,) in fetch_all(_TAKEN, (client.namespace, list(external_ids))) if external_ids else ():
        checked.refuse(external_ids[taken], ExternalIdReused())
    return len(checked.orders), checked.errors


_TAKEN = "SELECT external_id FROM transfers_transfer WHERE client = %s AND external_id = ANY(%b::text[])"


def _unreadable(row: Any) -> str:
    """Say why a row is not even looked at: its line could not be read, or it would be wrong in very many places."""
    if isinstance(row, BrokenRow):
        return str(row)
    if type(row) is dict and len(row) <= ROW_FIELDS_MAX and "metadata" not in row:
        return ""
    metadata = row.get("metadata") if isinstance(row, dict) else None
    sizes = [len(part) for part in (row, metadata) if isinstance(part, dict | list)]
    return f"It has more than {ROW_FIELDS_MAX} fields." if max(sizes, default=0) > ROW_FIELDS_MAX else ""


def _decide(rows: _Rows, *, atomic: bool, errors_max: int) -> None:
    if (atomic and rows.errors) or not rows.orders:
        admission.labels("refused").inc()
        malformed_only = not rows.refused
        kind = Invalid if rows.malformed and (atomic or malformed_only) else BatchRefused
        errors = _capped(rows.errors, errors_max)
        raise kind(errors=errors) if atomic else BatchRefused(errors=errors)


def _capped(errors: Sequence[FieldError], errors_max: int = ERRORS_MAX) -> list[FieldError]:
    more = len(errors) - errors_max
    told = list(errors[:errors_max])
    if more > 0:
        told.append(FieldError("transfers", "more_errors", f"{more:,} more are not listed."))
    return told


_CLAIM_KEY = """
INSERT INTO transfers_batch (id, client, idempotency_key, fingerprint, atomic, accepted, refused)
VALUES (%s, %s, %s, %s, %s, 0, '[]') ON CONFLICT DO NOTHING RETURNING created_at
"""


def _claim_key(batch: Batch) -> bool:
    columns = (batch.id, batch.client, batch.idempotency_key, batch.fingerprint, batch.atomic)
    created = fetch_all(_CLAIM_KEY, columns)
    if created:
        batch.created_at = created[0][0]
    return bool(created)


# Whole columns travel as arrays. A row whose external_id is taken inserts nothing, and no event either. Absent values
# travel as '' because an array of nothing but NULL has no type.
_INSERT = """
WITH accepted AS (
    INSERT INTO transfers_transfer
           (id, client, initiator_id, batch_id, request_id, debit_account_id, credit_account_id, amount_minor, currency,
            reference, external_id, metadata, execute_on, expires_at, status)
    SELECT r.id, %(namespace)s, %(initiator)s, %(batch)s, %(request_id)s, r.debit, r.credit, r.amount, r.currency,
           r.reference, nullif(r.external_id, ''), r.metadata::jsonb, nullif(r.execute_on, '')::date,
           nullif(r.expires_at, '')::timestamptz,
           CASE WHEN nullif(r.execute_on, '')::date > (statement_timestamp() AT TIME ZONE 'UTC')::date
                THEN 'scheduled' ELSE 'accepted' END
      FROM unnest(%(ids)b::uuid[], %(debits)b::text[]::uuid[], %(credits)b::text[]::uuid[],
                  %(amounts)b::bigint[], %(currencies)b::text[], %(references)b::text[], %(external_ids)b::text[],
                  %(metadata)b::text[], %(days)b::text[], %(expiries)b::text[])
           AS r(id, debit, credit, amount, currency, reference, external_id, metadata, execute_on, expires_at)
    ON CONFLICT DO NOTHING
    RETURNING id, debit_account_id, amount_minor, currency, execute_on
), announced AS (
    INSERT INTO messaging_event (type, partition_key, subject, data, request_id, actor, due_at)
    SELECT 'transfer.accepted', debit_account_id::text, id::text,
           jsonb_build_object('amount_minor', amount_minor, 'currency', currency), %(request_id)s, %(actor)s,
           greatest(statement_timestamp(), execute_on::timestamp AT TIME ZONE 'UTC')
      FROM accepted
     ORDER BY id
)
SELECT id FROM accepted
"""


def _insert(batch: Batch, rows: _Rows, client: Client) -> None:
    places = {new_id(): place for place in rows.orders}
    orders = list(rows.orders.values())
    columns = {
        "namespace": batch.client,
        "initiator": client.staff_user_id,
        "batch": batch.id,
        "request_id": current_request_id(),
        "actor": client.name,
        "ids": list(places),
        "debits": [order.debit_account for order in orders],
        "credits": [order.credit_account for order in orders],
        "amounts": [order.amount_minor for order in orders],
        "currencies": [order.currency for order in orders],
        "references": [order.reference for order in orders],
        "external_ids": [order.external_id or "" for order in orders],
        "metadata": [json.dumps(order.metadata) if order.metadata else "{}" for order in orders],
        "days": [str(order.execute_on or "") for order in orders],
        "expiries": [str(order.expires_at or "") for order in orders],
    }
    inserted = {row[0] for row in fetch_all(_INSERT, columns)}
    for transfer_id in places.keys() - inserted:
        rows.refuse(places[transfer_id], ExternalIdReused())


def _complete(batch: Batch, rows: _Rows) -> None:
    batch.accepted = len(rows.orders)
    batch.refused = [{"field": e.field, "code": e.code, "message": e.message} for e in _capped(rows.errors)]
    sql = "UPDATE transfers_batch SET accepted = %s::int, refused = %s WHERE id = %s RETURNING id"
    fetch_all(sql, (batch.accepted, Jsonb(batch.refused), batch.id))


_COUNTS_AT_ACCEPTANCE = """
SELECT CASE WHEN execute_on > (created_at AT TIME ZONE 'UTC')::date THEN 'scheduled' ELSE 'accepted' END, count(*)
  FROM transfers_transfer WHERE batch_id = %s GROUP BY 1 ORDER BY 1
"""
_COUNTS = "SELECT status, count(*) FROM transfers_transfer WHERE batch_id = %s GROUP BY 1 ORDER BY 1"


def _counts_at_acceptance(batch_id: UUID) -> dict[str, int]:
    return _as_counts(fetch_all(_COUNTS_AT_ACCEPTANCE, (batch_id,)))


def status_counts(batch_id: UUID) -> dict[str, int]:
    """Count the batch's transfers by their status now."""
    return _as_counts(fetch_all(_COUNTS, (batch_id,)))


def _as_counts(rows: Iterable[tuple[Any, ...]]) -> dict[str, int]:
    return {str(status): int(number) for status, number in rows}


def _replay(client: Client, idempotency_key: str, digest: bytes) -> BatchAccepted | None:
    batch = Batch.objects.filter(client=client.namespace, idempotency_key=idempotency_key).first()
    if batch is None:
        return None
    if bytes(batch.fingerprint or b"") != digest:
        raise IdempotencyKeyReused
    admission.labels("replayed").inc()
    kept = [FieldError(**error) for error in batch.refused]
    return BatchAccepted(batch, _counts_at_acceptance(batch.id), replayed=True, errors=kept)
