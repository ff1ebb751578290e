"""The database allows exactly the transitions of states.TRANSITIONS, and keeps what was asked for."""

from datetime import timedelta
from itertools import product

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from bankcore.identifiers import new_id
from transfers.models import Transfer
from transfers.states import END_STATES, TRANSITIONS, WAITING_ROOMS, Change, MovedMeanwhile, Status, claim, move

pytestmark = pytest.mark.django_db

CHANGEABLE = {"status", "status_reason", "reversed_minor", "updated_at", "posted_at"}
AS_ASKED = [field.column for field in Transfer._meta.concrete_fields if field.name not in CHANGEABLE]


@pytest.fixture
def waiting(accounts, make_transfer):
    """Make a transfer of 100 from a funded account, in the status and with the fields asked for."""
    alice, bob = accounts(1000, 0)
    return lambda status="approved", **fields: make_transfer(alice, bob, 100, status, **fields)


def run(sql, *parameters):
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)


@pytest.mark.parametrize(("before", "after"), list(product(Status, Status)))
def test_the_database_allows_exactly_the_transitions_of_the_table(waiting, before, after):
    transfer = waiting(before, posted_at=timezone.now() if before is Status.POSTED else None)
    change = {"status": after, "posted_at": timezone.now() if after is Status.POSTED else None}

    if after in TRANSITIONS[before]:
        Transfer.objects.filter(pk=transfer.pk).update(**change)
        expected = after
    else:
        with pytest.raises(IntegrityError, match="cannot go from"), transaction.atomic():
            Transfer.objects.filter(pk=transfer.pk).update(**change)
        expected = before

    transfer.refresh_from_db()
    assert transfer.status == expected


def test_every_status_has_its_row_and_ends_have_no_way_out():
    assert set(TRANSITIONS) == set(Status)
    assert {status for status, following in TRANSITIONS.items() if not following} == END_STATES
    assert not END_STATES & WAITING_ROOMS


@pytest.mark.parametrize("column", AS_ASKED)
def test_what_was_asked_for_never_changes(waiting, column):
    transfer = waiting()
    before = Transfer.objects.values().get()

    with pytest.raises(IntegrityError, match="never changed or removed"), transaction.atomic():
        run(f'UPDATE transfers_transfer SET "{column}" = NULL WHERE id = %s', transfer.pk)  # noqa: S608

    assert Transfer.objects.values().get() == before


@pytest.mark.parametrize("statement", ["DELETE FROM transfers_transfer", "TRUNCATE transfers_transfer CASCADE"])
def test_a_transfer_never_goes(waiting, statement):
    waiting()
    run("SET CONSTRAINTS ALL IMMEDIATE")

    with pytest.raises(IntegrityError, match="never changed or removed"), transaction.atomic():
        run(statement)

    assert Transfer.objects.count() == 1


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"amount_minor": 0}, "transfer_amount"),
        ({"amount_minor": -1}, "transfer_amount"),
        ({"status": "lost"}, "transfer_status"),
        ({"status": "posted"}, "transfer_posted_at"),
        ({"posted_at": timezone.now()}, "transfer_posted_at"),
    ],
)
def test_the_database_refuses_a_transfer_that_makes_no_sense(accounts, make_transfer, fields, constraint):
    alice, bob = accounts(1000, 0)

    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        make_transfer(alice, bob, **fields)

    assert Transfer.objects.count() == 0


def test_the_database_refuses_a_transfer_to_the_same_account(accounts, make_transfer):
    (alice,) = accounts(1000)

    with pytest.raises(IntegrityError, match="transfer_two_accounts"), transaction.atomic():
        make_transfer(alice, alice)

    assert Transfer.objects.count() == 0


def test_claim_returns_those_in_the_status_in_the_order_asked_for(waiting):
    first, second, third = (waiting() for _ in range(3))
    other = waiting("in_review")

    claimed = claim([third.pk, other.pk, first.pk, new_id(), third.pk, second.pk], status=[Status.APPROVED])

    assert [c.id for c in claimed] == [third.pk, first.pk, second.pk]
    assert {c.amount_minor for c in claimed} == {100}


def test_claim_tells_who_has_expired(waiting):
    late = waiting(expires_at=timezone.now() - timedelta(seconds=1))
    early = waiting(expires_at=timezone.now() + timedelta(hours=1))
    never = waiting()

    claimed = claim([late.pk, early.pk, never.pk], status=[Status.APPROVED])

    assert [c.expired for c in claimed] == [True, False, False]


def test_move_writes_status_reason_and_the_moment_of_posting(waiting):
    claimed = claim([waiting().pk, waiting().pk], status=[Status.APPROVED])

    move(claimed, [Change(claimed[0].id, Status.POSTED), Change(claimed[1].id, Status.REJECTED, "account_closed")])

    posted, rejected = (Transfer.objects.get(pk=c.id) for c in claimed)
    assert (posted.status, posted.status_reason, posted.posted_at) == ("posted", "", posted.updated_at)
    assert (rejected.status, rejected.status_reason, rejected.posted_at) == ("rejected", "account_closed", None)


def test_move_refuses_a_transfer_that_moved_meanwhile(waiting):
    claimed = claim([waiting().pk, waiting().pk], status=[Status.APPROVED])
    Transfer.objects.filter(pk=claimed[1].id).update(status="cancelled")

    with pytest.raises(MovedMeanwhile, match="1 of 2"), transaction.atomic():
        move(claimed, [Change(c.id, Status.POSTED) for c in claimed])

    assert [Transfer.objects.get(pk=c.id).status for c in claimed] == ["approved", "cancelled"]
