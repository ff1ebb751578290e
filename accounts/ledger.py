"""The only writer of the journal and of balances. It knows movements and references, and nothing of transfers."""

from collections.abc import Sequence
from itertools import count
from typing import NamedTuple
from uuid import UUID

from django.db import transaction

from bankcore.database import fetch_all


class Movement(NamedTuple):
    """Money to move once: `amount_minor` from one account to another, under a reference that is posted at most once."""

    reference: str
    debit_account: UUID
    credit_account: UUID
    amount_minor: int
    currency: str


POSTED = ""
ALREADY_POSTED = "already_posted"


def post(movements: Sequence[Movement]) -> list[str]:
    """Post the movements in order and say of each why not: "" is posted, else a reason code of accounts.errors.

    Two statements for any number of movements. A refused movement changes nothing, and those behind it see the balances
    it left alone. Repeating is harmless: a reference in the journal answers `already_posted`, also for a second
    movement of the same reference in one call. Locks every account involved, in id order, until the transaction ends.
    """
    first_of: dict[str, int] = {}
    for index, movement in enumerate(movements):
        first_of.setdefault(movement.reference, index)
    if len(first_of) == len(movements):
        with transaction.atomic(savepoint=False):
            return _post_distinct(movements)
    distinct = [movements[index] for index in first_of.values()]
    with transaction.atomic(savepoint=False):
        outcomes = dict(zip(first_of, _post_distinct(distinct), strict=True))
    return [
        outcomes[m.reference] if first_of[m.reference] == index or outcomes[m.reference] != POSTED else ALREADY_POSTED
        for index, m in enumerate(movements)
    ]


def _post_distinct(movements: Sequence[Movement]) -> list[str]:
    if not movements:
        return []
    references, debit_accounts, credit_accounts, amounts, currencies = map(list, zip(*movements, strict=True))
    # By their numbers: hashing and comparing UUIDs is Python code, and would be most of the work here.
    debits, credits = [account.int for account in debit_accounts], [account.int for account in credit_accounts]
    accounts = dict(zip(debits + credits, debit_accounts + credit_accounts, strict=True))
    in_order = sorted(accounts)
    position = dict(zip(in_order, count(1)))
    arguments = (
        [accounts[number] for number in in_order],
        [position[number] for number in debits],
        [position[number] for number in credits],
        amounts,
        currencies,
        references,
    )
    sql = "SELECT ledger_post(%b::uuid[], %b::int[], %b::int[], %b::bigint[], %b::text[], %b::text[])"
    return list(fetch_all(sql, arguments)[0][0])
