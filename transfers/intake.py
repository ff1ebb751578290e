"""Taking an order: checks, then one statement that writes the transfer and its event together. No lock, no broker."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from psycopg.types.json import Jsonb
from psycopg.types.numeric import Int8

from accounts.access import Client
from bankcore.database import fetch_all
from bankcore.errors import BankError, Unavailable
from bankcore.identifiers import new_id, parse_id
from bankcore.logs import current_request_id
from bankcore.metrics import admission, count_transfers, stage_seconds
from transfers.errors import ExternalIdReused, IdempotencyKeyReused
from transfers.models import Transfer
from transfers.orders import TransferOrder, read_accounts, refusal, too_late
from transfers.states import Status


@dataclass(frozen=True, slots=True)
class Accepted:
    """The transfer as it was when it was accepted, the same for every repetition of the request."""

    transfer: Transfer
    replayed: bool


# One statement is one transaction and one round trip, which is why this does not go through outbox.record. It inserts
# nothing when the accounts do not allow it (`orders.refusal` has the same rules and says why), or when the key or the
# external_id is taken: whoever comes second with one waits here for the first to commit.
_ACCEPT = """
WITH accepted AS (
    INSERT INTO transfers_transfer
           (id, client, initiator_id, idempotency_key, fingerprint, debit_account_id, credit_account_id, amount_minor,
            currency, reference, external_id, metadata, execute_on, expires_at, request_id, status)
    SELECT %(id)s, %(namespace)s, %(initiator)s, %(key)s, %(fingerprint)s, debit.id, credit.id, %(amount)s,
           %(currency)s::text, %(reference)s, %(external_id)s, %(metadata)s, %(execute_on)s, %(expires_at)s,
           %(request_id)s,
           CASE WHEN %(execute_on)s::date > (statement_timestamp() AT TIME ZONE 'UTC')::date
                THEN 'scheduled' ELSE 'accepted' END
      FROM accounts_account AS debit, accounts_account AS credit
     WHERE debit.id = %(debit)s AND credit.id = %(credit)s
       AND debit.status = 'open' AND credit.status = 'open'
       AND debit.currency = %(currency)s::text AND credit.currency = %(currency)s::text
       AND (%(is_staff)s OR debit.customer_id = %(customer)s)
    ON CONFLICT DO NOTHING
    RETURNING id, created_at, debit_account_id, execute_on
), announced AS (
    INSERT INTO messaging_event (type, partition_key, subject, data, request_id, actor, due_at)
    SELECT 'transfer.accepted', debit_account_id::text, id::text, %(data)s, %(request_id)s, %(actor)s,
           greatest(statement_timestamp(), execute_on::timestamp AT TIME ZONE 'UTC')
      FROM accepted
)
SELECT created_at FROM accepted
"""
_BY_KEY = "SELECT id, fingerprint, created_at FROM transfers_transfer WHERE client = %s AND idempotency_key = %s"
_BY_EXTERNAL_ID = "SELECT id FROM transfers_transfer WHERE client = %s AND external_id = %s::text"


def accept_transfer(order: TransferOrder, *, client: Client, idempotency_key: str) -> Accepted:
    """Write the order down durably, so that it will reach its end whatever fails from here on.

    Repeating it with the same key and the same order returns the first transfer and writes nothing.

    Raises:
        IdempotencyKeyReused: the key came with another order.
        ExternalIdReused: another transfer of this client has the external_id.
        BankError: the accounts do not allow it (`orders.refusal`).
    """
    started = time.monotonic()
    fingerprint = order.fingerprint()
    transfer_id = new_id()
    columns = _columns(order, client, idempotency_key, fingerprint) | {"id": transfer_id}
    rows = [] if too_late(order) else fetch_all(_ACCEPT, columns)
    if not rows:
        # A repetition gets its first answer, whatever has become of the accounts since.
        if earlier := _replay(order, client, idempotency_key, fingerprint):
            return earlier
        admission.labels("refused").inc()
        raise _why_not(order, client)
    transfer = _as_accepted(order, transfer_id, rows[0][0])
    stage_seconds.labels("accept").observe(time.monotonic() - started)
    admission.labels("accepted").inc()
    count_transfers([(str(transfer.status), "")])
    return Accepted(transfer, replayed=False)


def _columns(order: TransferOrder, client: Client, idempotency_key: str, fingerprint: bytes) -> dict[str, Any]:
    return {
        "namespace": client.namespace,
        "initiator": client.staff_user_id,
        "key": idempotency_key,
        "fingerprint": fingerprint,
        "debit": parse_id(order.debit_account),
        "credit": parse_id(order.credit_account),
        "is_staff": client.is_staff,
        "customer": client.customer_id,
        # One width, or each magnitude of number would be a prepared statement of its own.
        "amount": Int8(order.amount_minor),
        "currency": order.currency,
        "reference": order.reference,
        "external_id": order.external_id,
        "metadata": Jsonb(order.metadata),
        "execute_on": order.execute_on,
        "expires_at": order.expires_at,
        "request_id": current_request_id(),
        "actor": client.name,
        "data": Jsonb({"amount_minor": order.amount_minor, "currency": order.currency}),
    }


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


def _as_accepted(order: TransferOrder, transfer_id: Any, created_at: datetime) -> Transfer:
    """Say how the transfer began, from what never changes: a later answer equals the first byte for byte."""
    scheduled = order.execute_on is not None and order.execute_on > created_at.astimezone(UTC).date()
    return Transfer(
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
        status_reason="",
        created_at=created_at,
        updated_at=created_at,
    )
