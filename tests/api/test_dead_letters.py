"""The dead-letter desk as programs of the bank see it."""

import base64
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth import get_user_model

from accounts.access import SCOPES
from accounts.models import Account
from bankcore.messaging.models import AuditEntry, DeadLetter, DeskRequest, Event
from tests.api.conftest import CUSTOMER_SCOPES, Caller, issue
from transfers.models import Transfer
from transfers.parking import park_transfer

ABSENT = "0190b3a0-0000-7000-8000-000000000000"


@pytest.fixture
def letter(bank: Any) -> DeadLetter:
    return park(bank)


@pytest.fixture
def as_otto(bank: Any) -> Caller:
    user = get_user_model().objects.create_user("otto", password=None, is_staff=True)
    return issue("desk", ["ops:replay"], staff_user=user)


def park(bank: Any, cause: Exception | None = None, **changes: Any) -> DeadLetter:
    transfer_id = bank.as_anna.order(bank.body(**changes)).json()["id"]
    park_transfer(UUID(transfer_id), task="transfers.check_risk", error=cause or KeyError("a bug"), attempts=4)
    return DeadLetter.objects.get(subject=transfer_id)


def status(letter: DeadLetter) -> tuple[str, str]:
    letter.refresh_from_db()
    return letter.state, Transfer.objects.get(pk=letter.subject).status


def test_letters_are_listed_in_pages_and_by_filter(bank: Any) -> None:
    letters = [park(bank), park(bank, ValueError("another")), park(bank)]
    keys = [str(one.pk) for one in letters]

    def listed(query: str) -> list[str]:
        return [one["id"] for one in bank.as_staff.get(f"dead-letters?{query}").json()["results"]]

    first = bank.as_staff.get("dead-letters?page_size=2").json()
    assert [one["id"] for one in first["results"]] == [keys[2], keys[1]]
    assert listed(first["next"].partition("?")[2]) == [keys[0]]
    assert listed("cause=ValueError") == [keys[1]]
    assert listed(f"subject={letters[0].subject}") == [keys[0]]
    assert listed("state=replayed") == []
    assert listed("created_to=2020-01-01T00:00:00Z") == []
    assert listed("task=transfers.check_risk&created_from=2020-01-01T00:00:00Z") == keys[::-1]


@pytest.mark.parametrize("query", ["state=closed", "created_to=yesterday", "nonsense=1", "page_size=0", "cursor=x"])
def test_a_filter_of_nonsense_is_refused(bank: Any, assert_refused: Any, query: str) -> None:
    assert_refused(bank.as_staff.get(f"dead-letters?{query}"), 400, "validation_error")


def test_a_letter_is_shown_with_everything_that_came(bank: Any, letter: DeadLetter) -> None:
    shown = bank.as_staff.get(f"dead-letters/{letter.pk}").json()

    assert (shown["kind"], shown["state"], shown["subject"]) == ("parked", "open", letter.subject)
    assert "KeyError: 'a bug'" in shown["detail"]
    assert (shown["body"], shown["ids"], shown["pending_request"]) == (None, [letter.subject], None)

    raw = b"\xff\x00" * 40_000
    kept = DeadLetter.objects.create(cause="undeliverable", body=raw, body_digest="d", headers={"task": "nonsense"})
    shown = bank.as_staff.get(f"dead-letters/{kept.pk}").json()
    assert (shown["kind"], shown["headers"], shown["body_bytes"]) == ("message", {"task": "nonsense"}, 80_000)
    assert base64.b64decode(shown["body"]) == raw[: 64 * 1024]


def test_a_replay_after_a_dry_run(bank: Any, letter: DeadLetter) -> None:
    Account.objects.filter(pk=bank.annas.pk).update(status="frozen")

    foreseen = bank.as_staff.post(f"dead-letters/{letter.pk}/replay", {"dry_run": True})

    assert foreseen.status_code == 200
    assert foreseen.json() == {
        "letter": str(letter.pk), "dry_run": True, "outcome": "would_be_refused", "code": "account_frozen",
        "detail": "", "second_person": False, "request": None,
    }  # fmt: skip
    assert status(letter) == ("open", "parked")

    done = bank.as_staff.post(f"dead-letters/{letter.pk}/replay", {})

    assert (done.status_code, done.json()["outcome"]) == (200, "replayed")
    assert status(letter) == ("replayed", "accepted")
    assert bank.as_staff.get(f"dead-letters/{letter.pk}").json()["resolved_by"] == "sam"
    entry = AuditEntry.objects.get()
    assert (entry.actor, entry.action, entry.request_id) == ("sam", "dead_letter.replay", done["X-Request-Id"])


