"""At the dead-letter desk much money takes two people, whatever one of them tries."""

import pytest
from django.contrib.auth import get_user_model
from django.db import IntegrityError, transaction

from bankcore.messaging import dead_letters, desk
from bankcore.messaging.errors import (
    NothingToApprove,
    NotReplayable,
    PersonNeeded,
    RequestPending,
    SamePerson,
)
from bankcore.messaging.forecasts import foresee
from bankcore.messaging.models import AuditEntry, DeskRequest
from tests.messaging.desk_view import POST, owed, state, together
from transfers.models import Transfer

pytestmark = pytest.mark.django_db


@pytest.fixture
def large(parked, settings):
    settings.DESK_SECOND_PERSON_AMOUNT_MINOR = 299
    return parked


@pytest.mark.parametrize(("action", "end"), [("replay", "approved"), ("discard", "rejected")])
def test_much_money_takes_two_people(large, olga, otto, action, end):
    letter = large(300)
    ask = {
        "replay": lambda: desk.replay(letter.pk, actor=olga),
        "discard": lambda: desk.discard(letter.pk, reason="Why.", actor=olga),
    }[action]

    assert foresee([letter.pk])[0].second_person is True
    assert ask().outcome == "awaiting_approval"
    assert state(letter)[:2] == ("open", "parked")
    with pytest.raises(RequestPending):
        ask()
    with pytest.raises(SamePerson) as refusal:
        desk.approve(letter.pk, action=action, actor=olga)
    assert (refusal.value.code, refusal.value.http_status) == ("same_person", 403)
    with pytest.raises(NothingToApprove):
        desk.approve(letter.pk, action="discard" if action == "replay" else "replay", actor=otto)
    assert state(letter)[:2] == ("open", "parked")

    desk.approve(letter.pk, action=action, actor=otto)

    assert state(letter)[:2] == ({"replay": "replayed", "discard": "discarded"}[action], end)
    request = DeskRequest.objects.get()
    assert (request.requested_by_id, request.decided_by_id, request.decision) == (
        olga.user_id,
        otto.user_id,
        "approved",
    )
    trail = list(AuditEntry.objects.order_by("id").values_list("actor", "action"))
    assert trail == [
        ("olga", f"dead_letter.request_{action}"),
        ("otto", f"dead_letter.approve_{action}"),
        ("otto", f"dead_letter.{action}"),
    ]


def test_the_amount_itself_is_not_above_it(parked, olga, settings):
    settings.DESK_SECOND_PERSON_AMOUNT_MINOR = 300

    assert desk.replay(parked(300).pk, actor=olga).outcome == "replayed"


def test_another_spelling_of_the_id_is_no_way_around_the_second_person(large, olga):
    letter = large(300)
    spelled = dead_letters.park_work(task=POST, subject=letter.subject.upper(), error=ZeroDivisionError(), attempts=1)

    with pytest.raises(NotReplayable):
        desk.replay(spelled.pk, actor=olga)
    desk.discard(spelled.pk, reason="A wrong id.", actor=olga)

    assert state(letter)[:2] == ("open", "parked")


def test_a_program_that_nobody_signs_for_is_no_second_person(large, olga):
    letter, robot = large(300), desk.actor_of_client("robot", None)

    with pytest.raises(PersonNeeded):
        desk.replay(letter.pk, actor=robot)
    desk.replay(letter.pk, actor=olga)
    with pytest.raises(PersonNeeded):
        desk.approve(letter.pk, action="replay", actor=robot)

    assert state(letter)[:2] == ("open", "parked")


def test_a_request_is_withdrawn_and_made_anew(large, olga, otto):
    letter = large(300)
    desk.replay(letter.pk, actor=olga)

    desk.withdraw(letter.pk, actor=otto)

    with pytest.raises(NothingToApprove):
        desk.approve(letter.pk, action="replay", actor=otto)
    assert desk.discard(letter.pk, reason="No.", actor=otto).outcome == "awaiting_approval"
    assert desk.approve(letter.pk, action="discard", actor=olga).outcome == "discarded"


def test_nobody_is_asked_to_approve_what_is_refused_anyway(large, olga):
    letter = large(300)
    Transfer.objects.filter(pk=letter.subject).update(status="cancelled")

    with pytest.raises(NotReplayable):
        desk.replay(letter.pk, actor=olga)

    assert DeskRequest.objects.count() == 0


def test_the_database_refuses_one_person_as_two(large, olga):
    desk.replay(large(300).pk, actor=olga)

    with pytest.raises(IntegrityError, match="deskrequest_second_person"), transaction.atomic():
        DeskRequest.objects.update(decision="approved", decided_by=olga.user_id)
    with pytest.raises(IntegrityError, match="deskrequest_second_person"), transaction.atomic():
        DeskRequest.objects.update(decision="approved")


@pytest.mark.django_db(transaction=True)
def test_of_two_approvals_at_once_one_has_an_effect(large, olga):
    users = get_user_model().objects
    letter = large(300)
    desk.replay(letter.pk, actor=olga)
    others = [desk.actor_of(users.create_user(f"second{i}", is_staff=True)) for i in range(4)]

    answers = together(*[lambda who=who: desk.approve(letter.pk, action="replay", actor=who) for who in others])

    assert answers == ["dead_letter_resolved"] * 3 + ["replayed"]
    assert len(owed()) == 1
