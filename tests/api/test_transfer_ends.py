"""What callers do about a transfer on its way: cancel it; how they wait for its end is in test_waiting.py."""

from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth import get_user_model

from bankcore.messaging.models import DeadLetter
from bankcore.messaging.outbox import NewEvent, record
from tests.api.conftest import move
from transfers import views
from transfers.errors import NotInReview
from transfers.models import Review, Transfer
from transfers.parking import park_transfer
from transfers.reviews import decide
from transfers.states import Status


@pytest.mark.parametrize("path", [[], [Status.IN_REVIEW], [Status.APPROVED], [Status.PARKED]])
def test_a_transfer_is_cancelled_before_posting(bank: Any, path: list[Status]) -> None:
    transfer_id = bank.as_anna.order(bank.body()).json()["id"]
    move(transfer_id, *path)

    response = bank.as_anna.post(f"transfers/{transfer_id}/cancel")

    assert response.status_code == 200
    assert (response.json()["status"], response.json()["status_reason"]) == ("cancelled", "cancelled_by_client")
    steps = bank.as_anna.get(f"transfers/{transfer_id}/timeline").json()["results"]
    assert [(step["type"], step["reason"]) for step in steps] == [
        ("transfer.accepted", None),
        ("transfer.cancelled", "cancelled_by_client"),
    ]


def test_a_long_timeline_comes_in_pages_oldest_first(bank: Any) -> None:
    transfer_id = bank.as_anna.order(bank.body()).json()["id"]
    kinds = ["transfer.parked", "transfer.approved"] * 2
    record([NewEvent(type=kind, partition_key=str(bank.annas.id), subject=transfer_id) for kind in kinds])
    kinds = ["transfer.accepted", *kinds]
    path, seen, back = f"transfers/{transfer_id}/timeline?page_size=2", [], []

    while path:
        page = bank.as_anna.get(path).json()
        seen.append([step["type"] for step in page["results"]])
        last, path = page, (page["next"] or "").partition("/api/v1/")[2]
    while path := (last["previous"] or "").partition("/api/v1/")[2]:
        last = bank.as_anna.get(path).json()
        back.append([step["type"] for step in last["results"]])

    assert seen == [kinds[:2], kinds[2:4], kinds[4:]]
    assert back == [kinds[2:4], kinds[:2]]
    assert bank.as_anna.get(f"transfers/{transfer_id}/timeline").json()["next"] is None


def test_a_posted_transfer_is_promised_nothing_that_there_is_not(bank: Any) -> None:
    transfer_id = bank.as_anna.order(bank.body()).json()["id"]
    move(transfer_id, Status.APPROVED, Status.POSTED)

    detail = bank.as_anna.post(f"transfers/{transfer_id}/cancel").json()["detail"]

    assert "reversal" not in detail


def test_cancelling_takes_the_transfer_out_of_the_review_queue(bank: Any) -> None:
    transfer_id = bank.as_anna.order(bank.body()).json()["id"]
    move(transfer_id, Status.IN_REVIEW)
    Review.objects.create(transfer_id=transfer_id, reasons=["amount_over_limit"])

    bank.as_anna.post(f"transfers/{transfer_id}/cancel")

    review = Review.objects.get()
    assert (review.decision, review.decided_by, review.note) == ("void", None, "Cancelled by shop.")
    assert review.decided_at is not None
    with pytest.raises(NotInReview):
        decide(review.pk, staff=get_user_model().objects.get(), decision=Review.Decision.APPROVE)


def test_cancelling_a_parked_transfer_closes_its_dead_letter(bank: Any) -> None:
    ids = [bank.as_anna.order(bank.body()).json()["id"] for _ in range(2)]
    for transfer_id in ids:
        park_transfer(UUID(transfer_id), task="transfers.check_risk", error=KeyError("a bug"), attempts=4)

    bank.as_anna.post(f"transfers/{ids[0]}/cancel")

    letter, other = (DeadLetter.objects.get(subject=transfer_id) for transfer_id in ids)
    assert (letter.state, letter.resolution, letter.resolved_by) == ("discarded", "Cancelled by shop.", None)
    assert (other.state, other.resolved_at) == ("open", None)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ([Status.APPROVED, Status.POSTED], "already_posted"),
        ([Status.REJECTED], "not_cancellable"),
        ([Status.CANCELLED], "not_cancellable"),
    ],
)
def test_an_ended_transfer_is_not_cancelled(bank: Any, assert_refused: Any, path: list[Status], code: str) -> None:
    transfer_id = bank.as_anna.order(bank.body()).json()["id"]
    move(transfer_id, *path)

    assert_refused(bank.as_anna.post(f"transfers/{transfer_id}/cancel"), 409, code, before=(1, 0, 1))
    assert Transfer.objects.get().status == path[-1]


def test_only_the_payer_cancels(bank: Any, assert_refused: Any) -> None:
    transfer_id = bank.as_anna.order(bank.body()).json()["id"]

    # The payee hears of it once the money has come; until then there is nothing to see.
    assert bank.as_bruno.get(f"transfers/{transfer_id}").status_code == 404
    assert_refused(bank.as_bruno.post(f"transfers/{transfer_id}/cancel"), 404, "not_found", before=(1, 0, 1))


def test_an_order_is_answered_at_once_whatever_it_prefers(bank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "is_over", None)

    response = bank.as_anna.order(bank.body(), prefer="wait=20")

    assert (response.status_code, response.json()["status"]) == (202, "accepted")
    assert "Preference-Applied" not in response
