"""The ledger in the database against the plain model: the same answers, balances and lines for random histories."""

from dataclasses import dataclass
from uuid import UUID

import pytest
from django.db import connection, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounts import ledger
from accounts.models import Account, JournalLine
from bankcore.identifiers import new_id
from tests.accounts.ledger_model import LedgerModel, Line, ModelAccount

pytestmark = pytest.mark.django_db

# 400 histories of at least 5 batches each are at least 2,000 batches, and as many openings.
HISTORIES, BATCHES = 400, 5
UNKNOWN = [UUID(int=1), UUID("ffffffff-ffff-ffff-ffff-ffffffffffff")]
UPDATE = """
UPDATE accounts_account a SET status = u.status, held_minor = u.held
  FROM unnest(%s::uuid[], %s::text[], %s::bigint[]) AS u(id, status, held) WHERE a.id = u.id
"""


@dataclass(frozen=True)
class Opened:
    """An account before the history begins; `hold` is cut to what the account can hold."""

    opening: int
    hold: int
    limit: int | None
    status: str
    currency: str


# Most are plain, so that histories are long enough to be interesting; small amounts make refusals as common as posts.
opened = st.builds(
    Opened,
    opening=st.integers(0, 120),
    hold=st.sampled_from([0, 0, 0, 30]),
    limit=st.sampled_from([0, 0, 0, 50, None]),
    status=st.sampled_from(["open"] * 8 + ["frozen", "closed"]),
    currency=st.sampled_from(["EUR"] * 5 + ["USD"]),
)
# Account numbers are taken modulo what there is plus two unknown ones; account 0 is hot. Few references: many repeats.
movement = st.tuples(
    st.sampled_from([0, 0, 1, 2, 3, 4, 5, 6, 7]),
    st.sampled_from([1, 0, 0, 2, 3, 4, 5, 6, 7]),
    st.integers(1, 90),
    st.sampled_from(["EUR"] * 7 + ["USD"]),
    st.integers(0, 60),
)
history = st.lists(st.lists(movement, min_size=1, max_size=12), min_size=BATCHES, max_size=BATCHES + 1)


@settings(
    max_examples=HISTORIES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(world=st.lists(opened, min_size=2, max_size=6), batches=history)
def test_ledger_does_what_the_model_does(violations, world, batches):
    with transaction.atomic():
        model = open_both(world)
        known = [*list(model.accounts)[1:], *UNKNOWN]

        for batch in batches:
            movements = [
                ledger.Movement(f"r:{ref}", known[d % len(known)], known[c % len(known)], amount, currency)
                for d, c, amount, currency, ref in batch
            ]
            assert ledger.post(movements) == model.post(movements)

        assert stored() == {
            account_id: (a.posted_minor, a.held_minor, len(a.lines), a.lines)
            for account_id, a in model.accounts.items()
        }
        assert violations() == []
        transaction.set_rollback(True)


def open_both(world: list[Opened]) -> LedgerModel:
    """Open the accounts in the database and in the model, and fund them on both sides by the same movements."""
    model = LedgerModel({})
    bank = {currency: new_id() for currency in ("EUR", "USD")}
    for account_id, currency in ((bank["EUR"], "EUR"), (bank["USD"], "USD")):
        model.accounts[account_id] = ModelAccount(currency, limit_minor=None)
    ids = [new_id() for _ in world]
    for account_id, account in zip(ids, world, strict=True):
        model.accounts[account_id] = ModelAccount(account.currency, limit_minor=account.limit)
    Account.objects.bulk_create(
        Account(id=account_id, currency=a.currency, limit_minor=a.limit_minor)
        for account_id, a in model.accounts.items()
    )
    openings = [
        ledger.Movement(f"opening:{account_id}", bank[a.currency], account_id, a.opening, a.currency)
        for account_id, a in zip(ids, world, strict=True)
        if a.opening
    ]
    assert ledger.post(openings) == model.post(openings)

    for account_id, account in zip(ids, world, strict=True):
        in_model = model.accounts[account_id]
        in_model.status = account.status
        in_model.held_minor = min(account.hold, account.opening + (account.limit or 0))
    with connection.cursor() as cursor:
        states = [model.accounts[i] for i in ids]
        cursor.execute(UPDATE, (ids, [a.status for a in states], [a.held_minor for a in states]))
    return model


def stored() -> dict[UUID, tuple[int, int, int, list[Line]]]:
    lines: dict[UUID, list[Line]] = {}
    rows = JournalLine.objects.order_by("account_id", "number").values_list(
        "account_id", "number", "side", "amount_minor", "balance_after_minor"
    )
    for account_id, *line in rows:
        lines.setdefault(account_id, []).append(Line(*line))
    accounts = Account.objects.values_list("id", "posted_minor", "held_minor", "lines")
    return {
        account_id: (posted, held, count, lines.get(account_id, [])) for account_id, posted, held, count in accounts
    }
