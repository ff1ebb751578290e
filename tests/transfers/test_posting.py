"""Approved transfers move money once, in order, or end with a reason."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID

import pytest
from django.db import IntegrityError, connection
from django.utils import timezone

from accounts import ledger
from accounts.models import Account, JournalEntry, JournalLine
from bankcore.identifiers import new_id
from bankcore.messaging.models import DeadLetter, Event
from bankcore.messaging.stretch import Numbering, follow
from transfers import posting, states
from transfers.models import Transfer
from transfers.parking import park_transfer
from transfers.posting import post_transfers
from transfers.tasks import post_transfers_task

pytestmark = pytest.mark.django_db


def balances(*accounts):
    found = Account.objects.in_bulk([account.pk for account in accounts])
    return [found[account.pk].posted_minor for account in accounts]


def ends(*transfers):
    found = Transfer.objects.in_bulk([transfer.pk for transfer in transfers])
    return [(found[t.pk].status, found[t.pk].status_reason) for t in transfers]


def heard():
    events = Event.objects.exclude(type="transfer.approved").order_by("id")
    return list(events.values_list("type", "subject", "data"))


def entries():
    return list(
        JournalEntry.objects.filter(reference__startswith="transfer:")
        .order_by("id")
        .values_list("reference", flat=True)
    )


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


def test_what_the_broker_lost_is_posted_before_what_came_after_it(accounts, make_transfer):
    payer, other, shop = accounts(100, 100, 0)
    lost = [make_transfer(payer, shop, amount) for amount in (90, 5)]
    failing, elsewhere = make_transfer(payer, shop, 7), make_transfer(other, shop, 1)
    Event.objects.filter(subject=str(failing.pk)).update(attempt=1)
    delivered, later = make_transfer(payer, shop, 6), make_transfer(payer, shop, 1)

    assert post_transfers([delivered.pk]) == 3

    # The last one has no more money only because the lost ones were served before it.
    assert ends(*lost, delivered) == [("posted", ""), ("posted", ""), ("rejected", "insufficient_funds")]
    assert entries() == [f"transfer:{transfer.pk}" for transfer in lost]
    assert ends(failing, elsewhere, later) == [("approved", "")] * 3


def an_hour_ahead():
    """An id as a web host makes it whose clock is wrong."""
    return UUID(int=new_id().int + (3_600_000 << 80))


def test_a_web_host_whose_clock_is_ahead_lets_nothing_overtake(accounts, make_transfer):
    payer, shop = accounts(100, 0)
    first, second = make_transfer(payer, shop, 90, id=an_hour_ahead()), make_transfer(payer, shop, 20)

    # The second is in a message of its own, behind this one: it is not lost, although its id is the smaller one.
    assert post_transfers([first.pk]) == 1
    assert post_transfers([second.pk]) == 1

    assert ends(first, second) == [("posted", ""), ("rejected", "insufficient_funds")]


def test_what_was_lost_is_taken_in_the_order_of_acceptance_whatever_the_clocks_of_web_say(accounts, make_transfer):
    payer, shop = accounts(100, 0)
    lost = make_transfer(payer, shop, 5)
    first, second = make_transfer(payer, shop, 90, id=an_hour_ahead()), make_transfer(payer, shop, 20)

    assert post_transfers([first.pk, second.pk]) == 3

    assert ends(lost, first, second) == [("posted", ""), ("posted", ""), ("rejected", "insufficient_funds")]


def test_very_much_that_was_lost_is_posted_in_lots_and_in_order(accounts, make_transfer, monkeypatch):
    monkeypatch.setattr(states, "LOST_AT_ONCE_MAX", 2)
    payer, shop = accounts(100, 0)
    lost = [make_transfer(payer, shop, amount) for amount in (60, 5, 30, 2, 1)]
    delivered = make_transfer(payer, shop, 3)

    assert [len(lot) for lot in states.in_turn([delivered.pk], status=states.Status.APPROVED)] == [2, 3]
    assert post_transfers([delivered.pk]) == 6

    assert ends(*lost, delivered) == [("posted", "")] * 5 + [("rejected", "insufficient_funds")]
    assert entries() == [f"transfer:{transfer.pk}" for transfer in lost]


class Relay:
    """Hands transfers to the posting stage in messages, of which the broker may lose some."""

    def __init__(self, queue):
        self.queue, self.numbering = queue, Numbering()

    def publish(self, *transfers, lost=False):
        place = self.numbering.next(self.queue)
        self.numbering.take(self.queue, place)
        if lost:
            return 0
        with follow(self.queue, str(place)):
            return post_transfers([transfer.pk for transfer in transfers])


@pytest.fixture
def relay(request, monkeypatch):
    monkeypatch.setattr(states._BeforeTheStretch, "LOOK_SECONDS_MIN", 0.0)
    return Relay(f"posting of {request.node.name}")


def test_what_was_lost_before_a_stretch_or_in_its_middle_is_posted_in_its_turn(accounts, make_transfer, relay):
    """By the accounts of whichever message comes next, however many messages of others came in between."""
    payers, (shop,) = accounts(100, 100, 100), accounts(0)
    before, between = (make_transfer(payer, shop, 90) for payer in payers[:2])
    assert relay.publish(make_transfer(payers[2], shop, 1)) == 1
    assert relay.publish(make_transfer(payers[0], shop, 20)) == 2
    relay.publish(between, lost=True)
    assert relay.publish(make_transfer(payers[2], shop, 1)) == 1

    assert relay.publish(make_transfer(payers[1], shop, 20)) == 2

    assert ends(before, between) == [("posted", "")] * 2
    assert balances(*payers) == [10, 10, 98]


def test_an_id_of_a_clock_that_is_behind_hides_nothing_that_was_lost(accounts, make_transfer, relay):
    payer, other, shop = accounts(100, 100, 0)
    assert relay.publish(make_transfer(payer, shop, 1)) == 1
    lost = make_transfer(payer, shop, 90, id=UUID(int=new_id().int - (3_600_000 << 80)))
    relay.publish(lost, lost=True)
    assert relay.publish(make_transfer(other, shop, 1)) == 1

    assert relay.publish(make_transfer(payer, shop, 20)) == 2

    assert ends(lost) == [("posted", "")]


def test_in_a_stretch_nobody_looks_for_what_cannot_have_been_lost(accounts, make_transfer, relay, statements):
    payer, shop = accounts(1000, 0)
    assert relay.publish(make_transfer(payer, shop, 1)) == 1
    second, third, _ = (make_transfer(payer, shop, 1) for _ in range(3))
    assert relay.publish(second) == 1
    statements.clear()

    assert relay.publish(third) == 1
    assert [text for text in statements if "transfers_opentransfer" in text or "transfers_lost_before" in text] == []


def test_a_lost_transfer_that_fails_is_blamed_itself_and_not_the_one_it_was_taken_along_with(
    accounts, make_transfer, monkeypatch
):
    payer, shop = accounts(100, 0)
    lost, culprit, delivered = (make_transfer(payer, shop, amount) for amount in (1, 2, 4))

    def movement(claimed, real=posting._movement):
        if claimed.id == culprit.pk:
            raise ValueError("a bug")
        return real(claimed)

    monkeypatch.setattr(posting, "_movement", movement)
    post_transfers_task([str(delivered.pk)])

    assert ends(lost, culprit, delivered) == [("posted", ""), ("approved", ""), ("posted", "")]
    attempts = dict(Event.objects.filter(type="transfer.approved").values_list("subject", "attempt"))
    assert attempts == {str(lost.pk): 0, str(culprit.pk): 1, str(delivered.pk): 0}


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