@pytest.mark.parametrize("call", ["replay", "discard", "approve", "withdraw"])
def test_a_resolved_letter_is_refused_with_a_problem(
    bank: Any, letter: DeadLetter, assert_refused: Any, call: str
) -> None:
    bank.as_staff.post(f"dead-letters/{letter.pk}/replay", {})
    body = {"replay": {}, "discard": {"reason": "No."}, "approve": {"action": "replay"}, "withdraw": {}}[call]

    refusal = bank.as_staff.post(f"dead-letters/{letter.pk}/{call}", body)

    problem = assert_refused(refusal, 409, "dead_letter_resolved", before=(1, 0, 3))
    assert "sam" in problem["detail"]
    assert problem["retryable"] is False


def test_what_can_never_be_read_is_refused_with_the_reason(bank: Any, assert_refused: Any) -> None:
    kept = DeadLetter.objects.create(cause="undeliverable", body=b"\xff", headers={"task": "transfers.check_risk"})

    refusal = bank.as_staff.post(f"dead-letters/{kept.pk}/replay", {})

    problem = assert_refused(refusal, 422, "not_replayable")
    assert "not JSON" in problem["detail"]
    assert bank.as_staff.post(f"dead-letters/{kept.pk}/discard", {"reason": "Rubbish."}).status_code == 200


def test_a_discard_needs_a_reason_and_ends_the_transfer(bank: Any, letter: DeadLetter, assert_refused: Any) -> None:
    for body in ({}, {"reason": ""}, {"reason": "a\nb"}, {"reason": "x" * 141}, {"reason": 7}):
        assert_refused(
            bank.as_staff.post(f"dead-letters/{letter.pk}/discard", body), 400, "validation_error", before=(1, 0, 2)
        )

    bank.as_staff.post(f"dead-letters/{letter.pk}/discard", {"reason": "The customer gave up."})

    shown = bank.as_anna.get(f"transfers/{letter.subject}").json()
    assert (shown["status"], shown["status_reason"]) == ("rejected", "discarded_by_staff")


def test_many_are_replayed_by_a_filter(bank: Any) -> None:
    letters = [park(bank) for _ in range(3)]
    other = park(bank, ValueError("another"))
    Event.objects.update(published_at="2026-01-01T00:00:00Z")
    order = {"filter": {"cause": "KeyError"}, "limit": 2}

    foreseen = bank.as_staff.post("dead-letters/replay", {**order, "dry_run": True}).json()
    assert (foreseen["counts"], foreseen["more"]) == ({"would_be_refused": 2}, True)
    assert {one["code"] for one in foreseen["results"]} == {"insufficient_funds"}
    assert status(letters[0]) == ("open", "parked")
    done = bank.as_staff.post("dead-letters/replay", {**order, "rate": 0.1}).json()

    assert (done["counts"], done["more"]) == ({"replayed": 2}, True)
    assert [status(one)[0] for one in [*letters, other]] == ["replayed", "replayed", "open", "open"]
    due = list(Event.objects.filter(published_at=None).order_by("id").values_list("due_at", flat=True))
    assert 9 < (due[1] - due[0]).total_seconds() < 12


@pytest.mark.parametrize(
    "body", [{}, {"filter": {"state": "open"}}, {"filter": {}, "limit": 501}, {"filter": {}, "rate": 0}, {"filter": []}]
)
def test_a_bulk_replay_of_nonsense_is_refused(bank: Any, letter: DeadLetter, assert_refused: Any, body: Any) -> None:
    assert_refused(bank.as_staff.post("dead-letters/replay", body), 400, "validation_error", before=(1, 0, 2))
    assert status(letter) == ("open", "parked")


