"""A held-up transfer is decided once, by someone else than its initiator."""

import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.urls import reverse
from prometheus_client import REGISTRY

from bankcore.errors import BankError, NotFound
from bankcore.identifiers import new_id
from bankcore.messaging.models import Event
from tests.pages.conftest import make_review, make_transfer
from transfers.errors import NotInReview, OwnTransfer, ReviewAlreadyDecided
from transfers.models import Review, Transfer
from transfers.reviews import decide

APPROVE, DECLINE = Review.Decision.APPROVE, Review.Decision.DECLINE


def state_of(review: Review) -> tuple[str, str, str, int | None]:
    row = Transfer.objects.select_related("review").get(pk=review.pk)
    return row.status, row.status_reason, row.review.decision, row.review.decided_by_id


def events_of(review: Review) -> list[tuple[str, str, str, dict[str, str]]]:
    events = Event.objects.filter(subject=str(review.pk)).exclude(type="transfer.accepted").order_by("id")
    return list(events.values_list("type", "partition_key", "actor", "data"))


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("decision", "status", "reason"), [(APPROVE, "approved", ""), (DECLINE, "rejected", "review_declined")]
)
def test_a_decision_moves_the_transfer_and_tells(
    decision: Review.Decision,
    status: str,
    reason: str,
    accounts: SimpleNamespace,
    reviewer: User,
    django_capture_on_commit_callbacks: Callable[..., object],
) -> None:
    review = make_review(accounts)
    labels = {"status": status, "reason": reason}
    before = REGISTRY.get_sample_value("bankcore_transfers_total", labels) or 0

    with django_capture_on_commit_callbacks(execute=True):  # type: ignore[attr-defined]
        assert decide(review.pk, staff=reviewer, decision=decision, note="Called the customer.") == status

    assert state_of(review) == (status, reason, decision, reviewer.pk)
    review.refresh_from_db()
    assert review.note == "Called the customer."
    assert review.decided_at is not None
    data = {"reason": reason} if reason else {}
    assert events_of(review) == [(f"transfer.{status}", str(accounts.payer.pk), "reviewer", data)]
    assert REGISTRY.get_sample_value("bankcore_transfers_total", labels) == before + 1


@pytest.mark.django_db
def test_a_second_decision_is_refused(accounts: SimpleNamespace, reviewer: User, superuser: User) -> None:
    review = make_review(accounts)
    decide(review.pk, staff=reviewer, decision=DECLINE)

    with pytest.raises(ReviewAlreadyDecided) as refusal:
        decide(review.pk, staff=superuser, decision=APPROVE)

    assert (refusal.value.code, refusal.value.http_status) == ("review_already_decided", 409)
    assert state_of(review) == ("rejected", "review_declined", "decline", reviewer.pk)
    assert len(events_of(review)) == 1


@pytest.mark.django_db
def test_nobody_decides_on_their_own_transfer(accounts: SimpleNamespace, reviewer: User) -> None:
    review = make_review(accounts, initiator=reviewer)

    with pytest.raises(OwnTransfer) as refusal:
        decide(review.pk, staff=reviewer, decision=APPROVE)

    assert (refusal.value.code, refusal.value.http_status) == ("own_transfer", 403)
    assert state_of(review) == ("in_review", "", "", None)
    assert events_of(review) == []


@pytest.mark.django_db
def test_a_transfer_that_left_review_is_let_go(accounts: SimpleNamespace, reviewer: User) -> None:
    review = make_review(accounts)
    Transfer.objects.filter(pk=review.pk).update(status="cancelled", status_reason="cancelled_by_client")

    with pytest.raises(NotInReview) as refusal:
        decide(review.pk, staff=reviewer, decision=APPROVE)

    assert refusal.value.code == "not_in_review"
    assert state_of(review) == ("cancelled", "cancelled_by_client", "", None)
    assert events_of(review) == []


@pytest.mark.django_db
def test_only_a_reviewed_transfer_can_be_decided(accounts: SimpleNamespace, reviewer: User) -> None:
    for unknown in (new_id(), make_transfer(accounts).pk):
        with pytest.raises(NotFound):
            decide(unknown, staff=reviewer, decision=APPROVE)


