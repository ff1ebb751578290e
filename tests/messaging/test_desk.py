"""The dead-letter desk: every letter is resolved once, by a person, and what it is about goes on or ends."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from django.db import IntegrityError, connection, transaction

from accounts.access import Client
from accounts.models import Account, JournalEntry
from bankcore.errors import NotFound
from bankcore.messaging import dead_letters, desk
from bankcore.messaging.errors import (
    LetterResolved,
    NotReplayable,
)
from bankcore.messaging.forecasts import foresee
from bankcore.messaging.models import AuditEntry, DeadLetter, Event
from tests.messaging.desk_view import CHECK, POST, owed, run_pipeline, state, together
from transfers.cancellation import cancel_transfer
from transfers.models import Transfer
from transfers.parking import park_transfer
from transfers.sweep import sweep_stuck

pytestmark = pytest.mark.django_db


# -- replay ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "status"), [(CHECK, "accepted"), (POST, "approved")])
def test_a_replay_goes_on_with_the_same_transfer_from_the_stage_that_parked_it(parked, olga, task, status):
    letter = parked(task=task)

    outcome = desk.replay(letter.pk, actor=olga)

    assert (outcome.outcome, outcome.detail) == ("replayed", f"the transfer goes on as {status}")
    assert state(letter) == ("replayed", status, "")
    assert owed() == [(f"transfer.{status}", letter.subject, 0)]
    assert (letter.resolved_by_id, letter.resolution) == (olga.user_id, f"olga: {outcome.detail}")
    run_pipeline()
    assert state(letter)[1] == "posted"
    assert JournalEntry.objects.filter(reference=f"transfer:{letter.subject}").count() == 1
    assert list(AuditEntry.objects.values_list("actor", "action", "subject")) == [
        ("olga", "dead_letter.replay", str(letter.pk))
    ]


def test_replaying_twice_has_one_effect_and_the_second_is_told(parked, olga, otto):
    letter = parked()
    desk.replay(letter.pk, actor=olga)

    with pytest.raises(LetterResolved, match="olga") as refusal:
        desk.replay(letter.pk, actor=otto)

    assert (refusal.value.code, refusal.value.http_status) == ("dead_letter_resolved", 409)
    assert len(owed()) == 1
    assert AuditEntry.objects.count() == 1


def test_a_transfer_that_risk_never_approved_is_screened_whatever_its_letter_says(parked, olga, make_transfer):
    transfer = make_transfer(parked.alice, parked.bob, 10, "accepted")
    park_transfer(transfer.pk, task=POST, error=ZeroDivisionError("a forged message met a bug"), attempts=1)

    desk.replay(DeadLetter.objects.get().pk, actor=olga)

    assert Transfer.objects.get(pk=transfer.pk).status == "accepted"


def test_work_parked_twice_has_one_decision(parked, olga):
    letter = parked()
    second = dead_letters.park_work(task=POST, subject=letter.subject, error=ZeroDivisionError(), attempts=1)

    desk.replay(letter.pk, actor=olga)

    second.refresh_from_db()
    assert second.state == "replayed"
    with pytest.raises(LetterResolved):
        desk.replay(second.pk, actor=olga)


def test_a_transfer_that_moved_on_is_not_replayed(parked, olga):
    letter = parked()
    Transfer.objects.filter(pk=letter.subject).update(status="rejected", status_reason="by hand")

    with pytest.raises(NotReplayable, match="not parked but rejected") as refusal:
        desk.replay(letter.pk, actor=olga)

    assert (refusal.value.code, refusal.value.http_status) == ("not_replayable", 422)
    assert state(letter) == ("open", "rejected", "by hand")
    assert desk.discard(letter.pk, reason="It ended another way.", actor=olga).outcome == "discarded"
    assert state(letter) == ("discarded", "rejected", "by hand")


def test_a_transfer_for_a_later_day_is_not_replayed_before_it(parked, olga):
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    letter = parked(task=CHECK, status="scheduled", execute_on=tomorrow)

    with pytest.raises(NotReplayable, match=str(tomorrow)):
        desk.replay(letter.pk, actor=olga)

    assert [f.would for f in foresee([letter.pk])] == ["nothing"]
    assert state(letter) == ("open", "parked", "processing_failed")


def test_no_letter_is_found_by_a_number_that_none_has(olga):
    for verb in (lambda: desk.replay(7, actor=olga), lambda: desk.discard(7, reason="?", actor=olga)):
        with pytest.raises(NotFound):
            verb()


def test_a_bulk_replay_is_spread_in_time_and_the_sweep_leaves_it_alone(parked, olga, settings):
    letters = [parked(1) for _ in range(3)]

    outcomes = desk.replay_each([one.pk for one in letters] + [letters[0].pk], actor=olga, rate=0.01)

    assert [o.outcome for o in outcomes] == ["replayed"] * 3 + ["refused"]
    assert outcomes[3].code == "dead_letter_resolved"
    due = list(Event.objects.filter(published_at=None).order_by("id").values_list("due_at", flat=True))
    assert [round((later - due[0]).total_seconds(), -1) for later in due] == [0, 100, 200]
    settings.STUCK_SECONDS = 0
    sweep_stuck()
    assert list(Event.objects.filter(published_at=None).order_by("id").values_list("due_at", flat=True)) == due


@pytest.mark.django_db(transaction=True)
def test_of_ten_replays_at_once_one_has_an_effect(parked, olga, otto):
    letter = parked()

    answers = together(*[lambda who=who: desk.replay(letter.pk, actor=who) for who in (olga, otto) * 5])

    assert answers == ["dead_letter_resolved"] * 9 + ["replayed"]
    assert len(owed()) == 1
    run_pipeline()
    run_pipeline()
    assert JournalEntry.objects.filter(reference=f"transfer:{letter.subject}").count() == 1
    assert Account.objects.get(pk=parked.alice.pk).posted_minor == 700


@pytest.mark.django_db(transaction=True)
def test_of_a_replay_and_a_discard_at_once_one_happens(parked, olga, otto):
    for _ in range(5):
        letter = parked(1)

        answers = together(
            lambda letter=letter: desk.replay(letter.pk, actor=olga),
            lambda letter=letter: desk.discard(letter.pk, reason="No.", actor=otto),
        )

        assert answers in (["dead_letter_resolved", "replayed"], ["dead_letter_resolved", "discarded"])
        assert state(letter)[:2] == (("replayed", "approved") if "replayed" in answers else ("discarded", "rejected"))


@pytest.mark.django_db(transaction=True)
def test_a_cancellation_at_the_same_time_comes_first_or_second_and_never_deadlocks(parked, olga):
    client = Client(name="shop", customer_id=None, scopes=frozenset({"staff"}), staff_user_id=None)

    def cancel(letter):
        cancel_transfer(UUID(letter.subject), client=client)
        return desk.Outcome(letter.pk, "cancelled")

    for _ in range(10):
        letter = parked(1)

        answers = together(
            lambda letter=letter: desk.replay(letter.pk, actor=olga), lambda letter=letter: cancel(letter)
        )

        # A transfer that goes on can be cancelled as well, a moment later.
        assert answers in (["cancelled", "dead_letter_resolved"], ["cancelled", "replayed"])
        assert state(letter)[1:] == ("cancelled", "cancelled_by_client")


# -- discard -----------------------------------------------------------------------------------------------------------


def test_a_discarded_transfer_is_rejected_with_a_stable_reason_and_the_letter_stays(parked, olga):
    letter = parked()

    desk.discard(letter.pk, reason="The customer pays by card.", actor=olga)

    assert state(letter) == ("discarded", "rejected", "discarded_by_staff")
    assert letter.resolution == "olga: The customer pays by card."
    assert owed() == [("transfer.rejected", letter.subject, 0)]
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.reason) == ("dead_letter.discard", "The customer pays by card.")
    assert not JournalEntry.objects.filter(reference=f"transfer:{letter.subject}").exists()
    with pytest.raises(LetterResolved):
        desk.replay(letter.pk, actor=olga)


def test_what_was_written_for_staff_does_not_reach_the_customer(parked, olga):
    desk.discard(parked().pk, reason="Looks like fraud.", actor=olga)

    assert "fraud" not in str(list(Event.objects.values()))


# -- rivals' failings: capped or expiring dead letters -----------------------------------------------------------------


def test_no_capped_or_expiring_dead_letters():
    """Rivals keep the last thousand, or a week's. Here every letter stays until, and after, somebody decides."""
    sql = """INSERT INTO messaging_deadletter
                    (state, task, queue, subject, cause, detail, attempts, headers, body_digest, created_at, resolution)
             SELECT 'open', 'a', 'b', '', 'c', '', 1, '{}', '', now() - interval '20 years', ''
               FROM generate_series(1, 20000)"""
    with connection.cursor() as cursor:
        cursor.execute(sql)
    first = DeadLetter.objects.order_by("pk").first()

    assert DeadLetter.objects.filter(state="open").count() == 20_000
    desk.discard(first.pk, reason="Too old to matter.", actor=desk.Actor("shell:olga"))

    assert DeadLetter.objects.filter(state="open").count() == 19_999
    assert DeadLetter.objects.count() == 20_000


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM messaging_deadletter",
        "TRUNCATE messaging_deadletter CASCADE",
        "UPDATE messaging_deadletter SET body = NULL",
        "UPDATE messaging_deadletter SET cause = 'nothing much'",
        "UPDATE messaging_deadletter SET state = 'open'",
    ],
)
def test_a_letter_stays_as_it_came_and_as_it_was_resolved(parked, olga, sql):
    letter = parked()
    desk.discard(letter.pk, reason="No.", actor=olga)
    before = list(DeadLetter.objects.values())
    connection.check_constraints()

    with pytest.raises(IntegrityError, match="is refused"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql)

    assert list(DeadLetter.objects.values()) == before
