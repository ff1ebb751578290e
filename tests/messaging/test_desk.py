"""The dead-letter desk: every letter is resolved once, by a person, and what it is about goes on or ends."""

import threading
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from backports import zstd
from django.contrib.auth import get_user_model
from django.db import IntegrityError, connection, transaction

from accounts.access import Client
from accounts.models import Account, JournalEntry
from bankcore.database import open_session
from bankcore.errors import BankError, NotFound
from bankcore.messaging import dead_letters, desk, outbox
from bankcore.messaging.errors import (
    LetterResolved,
    NothingToApprove,
    NotReplayable,
    PersonNeeded,
    RequestPending,
    SamePerson,
)
from bankcore.messaging.forecasts import foresee
from bankcore.messaging.models import AuditEntry, DeadLetter, DeskRequest, Event
from bankcore.messaging.relay import Relay
from transfers import posting
from transfers.cancellation import cancel_transfer
from transfers.models import Review, Transfer
from transfers.parking import park_transfer
from transfers.posting import post_transfers
from transfers.risk.screening import check_risk
from transfers.sweep import sweep_stuck

pytestmark = pytest.mark.django_db
CHECK, POST = "transfers.check_risk", "transfers.post_transfers"


@pytest.fixture
def people():
    users = get_user_model().objects
    return [desk.actor_of(users.create_user(name, is_staff=True)) for name in ("olga", "otto")]


@pytest.fixture
def olga(people):
    return people[0]


@pytest.fixture
def otto(people):
    return people[1]


@pytest.fixture
def parked(accounts, make_transfer):
    """Park a transfer the way the pipeline does, and return its letter."""
    alice, bob = accounts(1000, 0)

    def make(amount_minor=300, task=POST, debit=alice, credit=bob, **fields):
        status = "approved" if task == POST else fields.pop("status", "accepted")
        transfer = make_transfer(debit, credit, amount_minor, status, **fields)
        Event.objects.update(published_at=datetime.now(UTC))
        park_transfer(transfer.pk, task=task, error=ZeroDivisionError("a bug"), attempts=4)
        Event.objects.update(published_at=datetime.now(UTC))
        return DeadLetter.objects.get(subject=str(transfer.pk), state="open")

    make.alice, make.bob = alice, bob
    return make


def state(letter):
    letter.refresh_from_db()
    transfer = Transfer.objects.get(pk=letter.subject)
    return letter.state, transfer.status, transfer.status_reason


def owed():
    return list(Event.objects.filter(published_at=None).order_by("id").values_list("type", "subject", "attempt"))


def run_pipeline():
    """Do what the owed messages ask for."""
    for stage, type_ in ((check_risk, "transfer.accepted"), (post_transfers, "transfer.approved")):
        events = Event.objects.filter(published_at=None, due_at__lte=datetime.now(UTC), type=type_).order_by("id")
        stage([UUID(subject) for subject in events.values_list("subject", flat=True)])


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


def _together(*calls):
    """Start the calls at the same moment in threads; return what each came to."""
    start, answers = threading.Barrier(len(calls)), []

    def run(call):
        start.wait()
        try:
            answers.append(call().outcome)
        except BankError as error:
            answers.append(error.code)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(answers)


