"""Approved transfers move money once, in order, or end with a reason."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import IntegrityError, connection
from django.utils import timezone

from accounts import ledger
from accounts.models import Account, JournalEntry, JournalLine
from bankcore.identifiers import new_id
from bankcore.messaging.models import DeadLetter, Event
from tests.transfers.ends_view import balances, ends, entries
from transfers.parking import park_transfer
from transfers.posting import post_transfers

pytestmark = pytest.mark.django_db


def heard():
    events = Event.objects.exclude(type="transfer.approved").order_by("id")
    return list(events.values_list("type", "subject", "data"))


def test_an_approved_transfer_moves_its_money(accounts, make_transfer, violations, django_capture_on_commit_callbacks):
    alice, bob = accounts(1000, 50)
    transfer = make_transfer(alice, bob, 300, request_id="req-7")

    with django_capture_on_commit_callbacks(execute=True):
        assert post_transfers([transfer.pk]) == 1

    transfer.refresh_from_db()
    assert (transfer.status, transfer.status_reason) == ("posted", "")
    assert transfer.posted_at == transfer.updated_at
    assert balances(alice, bob) == [700, 350]
    entry = JournalEntry.objects.get(reference=f"transfer:{transfer.pk}")
    lines = entry.lines.order_by("id").values_list("account_id", "side", "amount_minor", "balance_after_minor")
    assert list(lines) == [(alice.pk, "D", 300, 700), (bob.pk, "C", 300, 350)]
    event = Event.objects.get(type="transfer.posted")
    assert (event.subject, event.partition_key, event.request_id) == (str(transfer.pk), str(alice.pk), "req-7")
    assert violations() == []


def test_second_delivery_posts_nothing(accounts, make_transfer, violations):
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 300)
    post_transfers([transfer.pk])

    assert post_transfers([transfer.pk]) == 0
    assert post_transfers([transfer.pk, transfer.pk]) == 0

    assert balances(alice, bob) == [700, 300]
    assert entries() == [f"transfer:{transfer.pk}"]
    assert heard() == [("transfer.posted", str(transfer.pk), {})]
    assert violations() == []


def test_an_id_twice_in_one_message_posts_once(accounts, make_transfer):
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 300)

    assert post_transfers([transfer.pk, transfer.pk]) == 1

    assert balances(alice, bob) == [700, 300]
    assert heard() == [("transfer.posted", str(transfer.pk), {})]


def test_a_transfer_whose_entry_exists_is_posted_without_moving_money_again(accounts, make_transfer, violations):
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 300)
    ledger.post([ledger.Movement(f"transfer:{transfer.pk}", alice.pk, bob.pk, 300, "EUR")])

    assert post_transfers([transfer.pk]) == 1

    assert ends(transfer) == [("posted", "")]
    assert balances(alice, bob) == [700, 300]
    assert violations() == []


@pytest.mark.parametrize(
    ("change", "fields", "reason"),
    [
        ({}, {"amount_minor": 1001}, "insufficient_funds"),
        ({"held_minor": 901}, {}, "insufficient_funds"),
        ({"status": "frozen"}, {}, "account_frozen"),
        ({"status": "closed"}, {}, "account_closed"),
        ({}, {"currency": "USD"}, "currency_mismatch"),
        ({}, {"expires_at": timezone.now() - timedelta(seconds=1)}, "expired"),
    ],
)
def test_a_transfer_that_may_not_be_posted_is_rejected_with_its_reason(accounts, make_transfer, change, fields, reason):
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, **fields)
    Account.objects.filter(pk=alice.pk).update(**{"name": "alice", **change})

    assert post_transfers([transfer.pk]) == 1

    assert ends(transfer) == [("rejected", reason)]
    assert balances(alice, bob) == [1000, 0]
    assert entries() == []
    assert heard() == [("transfer.rejected", str(transfer.pk), {"reason": reason})]


def test_a_receiver_that_does_not_exist_rejects_the_transfer(accounts, make_transfer):
    (alice,) = accounts(1000)
    transfer = make_transfer(alice, Account(id=new_id(), currency="EUR"))

    post_transfers([transfer.pk])

    assert ends(transfer) == [("rejected", "account_not_found")]
    assert balances(alice) == [1000]


@pytest.mark.parametrize("status", ["accepted", "scheduled", "in_review", "rejected", "cancelled", "parked"])
def test_a_transfer_that_is_not_approved_is_left_alone(accounts, make_transfer, status):
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 300, status)
    events = Event.objects.count()

    assert post_transfers([transfer.pk]) == 0

    assert ends(transfer) == [(status, "")]
    assert balances(alice, bob) == [1000, 0]
    assert (entries(), Event.objects.count()) == ([], events)


def test_a_credit_funds_a_later_debit_of_the_same_message(accounts, make_transfer):
    alice, bob, carol = accounts(100, 0, 0)
    too_early, funding, in_time = (
        make_transfer(bob, carol, 100),
        make_transfer(alice, bob, 100),
        make_transfer(bob, carol, 100),
    )

    post_transfers([too_early.pk, funding.pk, in_time.pk])

    assert ends(too_early, funding, in_time) == [("rejected", "insufficient_funds"), ("posted", ""), ("posted", "")]
    assert balances(alice, bob, carol) == [0, 0, 100]


def test_an_account_is_debited_in_the_order_given(accounts, make_transfer):
    alice, bob = accounts(100, 0)
    transfers = [make_transfer(alice, bob, amount) for amount in (30, 25, 50, 45, 1)]
    order = [transfers[i] for i in (4, 0, 2, 1, 3)]

    post_transfers([t.pk for t in order])

    # 1, 30 and 50 fit into 100; then 19 are left: neither 25 nor 45.
    assert [end[0] for end in ends(*order)] == ["posted"] * 3 + ["rejected"] * 2
    lines = JournalLine.objects.filter(account=alice, side="D").order_by("number")
    assert list(lines.values_list("amount_minor", "balance_after_minor")) == [(1, 99), (30, 69), (50, 19)]
    assert entries() == [f"transfer:{t.pk}" for t in order[:3]]
    assert [subject for _, subject, _ in heard()] == [str(t.pk) for t in order]


def test_an_expired_transfer_does_not_shift_the_answers_of_its_neighbours(accounts, make_transfer):
    alice, bob = accounts(100, 0)
    first = make_transfer(alice, bob, 60)
    expired = make_transfer(alice, bob, 10, expires_at=timezone.now() - timedelta(seconds=1))
    poor = make_transfer(alice, bob, 50)
    last = make_transfer(alice, bob, 40)

    post_transfers([t.pk for t in (first, expired, poor, last)])

    assert ends(first, expired, poor, last) == [
        ("posted", ""),
        ("rejected", "expired"),
        ("rejected", "insufficient_funds"),
        ("posted", ""),
    ]


def test_no_money_moves_when_the_event_cannot_be_written(accounts, make_transfer):
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 300)

    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE messaging_event ADD CHECK (type <> 'transfer.posted') NOT VALID")

    with pytest.raises(IntegrityError):
        post_transfers([transfer.pk])

    assert ends(transfer) == [("approved", "")]
    assert balances(alice, bob) == [1000, 0]
    assert (entries(), heard()) == ([], [])


def test_posting_takes_as_many_statements_for_200_as_for_one(accounts, make_transfer, statements):
    payers = accounts(*[100] * 200)
    (shop,) = accounts(0)
    transfers = [make_transfer(payer, shop, 1) for payer in [payers[0], *payers]]

    counts = []
    for some in (transfers[:1], transfers[1:]):
        statements.clear()
        assert post_transfers([t.pk for t in some]) == len(some)
        counts.append(len([s for s in statements if "SAVEPOINT" not in s]))

    assert counts == [4, 4]
    assert balances(shop) == [201]


@pytest.mark.django_db(transaction=True)
def test_deliveries_at_once_in_any_order_post_each_transfer_once(accounts, make_transfer, violations):
    people = accounts(*[1000] * 4)
    transfers = [make_transfer(people[i % 4], people[(i + 1) % 4], 10 + i) for i in range(40)]
    together = threading.Barrier(4)

    def deliver(seed):
        order = [t.pk for t in transfers]
        random.Random(seed).shuffle(order)
        try:
            together.wait(timeout=10)
            return sum(post_transfers(order[start : start + 10]) for start in range(0, 40, 10))
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        handled = list(pool.map(deliver, range(4)))

    assert sum(handled) == 40
    assert ends(*transfers) == [("posted", "")] * 40
    assert len(entries()) == 40
    assert sum(balances(*people)) == 4000
    assert Event.objects.filter(type="transfer.posted").count() == 40
    assert violations() == []


def boom():
    try:
        raise ValueError("the culprit\x00")
    except ValueError as error:
        return error


@pytest.mark.parametrize("status", ["scheduled", "accepted", "approved"])
def test_a_parked_transfer_waits_with_its_traceback(accounts, make_transfer, status):
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 300, status)

    assert park_transfer(transfer.pk, task="transfers.post_transfers", error=boom(), attempts=4) is True

    assert ends(transfer) == [("parked", "processing_failed")]
    letter = DeadLetter.objects.get()
    assert (letter.state, letter.task, letter.subject) == ("open", "transfers.post_transfers", str(transfer.pk))
    assert (letter.cause, letter.attempts) == ("ValueError: the culprit", 4)
    assert "Traceback" in letter.detail
    assert "in boom" in letter.detail
    event = Event.objects.get(type="transfer.parked")
    assert (event.subject, event.data) == (str(transfer.pk), {"reason": "processing_failed"})
    assert balances(alice, bob) == [1000, 0]


def test_a_transfer_that_has_ended_is_not_parked_but_the_failure_is_kept(accounts, make_transfer):
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 300)
    post_transfers([transfer.pk])

    assert park_transfer(transfer.pk, task="transfers.post_transfers", error=boom(), attempts=1) is False

    assert ends(transfer) == [("posted", "")]
    assert DeadLetter.objects.get().subject == str(transfer.pk)
    assert not Event.objects.filter(type="transfer.parked").exists()