def test_much_money_takes_two_people(
    bank: Any, letter: DeadLetter, as_otto: Caller, settings: Any, assert_refused: Any
) -> None:
    settings.DESK_SECOND_PERSON_AMOUNT_MINOR = 1233
    path = f"dead-letters/{letter.pk}"

    asked = bank.as_staff.post(f"{path}/replay", {})

    assert (asked.status_code, asked.json()["outcome"]) == (202, "awaiting_approval")
    pending = as_otto.get(path).json()["pending_request"]
    assert (pending["id"], pending["action"], pending["requested_by"]) == (asked.json()["request"], "replay", "sam")
    again = bank.as_staff.post(f"{path}/replay", {})
    assert_refused(again, 409, "approval_pending", before=(1, 0, 2))
    own = bank.as_staff.post(f"{path}/approve", {"action": "replay"})
    assert_refused(own, 403, "same_person", before=(1, 0, 2))
    other = as_otto.post(f"{path}/approve", {"action": "discard"})
    assert_refused(other, 409, "no_request", before=(1, 0, 2))
    robot = issue("robot", ["ops:replay"]).post(f"{path}/approve", {"action": "replay"})
    assert_refused(robot, 403, "person_needed", before=(1, 0, 2))
    assert status(letter) == ("open", "parked")

    assert as_otto.post(f"{path}/approve", {"action": "replay"}).json()["outcome"] == "replayed"

    assert status(letter) == ("replayed", "accepted")
    assert DeskRequest.objects.get().decision == "approved"


def test_another_token_of_the_same_person_is_no_second_person(
    bank: Any, letter: DeadLetter, settings: Any, assert_refused: Any
) -> None:
    settings.DESK_SECOND_PERSON_AMOUNT_MINOR = 0
    sams_other = issue("other", ["ops:replay"], staff_user=get_user_model().objects.get(username="sam"))
    bank.as_staff.post(f"dead-letters/{letter.pk}/discard", {"reason": "No."})

    refusal = sams_other.post(f"dead-letters/{letter.pk}/approve", {"action": "discard"})

    assert_refused(refusal, 403, "same_person", before=(1, 0, 2))


def test_a_request_is_withdrawn(bank: Any, letter: DeadLetter, settings: Any, assert_refused: Any) -> None:
    settings.DESK_SECOND_PERSON_AMOUNT_MINOR = 0
    bank.as_staff.post(f"dead-letters/{letter.pk}/replay", {})

    assert bank.as_staff.post(f"dead-letters/{letter.pk}/withdraw").json() == {
        "letter": str(letter.pk),
        "outcome": "withdrawn",
    }
    assert_refused(bank.as_staff.post(f"dead-letters/{letter.pk}/withdraw"), 409, "no_request", before=(1, 0, 2))


CALLS = [
    ("get", "dead-letters", None),
    ("get", "dead-letters/{}", None),
    ("post", "dead-letters/replay", {"filter": {}}),
    ("post", "dead-letters/{}/replay", {}),
    ("post", "dead-letters/{}/discard", {"reason": "No."}),
    ("post", "dead-letters/{}/approve", {"action": "replay"}),
    ("post", "dead-letters/{}/withdraw", None),
]


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_a_strangers_token_finds_nothing(
    bank: Any, letter: DeadLetter, assert_refused: Any, method: str, path: str, body: Any
) -> None:
    def call(caller: Caller) -> Any:
        address = path.format(letter.pk)
        return caller.get(address) if method == "get" else caller.post(address, body)

    assert_refused(call(bank.as_anna), 403, "scope_missing", before=(1, 0, 2))
    without = issue("staff", [scope for scope in SCOPES if scope != "ops:replay"])
    assert_refused(call(without), 403, "scope_missing", before=(1, 0, 2))
    # A customer's token may have the scope for its own webhooks: the desk is still not there.
    customers = issue("shop", [*CUSTOMER_SCOPES, "ops:replay"], customer=bank.anna)
    assert_refused(call(customers), 404, "not_found", before=(1, 0, 2))
    assert_refused(call(Caller("nonsense")), 401, "authentication_failed", before=(1, 0, 2))
    assert status(letter) == ("open", "parked")


@pytest.mark.parametrize("number", ["7", "0", "-1", "x", "9" * 30, "9" * 5000, "1.5", "%00", ABSENT])
def test_there_is_no_letter_by_another_number(bank: Any, letter: DeadLetter, assert_refused: Any, number: str) -> None:
    number = str(letter.pk + 7) if number == "7" else number
    assert_refused(bank.as_staff.get(f"dead-letters/{number}"), 404, "not_found", before=(1, 0, 2))
    for body in ({}, {"dry_run": True}):
        refusal = bank.as_staff.post(f"dead-letters/{number}/replay", body)
        assert_refused(refusal, 404, "not_found", before=(1, 0, 2))
