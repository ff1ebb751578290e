"""The table of transfers that have not ended follows every change, and a change of status touches no index."""

from datetime import UTC, date, datetime
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from transfers.models import OpenTransfer, Transfer
from transfers.states import OPEN_STATES, TRANSITIONS, Change, Status, claim, in_turn, move

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("was", list(Status))
def test_what_has_not_ended_is_listed(accounts: Any, make_transfer: Any, was: Status) -> None:
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 7, was, posted_at=timezone.now() if was == Status.POSTED else None)

    listed = OpenTransfer.objects.filter(transfer=transfer).values_list("status", "debit_account", "amount_minor")

    assert list(listed) == ([(was, alice.pk, 7)] if was in OPEN_STATES else [])


@pytest.mark.parametrize(("was", "now"), [(was, now) for was, after in TRANSITIONS.items() for now in sorted(after)])
def test_every_transition_is_followed(accounts: Any, make_transfer: Any, was: Status, now: Status) -> None:
    alice, bob = accounts(1000, 0)
    moved, other = make_transfer(alice, bob, 7, was), make_transfer(alice, bob, 8, was)

    move(claim([moved.pk], status=[was]), [Change(moved.pk, now)])

    expected = {other.pk: was} | ({moved.pk: now} if now in OPEN_STATES else {})
    assert dict(OpenTransfer.objects.values_list("transfer", "status")) == expected


def test_a_batch_that_moves_to_different_states_is_followed(accounts: Any, make_transfer: Any) -> None:
    alice, bob = accounts(1000, 0)
    first, second = (make_transfer(alice, bob, 1, "accepted") for _ in range(2))

    move(
        claim([first.pk, second.pk], status=[Status.ACCEPTED]),
        [Change(first.pk, Status.APPROVED), Change(second.pk, Status.REJECTED, "risk_denied")],
    )

    assert list(OpenTransfer.objects.values_list("transfer", "status")) == [(first.pk, "approved")]


def test_a_scheduled_transfer_waits_from_its_day_on(accounts: Any, make_transfer: Any) -> None:
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 1, "scheduled", execute_on=date(2999, 1, 1))

    assert OpenTransfer.objects.get(transfer=transfer).since == datetime(2999, 1, 1, tzinfo=UTC)


def test_no_index_mentions_what_changes_on_the_way(accounts: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexdef FROM pg_indexes WHERE tablename = %s", [Transfer._meta.db_table])
        definitions = " ".join(definition for (definition,) in cursor.fetchall())

    assert "debit_account_id" in definitions
    for changing in ("status", "updated_at", "posted_at", "reversed_minor"):
        assert changing not in definitions


_MANY = """
INSERT INTO transfers_transfer (id, client, debit_account_id, credit_account_id, amount_minor, currency, status)
SELECT gen_random_uuid(), 'test', %s, %s, 1, 'EUR', 'accepted' FROM generate_series(1, 3000) RETURNING id
"""


def _blocks_read() -> int:
    names = ["transfers_opentransfer", "transfers_opentransfer_pkey", "opentransfer_turn"]
    with connection.cursor() as cursor:
        cursor.execute("SELECT sum(pg_stat_get_xact_blocks_fetched(n::regclass)) FROM unnest(%s::text[]) AS n", [names])
        return int(cursor.fetchone()[0])


def _insert_many(debit: Any, credit: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(_MANY, [debit.pk, credit.pk])
        return [transfer_id for (transfer_id,) in cursor.fetchall()]


def _move_all(transfer_ids: list[Any], *, was: Status, now: Status) -> None:
    move(claim(transfer_ids, status=[was]), [Change(transfer_id, now) for transfer_id in transfer_ids])


def test_a_batch_reads_few_pages_although_statistics_call_the_table_empty(accounts: Any) -> None:
    alice, bob = accounts(1000, 0)
    _move_all(_insert_many(alice, bob), was=Status.ACCEPTED, now=Status.CANCELLED)
    with connection.cursor() as cursor:
        # All that was there has ended: this is what vacuum notes when a worker has just kept up.
        cursor.execute("ANALYZE transfers_opentransfer")
        cursor.execute("SELECT reltuples, relpages > 10 FROM pg_class WHERE relname = 'transfers_opentransfer'")
        assert cursor.fetchone() == (0, True)
    open_ids = _insert_many(alice, bob)
    batch = sorted(open_ids)[:200]

    read = []
    for was, now in ((Status.ACCEPTED, Status.APPROVED), (Status.APPROVED, Status.CANCELLED)):
        before = _blocks_read()
        assert list(in_turn(batch, status=Status.IN_REVIEW)) == [batch]
        looked = _blocks_read()
        _move_all(batch, was=was, now=now)
        read += [looked - before, _blocks_read() - looked]

    # From root to leaf to row, and some for the new versions; the whole of an index would be dozens for each.
    assert max(read) < 10 * len(batch), read
    assert OpenTransfer.objects.count() == len(open_ids) - len(batch)
