"""A person decides on a transfer in review, once, and never on their own."""

import pytest
from django.contrib.auth import get_user_model

from bankcore.errors import NotFound
from bankcore.identifiers import new_id
from bankcore.messaging.models import Event
from transfers.errors import NotInReview, OwnTransfer, ReviewAlreadyDecided
from transfers.models import Review, Transfer
from transfers.reviews import decide

pytestmark = pytest.mark.django_db

APPROVE, DECLINE = Review.Decision.APPROVE, Review.Decision.DECLINE


@pytest.fixture
def staff():
    return get_user_model().objects.create(username="olga")


@pytest.fixture
def held(accounts, make_transfer):
    """Make a transfer that waits for a person."""
    alice, bob = accounts(1000, 0)

    def make(**fields):
        transfer = make_transfer(alice, bob, 300, "in_review", **fields)
        Review.objects.create(transfer=transfer, reasons=["amount_over_limit"])
        return transfer

    return make


def state(transfer):
    transfer = Transfer.objects.get(pk=transfer.pk)
    return transfer.status, transfer.status_reason, transfer.review.decision


def decided():
    events = Event.objects.filter(type__in=["transfer.approved", "transfer.rejected"]).order_by("id")
    return list(events.values_list("type", "subject", "data", "actor"))


@pytest.mark.parametrize(
    ("decision", "status", "reason", "data"),
    [
        (APPROVE, "approved", "", {}),
        (DECLINE, "rejected", "review_declined", {"reason": "review_declined"}),
    ],
)
def test_a_decision_moves_the_transfer_and_says_who_decided(held, staff, decision, status, reason, data):
    transfer = held()

    assert decide(transfer.pk, staff=staff, decision=decision, note="called the customer") == status

    assert state(transfer) == (status, reason, decision)
    review = Review.objects.get()
    assert (review.decided_by, review.note) == (staff, "called the customer")
    assert review.decided_at is not None
    assert decided() == [(f"transfer.{status}", str(transfer.pk), data, "olga")]


def test_a_second_decision_is_refused_and_changes_nothing(held, staff):
    transfer = held()
    decide(transfer.pk, staff=staff, decision=APPROVE)

    with pytest.raises(ReviewAlreadyDecided):
        decide(transfer.pk, staff=staff, decision=DECLINE)

    assert state(transfer) == ("approved", "", "approve")
    assert len(decided()) == 1


def test_nobody_decides_on_what_they_initiated(held, staff):
    transfer = held(initiator=staff)

    with pytest.raises(OwnTransfer):
        decide(transfer.pk, staff=staff, decision=APPROVE)

    assert state(transfer) == ("in_review", "", "")
    assert decided() == []


def test_a_transfer_that_left_review_another_way_is_not_decided_on(held, staff):
    transfer = held()
    Transfer.objects.filter(pk=transfer.pk).update(status="cancelled")

    with pytest.raises(NotInReview):
        decide(transfer.pk, staff=staff, decision=APPROVE)

    assert state(transfer) == ("cancelled", "", "")
    assert decided() == []


def test_there_is_no_review_of_an_unknown_transfer(staff):
    with pytest.raises(NotFound):
        decide(new_id(), staff=staff, decision=APPROVE)

    assert Event.objects.count() == 0
