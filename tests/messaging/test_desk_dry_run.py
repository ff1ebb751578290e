"""A dry run at the dead-letter desk says what a replay then does, and changes nothing."""

from datetime import UTC, datetime, timedelta

import pytest

from accounts.models import Account, JournalEntry
from bankcore.messaging import desk
from bankcore.messaging.forecasts import foresee
from bankcore.messaging.models import AuditEntry, Event
from tests.messaging.desk_view import CHECK, POST, run_pipeline, state
from transfers import posting
from transfers.models import Review

pytestmark = pytest.mark.django_db


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
            raise ZeroDivisionError("a bug\nCONTEXT: as PostgreSQL adds it")
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
