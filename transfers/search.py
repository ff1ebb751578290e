"""Finding transfers and batches that the caller may see, each along an index."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Q, QuerySet

from accounts.access import Client, visible_accounts
from bankcore.errors import NotFound
from bankcore.identifiers import oldest_id_at, parse_id
from transfers.models import Batch, Transfer
from transfers.states import OPEN_STATES, Status

# Up to this many accounts are read side by side along (account, id); beyond that, one scan is the better plan.
ACCOUNTS_SIDE_BY_SIDE_MAX = 16
# An id carries the web server's clock and created_at the database's; this much they may differ.
CLOCKS_DIFFER_MAX = timedelta(minutes=10)
# Stands for text that is no id at all: it finds nothing, like an id that is not there.
_NO_ID = UUID(int=0)


def find_transfer(client: Client, transfer_id: str) -> Transfer:
    """Return the transfer if one of its accounts is the caller's.

    Raises:
        NotFound: there is none, or it is someone else's.
    """
    known = parse_id(transfer_id)
    seen = Transfer.objects.select_related("debit_account").filter(_own(client))
    transfer = seen.filter(id=known).first() if known else None
    if transfer is None:
        raise NotFound
    return transfer


def find_batch(client: Client, batch_id: str) -> Batch:
    """Return the batch if the caller's client sent it.

    Raises:
        NotFound: there is none, or it is another client's.
    """
    known = parse_id(batch_id)
    batches = Batch.objects.all() if client.is_staff else Batch.objects.filter(client=client.namespace)
    batch = batches.filter(id=known).first() if known else None
    if batch is None:
        raise NotFound
    return batch


def _own(client: Client) -> Q:
    """The payer sees a transfer from the start; the payee once the money has come, and nothing of what did not."""
    if client.is_staff:
        return Q()
    return Q(debit_account__customer_id=client.customer_id) | Q(
        credit_account__customer_id=client.customer_id, status=Status.POSTED
    )


def is_payer(client: Client, transfer: Transfer) -> bool:
    """Tell whether the caller may see what the payer wrote down for themselves (metadata, external_id, timeline)."""
    return client.is_staff or transfer.debit_account.customer_id == client.customer_id


def transfer_sources(client: Client, filters: Mapping[str, Any]) -> Sequence[QuerySet[Transfer]]:
    """Split the search into querysets that each follow one index; together they hold what the caller may see."""
    wanted = Transfer.objects.select_related("debit_account").filter(**_conditions(filters))
    accounts: list[UUID] | None = None
    if "account" in filters:
        account = parse_id(filters["account"]) or _NO_ID
        if visible_accounts(client).filter(id=account).exists():
            accounts = [account]
        else:
            # Someone else's account: what the caller's own accounts have to do with it.
            wanted = wanted.filter(Q(debit_account=account) | Q(credit_account=account))
    if accounts is None:
        if client.is_staff:
            return [wanted]
        mine = visible_accounts(client).values_list("id", flat=True)
        accounts = list(mine[: ACCOUNTS_SIDE_BY_SIDE_MAX + 1])
        if len(accounts) > ACCOUNTS_SIDE_BY_SIDE_MAX:
            return [wanted.filter(Q(debit_account__in=mine) | Q(credit_account__in=mine, status=Status.POSTED))]
    received = wanted if client.is_staff else wanted.filter(status=Status.POSTED)
    sources = [wanted.filter(debit_account=account) for account in accounts]
    return [*sources, *(received.filter(credit_account=account) for account in accounts)] or [Transfer.objects.none()]


def _within(moment: datetime) -> datetime:
    """Bring a moment into the years that an id can tell."""
    return min(max(moment, datetime(1971, 1, 1, tzinfo=UTC)), datetime(9998, 1, 1, tzinfo=UTC))


def _conditions(filters: Mapping[str, Any]) -> dict[str, Any]:
    conditions = {name: filters[name] for name in ("status", "reference", "external_id") if name in filters}
    if conditions.get("status") in OPEN_STATES:
        # Few of all transfers, and no index on those knows their status.
        conditions["open__status"] = conditions["status"]
    if "batch" in filters:
        conditions["batch_id"] = parse_id(filters["batch"]) or _NO_ID
    if (moment := filters.get("created_from")) is not None:
        conditions |= {"created_at__gte": moment, "id__gte": oldest_id_at(_within(moment) - CLOCKS_DIFFER_MAX)}
    if (moment := filters.get("created_to")) is not None:
        conditions |= {"created_at__lt": moment, "id__lte": oldest_id_at(_within(moment) + CLOCKS_DIFFER_MAX)}
    return conditions