@pytest.mark.django_db(transaction=True)
def test_of_two_at_once_one_decides(accounts: SimpleNamespace, reviewer: User, superuser: User) -> None:
    review = make_review(accounts)
    start, answers = threading.Barrier(2), []

    def take(staff: User, decision: Review.Decision) -> None:
        start.wait()
        try:
            answers.append(str(decide(review.pk, staff=staff, decision=decision)))
        except BankError as error:
            answers.append(error.code)
        finally:
            connection.close()

    threads = [threading.Thread(target=take, args=pair) for pair in ((reviewer, APPROVE), (superuser, DECLINE))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert "review_already_decided" in answers
    assert len(set(answers)) == 2
    assert len(events_of(review)) == 1


@pytest.fixture
def queue(reviewer: User) -> Client:
    client = Client()
    client.force_login(reviewer)
    return client


@pytest.mark.django_db
def test_the_buttons_ask_before_they_decide(queue: Client, accounts: SimpleNamespace, reviewer: User) -> None:
    review = make_review(accounts)
    url = reverse("admin:transfers_review_approve", args=[review.pk])

    assert b"Approve this transfer?" in queue.get(url).content
    assert state_of(review)[0] == "in_review"
    answer = queue.post(url, {"_form_submitted": "True", "note": "Fine."})

    assert answer.headers["HX-Redirect"] == reverse("admin:transfers_review_change", args=[review.pk])
    assert state_of(review) == ("approved", "", "approve", reviewer.pk)


@pytest.mark.django_db
def test_a_refusal_is_said_on_the_page(queue: Client, accounts: SimpleNamespace, reviewer: User) -> None:
    review = make_review(accounts, initiator=reviewer)
    url = reverse("admin:transfers_review_decline", args=[review.pk])

    answer = queue.post(url, {"_form_submitted": "True", "note": ""})

    page = queue.get(answer.headers["HX-Redirect"]).content.decode()
    assert "Nobody decides on a transfer they initiated" in page
    assert state_of(review) == ("in_review", "", "", None)


@pytest.mark.django_db
def test_selected_reviews_are_confirmed_first(queue: Client, accounts: SimpleNamespace, reviewer: User) -> None:
    own, other = make_review(accounts, initiator=reviewer), make_review(accounts)
    url = reverse("admin:transfers_review_changelist")
    form = {"action": "approve_selected", "_selected_action": [str(own.pk), str(other.pk)]}

    asked = queue.post(url, form)
    assert "Approve 2 transfer(s)?" in asked.content.decode()
    assert state_of(other)[0] == "in_review"
    said = queue.post(url, {**form, "confirmed": "yes", "note": "Fine."}, follow=True).content.decode()

    assert "1 transfer(s) approved." in said
    assert "Nobody decides on a transfer they initiated" in said
    assert state_of(own)[0] == "in_review"
    assert state_of(other) == ("approved", "", "approve", reviewer.pk)


@pytest.mark.django_db
def test_deciding_needs_the_right(queue: Client, accounts: SimpleNamespace, reviewer: User) -> None:
    review = make_review(accounts)
    reviewer.user_permissions.set(reviewer.user_permissions.exclude(codename="change_review"))

    detail = queue.post(reverse("admin:transfers_review_approve", args=[review.pk]), {"_form_submitted": "True"})
    selected = {"action": "approve_selected", "_selected_action": [str(review.pk)], "confirmed": "yes"}
    queue.post(reverse("admin:transfers_review_changelist"), selected)

    assert detail.status_code == 403
    assert state_of(review) == ("in_review", "", "", None)


@pytest.mark.django_db
def test_the_queue_opens_with_what_waits(queue: Client, accounts: SimpleNamespace, superuser: User) -> None:
    waiting, decided = make_review(accounts), make_review(accounts)
    decide(decided.pk, staff=superuser, decision=APPROVE)
    url = reverse("admin:transfers_review_changelist")

    def shown(query: str) -> set[object]:
        return {review.pk for review in queue.get(url + query).context["cl"].result_list}

    assert shown("") == {waiting.pk}
    assert b"Nothing waits here" not in queue.get(url).content
    assert shown("?queue=decided") == {decided.pk}
    assert shown("?queue=all") == {waiting.pk, decided.pk}
    decide(waiting.pk, staff=superuser, decision=APPROVE)
    assert b"Nothing waits here" in queue.get(url).content