@pytest.mark.django_db(transaction=True)
def test_of_ten_replays_at_once_one_has_an_effect(parked, olga, otto):
    letter = parked()

    answers = _together(*[lambda who=who: desk.replay(letter.pk, actor=who) for who in (olga, otto) * 5])

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

        answers = _together(
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

        answers = _together(
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


# -- dry run -----------------------------------------------------------------------------------------------------------


def counted():
    return Event.objects.count(), JournalEntry.objects.count(), AuditEntry.objects.count(), Review.objects.count()


@pytest.mark.parametrize("task", [CHECK, POST])
@pytest.mark.parametrize(
    ("change", "would", "reason", "end"),
    [
        ({}, "post", "", ("posted", "")),
        ({"status": "frozen"}, "be_refused", "account_frozen", ("rejected", "account_frozen")),
        ({"status": "closed"}, "be_refused", "account_closed", ("rejected", "account_closed")),
        ({"held_minor": 900}, "be_refused", "insufficient_funds", ("rejected", "insufficient_funds")),
    ],
)
def test_a_dry_run_says_what_a_replay_then_does(parked, olga, task, change, would, reason, end):
    letter = parked(task=task)
    if change:
        Account.objects.filter(pk=parked.alice.pk).update(**change)
    before = counted()

    (forecast,) = foresee([letter.pk])

    assert (forecast.would, forecast.reason, forecast.second_person) == (would, reason, False)
    assert counted() == before
    assert state(letter) == ("open", "parked", "processing_failed")
    desk.replay(letter.pk, actor=olga)
    run_pipeline()
    assert state(letter)[1:] == end


def test_a_dry_run_sees_expiry_rules_and_reviews(parked, settings):
    settings.RISK_REVIEW_AMOUNT_MINOR = 200
    expired = parked(1, expires_at=datetime.now(UTC) - timedelta(hours=1))
    reviewed = parked(200, task=CHECK)

    forecasts = foresee([reviewed.pk, expired.pk])

    assert [(f.would, f.reason) for f in forecasts] == [("wait_for_review", ""), ("be_refused", "expired")]
    assert Review.objects.count() == 0


def test_a_dry_run_of_several_counts_what_the_first_one_takes(parked):
    letters = [parked(600), parked(600)]

    assert [(f.would, f.reason) for f in foresee([one.pk for one in letters])] == [
        ("post", ""),
        ("be_refused", "insufficient_funds"),
    ]


def test_a_dry_run_shows_that_the_bug_is_still_there_and_which_one_meets_it(parked, monkeypatch):
    good, bad = parked(1), parked(2)

    def broken(claimed):
        if str(claimed.id) == bad.subject:
            raise ZeroDivisionError("a bug")
        return whole(claimed)

    whole = posting._movement
    monkeypatch.setattr(posting, "_movement", broken)

    forecasts = foresee([good.pk, bad.pk])

    assert [(f.would, f.detail) for f in forecasts] == [("post", ""), ("fail_again", "ZeroDivisionError: a bug")]
    assert state(bad)[1] == "parked"


def test_a_dry_run_of_a_resolved_letter_says_so(parked, olga):
    letter = parked()
    desk.replay(letter.pk, actor=olga)

    (forecast,) = foresee([letter.pk, 999])

    assert (forecast.would, forecast.reason) == ("nothing", "dead_letter_resolved")


# -- a second person ---------------------------------------------------------------------------------------------------


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

    answers = _together(*[lambda who=who: desk.approve(letter.pk, action="replay", actor=who) for who in others])

    assert answers == ["dead_letter_resolved"] * 3 + ["replayed"]
    assert len(owed()) == 1


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


# -- messages ----------------------------------------------------------------------------------------------------------


def message(body, task=POST, **headers):
    kept = {"task": task, "content_type": "application/json", "x-death": [{"queue": "posting-0"}], **headers}
    return DeadLetter.objects.create(task=str(task), cause="undeliverable: rejected", headers=kept, body=body)


def call(*ids):
    return ('[[["' + '","'.join(ids) + '"]], {}, {}]').encode()


@pytest.fixture
def sent(accounts, make_transfer):
    """A transfer whose event the broker has taken."""
    transfer = make_transfer(*accounts(1000, 0), 300)
    outbox.record([outbox.NewEvent("transfer.accepted", "p", str(transfer.pk))])
    Event.objects.update(published_at=datetime.now(UTC))
    return transfer


def test_a_message_is_replayed_by_making_its_events_due_again(sent, olga, settings):
    letter = message(call(str(sent.pk)))

    (forecast,) = foresee([letter.pk])
    assert (forecast.would, owed()) == ("be_sent_again", [])
    queue = settings.TOPOLOGY.queue_of(settings.TOPOLOGY_ROUTES["transfer.approved"], str(sent.debit_account_id))
    assert forecast.detail == f"1 event(s) to {queue}, in new messages"
    desk.replay(letter.pk, actor=olga)

    assert owed() == [("transfer.approved", str(sent.pk), 0)]
    with pytest.raises(LetterResolved):
        desk.replay(letter.pk, actor=olga)


def test_a_compressed_message_is_read(sent, olga):
    letter = message(zstd.compress(call(str(sent.pk))), compression="application/zstd")
    first_release = message(call(str(sent.pk)), compression="application/zstd")

    assert [f.would for f in foresee([letter.pk, first_release.pk])] == ["be_sent_again"] * 2


def test_a_message_of_event_ids_is_replayed(sent, olga):
    event = Event.objects.filter(subject=str(sent.pk)).first()
    outbox.record([outbox.NewEvent("transfer.posted", "p", str(sent.pk))])
    told = Event.objects.get(type="transfer.posted")
    Event.objects.update(published_at=datetime.now(UTC))
    letter = message(f"[[[{told.pk}, {event.pk}, 999999]], {{}}, {{}}]".encode(), "notifications.dispatch")

    desk.replay(letter.pk, actor=olga)

    assert owed() == [("transfer.posted", str(sent.pk), 0)]


def _bomb():
    return zstd.compress(b"[" + b" " * 50_000_000)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: message(b"\xff\x00"), "not JSON in UTF-8"),
        (lambda: message(b"[" * 200_000), "not JSON in UTF-8"),
        (lambda: message(b"{}"), "not a call"),
        (lambda: message(b"[[[]], {}, {}]"), "not a call"),
        (lambda: message(call("a\\u0000b")), "which is none"),
        (lambda: message(b"[[[1.5]], {}, {}]"), "which is none"),
        (lambda: message(b"[[[99999999999999999999]], {}, {}]"), "which is none"),
        (lambda: message(call("1"), "transfers.nonsense"), "No event asks for the task"),
        (lambda: message(call("1"), 7), "name no task"),
        (lambda: message(call("1"), content_type="application/x-python-serialize"), "content type"),
        (lambda: message(b"x", compression="application/zstd"), "cannot be decompressed"),
        (lambda: message(b"x", compression="application/x-nope"), "none that is used here"),
        (lambda: message(_bomb(), compression="application/zstd"), "Decompressed"),
        (lambda: message(b"[" * 300_000), "300,000 bytes"),
        (lambda: message(call("0190b3a0-0000-7000-8000-000000000000")), "none of its ids is known"),
    ],
)
def test_what_can_never_be_read_says_why_and_can_only_be_discarded(make, why, olga):
    letter = make()

    (forecast,) = foresee([letter.pk])
    with pytest.raises(NotReplayable, match=why):
        desk.replay(letter.pk, actor=olga)

    assert (forecast.would, forecast.reason) == ("nothing", "not_replayable")
    assert why in forecast.detail
    assert owed() == []
    desk.discard(letter.pk, reason="Rubbish.", actor=olga)
    letter.refresh_from_db()
    assert (letter.state, bytes(letter.body) != b"") == ("discarded", True)


