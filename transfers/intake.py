"""Taking an order: checks, then one statement that writes the transfer and its event together. No lock, no broker."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, NamedTuple
from uuid import UUID

from accounts.access import Client
from bankcore.database import fetch_all
from bankcore.errors import BankError, Unavailable
from bankcore.identifiers import new_id, parse_id
from bankcore.logs import current_request_id
from bankcore.metrics import admission, count_transfers, stage_seconds
from transfers.errors import ExternalIdReused, IdempotencyKeyReused
from transfers.orders import TransferOrder, read_accounts, refusal, too_late
from transfers.states import Status


@dataclass(frozen=True, slots=True)
class Beginning:
    """A transfer as it was when it was accepted, with a transfer's fields; a model's instance costs tenfold."""

    id: UUID
    debit_account_id: str
    credit_account_id: str
    amount_minor: int
    currency: str
    reference: str
    external_id: str | None
    metadata: dict[str, Any]
    execute_on: date | None
    expires_at: datetime | None
    status: Status
    created_at: datetime
    updated_at: datetime
    status_reason: str = ""
    posted_at: datetime | None = None
    batch_id: UUID | None = None
    reversal_of_id: UUID | None = None
    reversed_minor: int = 0


@dataclass(frozen=True, slots=True)
class Accepted:
    """How the transfer began, the same for every repetition of the request."""

    transfer: Beginning
    replayed: bool


class Row(NamedTuple):
    """An order as the statement takes it, column by column; absent values are '', 0 or the id of nobody."""

    id: UUID
    namespace: str
    actor: str
    initiator: int
    is_staff: bool
    customer: UUID
    key: str
    fingerprint: bytes
    debit: UUID
    credit: UUID
    amount: int
    currency: str
    reference: str
    external_id: str
    metadata: str
    execute_on: str
    expires_at: str
    request_id: str


_NOBODY = UUID(int=0)
_accept_seconds, _accepted = stage_seconds.labels("accept"), admission.labels("accepted")

# One statement is one transaction and one round trip, which is why this does not go through outbox.record. It leaves
# out an order that the accounts do not allow (`orders.refusal` has the same rules and says why), or whose key or
# external_id is taken: whoever comes second with one waits here for the first to commit. Keys are taken in their order,
# so that two lots of orders never wait for each other. OFFSET 0 keeps each look at an account a look into its index.
_ACCEPT = """
WITH asked AS (
    SELECT * FROM unnest(
        %b::uuid[], %b::text[], %b::text[], %b::bigint[], %b::bool[], %b::uuid[], %b::text[], %b::bytea[], %b::uuid[],
        %b::uuid[], %b::bigint[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[])
        AS r(id, namespace, actor, initiator, is_staff, customer, key, fingerprint, debit, credit, amount, currency,
             reference, external_id, metadata, execute_on, expires_at, request_id)
), accepted AS (
    INSERT INTO transfers_transfer
           (id, client, initiator_id, idempotency_key, fingerprint, debit_account_id, credit_account_id, amount_minor,
            currency, reference, external_id, metadata, execute_on, expires_at, request_id, status)
    SELECT r.id, r.namespace, nullif(r.initiator, 0), r.key, r.fingerprint, r.debit, r.credit, r.amount,
           r.currency, r.reference, nullif(r.external_id, ''), r.metadata::jsonb, nullif(r.execute_on, '')::date,
           nullif(r.expires_at, '')::timestamptz, r.request_id,
           CASE WHEN nullif(r.execute_on, '')::date > (statement_timestamp() AT TIME ZONE 'UTC')::date
                THEN 'scheduled' ELSE 'accepted' END
      FROM asked AS r
     CROSS JOIN LATERAL (SELECT * FROM accounts_account WHERE id = r.debit OFFSET 0) AS d
     CROSS JOIN LATERAL (SELECT * FROM accounts_account WHERE id = r.credit OFFSET 0) AS c
     WHERE d.status = 'open' AND c.status = 'open' AND d.currency = r.currency AND c.currency = r.currency
       AND (r.is_staff OR d.customer_id = r.customer)
     ORDER BY r.namespace, r.key
    ON CONFLICT DO NOTHING
    RETURNING id, created_at, debit_account_id, amount_minor, currency, request_id, execute_on
), announced AS (
    INSERT INTO messaging_event (type, partition_key, subject, data, request_id, actor, due_at)
    SELECT 'transfer.accepted', a.debit_account_id::text, a.id::text,
           jsonb_build_object('amount_minor', a.amount_minor, 'currency', a.currency), a.request_id, r.actor,
           greatest(statement_timestamp(), a.execute_on::timestamp AT TIME ZONE 'UTC')
      FROM accepted AS a JOIN asked AS r USING (id)
     ORDER BY a.id
)
SELECT id, created_at FROM accepted
"""


def write(rows: Sequence[Row]) -> list[datetime | None]:
    """Write the orders down, with their events; answer when each was accepted, or None where it was not."""
    written = dict(fetch_all(_ACCEPT, [list(column) for column in zip(*rows, strict=True)], keep_plan=True))
    return [written.get(row.id) for row in rows]


_BY_KEY = "SELECT id, fingerprint, created_at FROM transfers_transfer WHERE client = %s AND idempotency_key = %s"
_BY_EXTERNAL_ID = "SELECT id FROM transfers_transfer WHERE client = %s AND external_id = %s::text"


@dataclass(frozen=True, slots=True)
class Intake:
    """One order that comes in. What a row written together with others' needs, and what to make of the result."""

    order: TransferOrder
    client: Client
    idempotency_key: str
    fingerprint: bytes
    transfer_id: UUID
    started: float

    @classmethod
    def of(cls, order: TransferOrder, *, client: Client, idempotency_key: str) -> "Intake":
        return cls(order, client, idempotency_key, order.fingerprint(), new_id(), time.monotonic())

    def row(self) -> Row:
        """The order for `write`, which may be repeated, together with others' or alone."""
        return _row(self.transfer_id, self.order, self.client, self.idempotency_key, self.fingerprint)

    def accepted(self, created_at: datetime) -> Accepted:
        """Say how the transfer began that was written down at this moment, and count it."""
        transfer = _as_accepted(self.order, self.transfer_id, created_at)
        _accept_seconds.observe(time.monotonic() - self.started)
        _accepted.inc()
        count_transfers([(str(transfer.status), "")])
        return Accepted(transfer, replayed=False)

    def accept(self) -> Accepted:
        """Write it down by itself; as accept_transfer says."""
        created_at = None if too_late(self.order) else write([self.row()])[0]
        if created_at is not None:
            return self.accepted(created_at)
        # A repetition gets its first answer, whatever has become of the accounts since.
        if earlier := _replay(self.order, self.client, self.idempotency_key, self.fingerprint):
            return earlier
        admission.labels("refused").inc()
        raise _why_not(self.order, self.client)


def accept_transfer(order: TransferOrder, *, client: Client, idempotency_key: str) -> Accepted:
    """Write the order down durably, so that it will reach its end whatever fails from here on.

    Repeating it with the same key and the same order returns the first transfer and writes nothing.

    Raises:
        IdempotencyKeyReused: the key came with another order.
        ExternalIdReused: another transfer of this client has the external_id.
        BankError: the accounts do not allow it (`orders.refusal`).
    """
    return Intake.of(order, client=client, idempotency_key=idempotency_key).accept()


def _row(transfer_id: UUID, order: TransferOrder, client: Client, idempotency_key: str, fingerprint: bytes) -> Row:
    return Row(
        id=transfer_id,
        namespace=client.namespace,
        actor=client.name,
        initiator=client.staff_user_id or 0,
        is_staff=client.is_staff,
        customer=client.customer_id or _NOBODY,
        key=idempotency_key,
        fingerprint=fingerprint,
        debit=parse_id(order.debit_account) or _NOBODY,
        credit=parse_id(order.credit_account) or _NOBODY,
        amount=order.amount_minor,
        currency=order.currency,
        reference=order.reference,
        external_id=order.external_id or "",
        metadata=json.dumps(order.metadata) if order.metadata else "{}",
        execute_on=str(order.execute_on or ""),
        expires_at=str(order.expires_at or ""),
        request_id=current_request_id(),
    )


def _why_not(order: TransferOrder, client: Client) -> BankError:
    if refused := refusal(order, read_accounts((order.debit_account, order.credit_account)), client):
        return refused
    if fetch_all(_BY_EXTERNAL_ID, (client.namespace, order.external_id)):
        return ExternalIdReused()
    # An account has become usable between the two looks at it.
    return Unavailable(retry_after=1)


def _replay(order: TransferOrder, client: Client, idempotency_key: str, fingerprint: bytes) -> Accepted | None:
    for transfer_id, first_fingerprint, created_at in fetch_all(_BY_KEY, (client.namespace, idempotency_key)):
        if bytes(first_fingerprint) != fingerprint:
            raise IdempotencyKeyReused
        admission.labels("replayed").inc()
        return Accepted(_as_accepted(order, transfer_id, created_at), replayed=True)
    return None


def _as_accepted(order: TransferOrder, transfer_id: Any, created_at: datetime) -> Beginning:
    """Say how the transfer began, from what never changes: a later answer equals the first byte for byte."""
    scheduled = order.execute_on is not None and order.execute_on > created_at.astimezone(UTC).date()
    return Beginning(
        id=transfer_id,
        debit_account_id=order.debit_account,
        credit_account_id=order.credit_account,
        amount_minor=order.amount_minor,
        currency=order.currency,
        reference=order.reference,
        external_id=order.external_id,
        metadata=order.metadata,
        execute_on=order.execute_on,
        expires_at=order.expires_at,
        status=Status.SCHEDULED if scheduled else Status.ACCEPTED,
        created_at=created_at,
        updated_at=created_at,
    )
