"""Rules, and the stage that screens by them."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.db import IntegrityError, connection
from django.utils import timezone

from bankcore.identifiers import oldest_id_at
from bankcore.messaging.models import Event
from bankcore.messaging.stretch import Numbering, follow
from transfers.models import DeniedAccount, Review, Transfer
from transfers.risk import recent_debits
from transfers.risk.rules import Facts, Limits, Outcome, assess
from transfers.risk.screening import check_risk

LIMITS = Limits(review_amount_minor=1000, velocity_count=5)


@pytest.mark.parametrize(
    ("facts", "limits", "outcome", "reasons"),
    [
        (Facts(999, 5, False), LIMITS, Outcome.APPROVE, []),
        (Facts(1000, 5, False), LIMITS, Outcome.REVIEW, ["amount_over_limit"]),
        (Facts(999, 6, False), LIMITS, Outcome.REVIEW, ["velocity_over_limit"]),
        (Facts(1000, 6, False), LIMITS, Outcome.REVIEW, ["amount_over_limit", "velocity_over_limit"]),
        (Facts(1, 0, True), LIMITS, Outcome.DENY, ["account_on_deny_list"]),
        (
            Facts(1000, 6, True),
            LIMITS,
            Outcome.DENY,
            ["account_on_deny_list", "amount_over_limit", "velocity_over_limit"],
        ),
        (Facts(10**15, 10**6, False), Limits(0, 0), Outcome.APPROVE, []),
    ],
)
def test_the_most_severe_opinion_decides_and_all_reasons_are_kept(facts, limits, outcome, reasons):
    assert assess(facts, limits) == (outcome, reasons)


def heard():
    """Every event after the one that asked for the screening."""
    events = Event.objects.exclude(type__in=["transfer.accepted", "transfer.scheduled"]).order_by("id")
    return list(events.values_list("type", "subject", "data"))


@pytest.mark.django_db
@pytest.mark.parametrize("status", ["accepted", "scheduled"])
def test_an_ordinary_transfer_is_approved(accounts, make_transfer, status):
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 100, status, request_id="req-7")

    assert check_risk([transfer.pk]) == 1

    transfer.refresh_from_db()
    assert (transfer.status, transfer.status_reason) == ("approved", "")
    event = Event.objects.get(type="transfer.approved")
    assert (event.subject, event.partition_key, event.data) == (str(transfer.pk), str(alice.pk), {})
    assert (event.request_id, event.published_at, event.attempt) == ("req-7", None, 0)
    assert Review.objects.count() == 0


@pytest.mark.django_db
def test_a_large_transfer_waits_for_a_person(accounts, make_transfer, settings):
    settings.RISK_REVIEW_AMOUNT_MINOR = 500
    alice, bob = accounts(1000, 0)
    large, small = make_transfer(alice, bob, 500, "accepted"), make_transfer(alice, bob, 499, "accepted")

    check_risk([large.pk, small.pk])

    assert Transfer.objects.get(pk=large.pk).status == "in_review"
    review = Review.objects.get()
    assert (review.transfer_id, review.reasons, review.decision) == (large.pk, ["amount_over_limit"], "")
    assert heard() == [
        ("transfer.in_review", str(large.pk), {"notes": ["amount_over_limit"]}),
        ("transfer.approved", str(small.pk), {}),
    ]


@pytest.mark.django_db
@pytest.mark.parametrize("side", ["payer", "receiver"])
def test_a_denied_account_neither_pays_nor_receives(accounts, make_transfer, side):
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 100, "accepted")
    DeniedAccount.objects.create(account=alice if side == "payer" else bob, why="court order")

    check_risk([transfer.pk])

    transfer.refresh_from_db()
    assert (transfer.status, transfer.status_reason) == ("rejected", "risk_denied")
    data = {"reason": "risk_denied", "notes": ["account_on_deny_list"]}
    assert heard() == [("transfer.rejected", str(transfer.pk), data)]


@pytest.mark.django_db
def test_only_the_payments_within_the_window_count_for_velocity(accounts, make_transfer, settings):
    settings.RISK_VELOCITY_COUNT, settings.RISK_VELOCITY_WINDOW_SECONDS = 2, 60
    alice, bob, carol = accounts(1000, 1000, 1000)
    before = oldest_id_at(timezone.now() - timedelta(seconds=61))
    old = make_transfer(alice, carol, 1, "accepted", id=before)
    of_alice = [make_transfer(alice, carol, 1, "accepted") for _ in range(2)]
    of_bob = [make_transfer(bob, carol, 1, "accepted") for _ in range(3)]

    check_risk([t.pk for t in [old, *of_alice, *of_bob]])

    statuses = [Transfer.objects.get(pk=t.pk).status for t in [old, *of_alice, *of_bob]]
    assert statuses == ["approved"] * 3 + ["in_review"] * 3
    assert list(Review.objects.values_list("reasons", flat=True)) == [["velocity_over_limit"]] * 3


class Stretch:
    """Hands transfers to the stage in messages that follow each other without a gap."""

    def __init__(self, queue):
        self.queue, self.numbering = queue, Numbering()

    def screen(self, *transfers):
        place = self.numbering.next(self.queue)
        self.numbering.take(self.queue, place)
        with follow(self.queue, str(place)):
            check_risk([transfer.pk for transfer in transfers])
        return [Transfer.objects.get(pk=transfer.pk).status for transfer in transfers]


@pytest.fixture
def stretch(request):
    return Stretch(f"risk of {request.node.name}")


@pytest.fixture
def counted(statements):
    """Tell how often debits were counted since the last call."""

    def number():
        count = len([text for text in statements if "AS recent)" in text])
        statements.clear()
        return count

    return number


@pytest.mark.django_db
def test_an_account_far_from_the_limit_is_not_counted_for_each_message(
    accounts, make_transfer, settings, stretch, counted
):
    settings.RISK_VELOCITY_COUNT, settings.RISK_VELOCITY_WINDOW_SECONDS = 100, 3600
    alice, bob, carol = accounts(1000, 1000, 0)

    assert [stretch.screen(make_transfer(alice, carol, 1, "accepted")) for _ in range(4)] == [["approved"]] * 4
    assert counted() == 1
    # Only the one that is not known is counted.
    both = [make_transfer(payer, carol, 1, "accepted") for payer in (alice, bob)]
    assert (stretch.screen(*both), counted()) == (["approved"] * 2, 1)
    assert (stretch.screen(make_transfer(bob, carol, 1, "accepted")), counted()) == (["approved"], 0)


@pytest.mark.django_db
def test_the_one_over_the_limit_is_held_however_fresh_the_count(accounts, make_transfer, settings, stretch, counted):
    settings.RISK_VELOCITY_COUNT, settings.RISK_VELOCITY_WINDOW_SECONDS = 10, 3600
    alice, bob = accounts(1000, 0)

    statuses = [stretch.screen(make_transfer(alice, bob, 1, "accepted")) for _ in range(12)]

    assert statuses == [["approved"]] * 10 + [["in_review"]] * 2
    assert counted() < 8


@pytest.mark.django_db
def test_a_count_is_good_for_a_part_of_the_window_only(accounts, make_transfer, settings, stretch, monkeypatch):
    """What is accepted meanwhile and still waits in the queue is seen then."""
    settings.RISK_VELOCITY_COUNT, settings.RISK_VELOCITY_WINDOW_SECONDS = 10, 60
    alice, bob = accounts(1000, 0)
    seconds = [1000.0]
    monkeypatch.setattr(recent_debits, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    assert stretch.screen(make_transfer(alice, bob, 1, "accepted")) == ["approved"]
    waiting = [make_transfer(alice, bob, 1, "accepted") for _ in range(10)]

    assert stretch.screen(waiting[0]) == ["approved"]
    seconds[0] += 60 * recent_debits.SERVES_SHARE
    assert stretch.screen(waiting[1]) == ["in_review"]


@pytest.mark.django_db
def test_a_count_of_a_shorter_past_serves_nobody(accounts, make_transfer, settings, stretch, counted):
    settings.RISK_VELOCITY_COUNT, settings.RISK_VELOCITY_WINDOW_SECONDS = 10, 60
    alice, bob = accounts(1000, 0)
    stretch.screen(make_transfer(alice, bob, 1, "accepted"))
    assert counted() == 1

    stretch.screen(make_transfer(alice, bob, 1, "accepted", created_at=timezone.now() - timedelta(hours=1)))

    assert counted() == 1


@pytest.mark.django_db
def test_without_messages_each_call_counts(accounts, make_transfer, settings, counted):
    """A dry run of the desk is exact."""
    settings.RISK_VELOCITY_COUNT, settings.RISK_VELOCITY_WINDOW_SECONDS = 100, 60
    alice, bob = accounts(1000, 0)
    for _ in range(2):
        check_risk([make_transfer(alice, bob, 1, "accepted").pk])

    assert counted() == 2


@pytest.mark.django_db
def test_an_expired_transfer_is_rejected_and_opens_no_review(accounts, make_transfer, settings):
    settings.RISK_REVIEW_AMOUNT_MINOR = 50
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 100, "accepted", expires_at=timezone.now() - timedelta(seconds=1))

    check_risk([transfer.pk])

    transfer.refresh_from_db()
    assert (transfer.status, transfer.status_reason) == ("rejected", "expired")
    assert Review.objects.count() == 0


@pytest.mark.django_db
def test_events_are_told_in_the_order_asked_for(accounts, make_transfer):
    alice, bob = accounts(1000, 0)
    transfers = [make_transfer(alice, bob, 1, "accepted") for _ in range(4)]
    order = [str(transfers[i].pk) for i in (2, 0, 3, 1)]

    check_risk([transfers[i].pk for i in (2, 0, 3, 1)])

    assert [subject for _, subject, _ in heard()] == order


@pytest.mark.django_db
def test_a_second_screening_does_nothing(accounts, make_transfer):
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 100, "accepted")
    check_risk([transfer.pk])

    assert check_risk([transfer.pk]) == 0

    assert heard() == [("transfer.approved", str(transfer.pk), {})]


@pytest.mark.django_db
def test_nothing_is_screened_when_its_event_cannot_be_written(accounts, make_transfer, settings):
    settings.RISK_REVIEW_AMOUNT_MINOR = 50
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 100, "accepted")

    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE messaging_event ADD CHECK (type <> 'transfer.in_review') NOT VALID")

    with pytest.raises(IntegrityError):
        check_risk([transfer.pk])

    transfer.refresh_from_db()
    assert (transfer.status, Review.objects.count(), heard()) == ("accepted", 0, [])


@pytest.mark.django_db
def test_what_the_broker_lost_is_screened_before_what_came_after_it(accounts, make_transfer):
    payer, shop = accounts(100, 0)
    lost, delivered, later = (make_transfer(payer, shop, 1, "accepted") for _ in range(3))

    assert check_risk([delivered.pk]) == 2

    approved = Event.objects.filter(type="transfer.approved").order_by("id").values_list("subject", flat=True)
    assert list(approved) == [str(lost.pk), str(delivered.pk)]
    later.refresh_from_db()
    assert later.status == "accepted"


@pytest.mark.django_db
@pytest.mark.parametrize("review_from", [1, 1000])
def test_screening_takes_as_many_statements_for_200_as_for_one(
    accounts, make_transfer, statements, settings, review_from
):
    settings.RISK_REVIEW_AMOUNT_MINOR = review_from
    payers = accounts(*[100] * 200)
    (shop,) = accounts(0)
    transfers = [make_transfer(payer, shop, 1, "accepted") for payer in [payers[0], *payers]]

    counts = []
    for some in (transfers[:1], transfers[1:]):
        statements.clear()
        assert check_risk([t.pk for t in some]) == len(some)
        counts.append(len(statements))

    assert counts[0] == counts[1]
    assert set(Transfer.objects.values_list("status", flat=True)) == {"in_review" if review_from == 1 else "approved"}