def test_work_without_a_room_is_due_again(olga):
    outbox.record([outbox.NewEvent("transfer.posted", "n", "7")])
    Event.objects.update(published_at=datetime.now(UTC))
    subject = str(Event.objects.get().pk)
    letter = dead_letters.park_work(task="notifications.dispatch", subject=subject, error=ValueError(), attempts=9)

    desk.replay(letter.pk, actor=olga)

    assert owed() == [("transfer.posted", "7", 0)]


@pytest.mark.django_db(transaction=True)
def test_a_replayed_message_is_a_new_one(broker, sent, olga, settings):
    """Nothing of the dead message travels on: not its headers, not its ids."""
    letter = message(call(str(sent.pk)), id="the-old-id", retries=7, expires="2020-01-01T00:00:00Z")
    desk.replay(letter.pk, actor=olga)
    stop = threading.Event()
    stop.set()
    relay = Relay(stop)

    with open_session("a test's relay") as database:
        relay.step(database)
    relay._drop_publisher()

    queue = settings.TOPOLOGY.queue_of(settings.TOPOLOGY_ROUTES["transfer.approved"], str(sent.debit_account_id))
    (fresh,) = broker.take(queue)
    assert (fresh.headers["task"], fresh.decode()[0][0]) == (POST, [str(sent.pk)])
    assert (fresh.headers["id"] != "the-old-id", fresh.headers["retries"], fresh.headers.get("expires")) == (
        True,
        0,
        None,
    )
    assert [name for name in fresh.headers if name.startswith("x-")] == []
    assert owed() == []
