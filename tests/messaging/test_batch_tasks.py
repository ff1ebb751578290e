"""What happens when work fails: wait for infrastructure, bisect around a bug, try again later, park."""

from datetime import timedelta

import psycopg
import pytest
from celery.exceptions import Reject
from celery.worker import state as worker_state
from django.db import IntegrityError, InterfaceError, InternalError, OperationalError
from django.utils import timezone

from bankcore.messaging.models import DeadLetter, Event
from bankcore.messaging.pause import is_infrastructure
from transfers import tasks
from transfers.models import Transfer
from transfers.posting import post_transfers
from transfers.risk.screening import check_risk

pytestmark = pytest.mark.django_db


@pytest.fixture
def transfers(accounts, make_transfer):
    alice, bob = accounts(1000, 0)
    return [make_transfer(alice, bob, 10) for _ in range(8)]


@pytest.fixture
def verb(monkeypatch):
    """Put a trap into the posting verb: `fails(ids)` may raise; what it is called with is kept."""
    calls = []

    def trap(fails):
        def trapped(ids):
            calls.append(list(ids))
            fails(ids)
            return post_transfers(ids)

        monkeypatch.setattr(tasks, "post_transfers", trapped)
        return calls

    return trap


def bug_in(culprit):
    def fails(ids):
        if culprit in ids:
            raise ZeroDivisionError("a bug")

    return fails


def statuses(transfers):
    found = Transfer.objects.in_bulk([t.pk for t in transfers])
    return [found[t.pk].status for t in transfers]


def ids(transfers):
    return [str(t.pk) for t in transfers]


def approval(transfer):
    return Event.objects.get(type="transfer.approved", subject=str(transfer.pk))


def test_a_bug_in_one_is_isolated_and_the_rest_is_done_in_order(transfers, verb):
    pks = [t.pk for t in transfers]
    calls = verb(bug_in(pks[5]))

    tasks.post_transfers_task(ids(transfers))

    assert calls == [pks, pks[:4], pks[4:], pks[4:6], [pks[4]], [pks[5]], pks[6:]]
    assert statuses(transfers) == ["posted"] * 5 + ["approved"] + ["posted"] * 2
    posted = Event.objects.filter(type="transfer.posted").order_by("id").values_list("subject", flat=True)
    assert list(posted) == [str(pk) for pk in pks if pk != pks[5]]
    assert [approval(t).attempt for t in transfers] == [0, 0, 0, 0, 0, 1, 0, 0]
    assert DeadLetter.objects.count() == 0


def test_two_culprits_are_both_isolated(transfers, verb):
    first, last = transfers[0].pk, transfers[7].pk
    verb(lambda ids: bug_in(first)(ids) or bug_in(last)(ids))

    tasks.post_transfers_task(ids(transfers))

    assert statuses(transfers) == ["approved", *["posted"] * 6, "approved"]
    assert [approval(t).attempt for t in transfers] == [1, 0, 0, 0, 0, 0, 0, 1]


def test_a_culprit_comes_due_again_later_and_is_then_parked(transfers, verb, settings):
    settings.TASK_ATTEMPTS_MAX, settings.TASK_RETRY_SECONDS = 3, 1000.0
    culprit = transfers[0]
    verb(bug_in(culprit.pk))

    for attempt in (1, 2, 3):
        Event.objects.filter(pk=approval(culprit).pk).update(published_at=timezone.now())
        tasks.post_transfers_task([str(culprit.pk)])
        event = approval(culprit)
        assert (event.attempt, event.published_at) == (attempt, None)
        assert event.due_at <= timezone.now() + timedelta(seconds=1000 * 2 ** (attempt - 1))
        assert (statuses([culprit]), DeadLetter.objects.count()) == (["approved"], 0)
    tasks.post_transfers_task([str(culprit.pk)])

    culprit.refresh_from_db()
    assert (culprit.status, culprit.status_reason) == ("parked", "processing_failed")
    letter = DeadLetter.objects.get()
    assert (letter.task, letter.subject, letter.attempts) == ("transfers.post_transfers", str(culprit.pk), 4)
    assert letter.cause == "ZeroDivisionError: a bug"
    assert "Traceback" in letter.detail
    assert "in fails" in letter.detail
    assert Event.objects.filter(type="transfer.parked", subject=str(culprit.pk)).count() == 1
    assert approval(culprit).attempt == 3


def test_a_culprit_without_an_event_to_try_again_is_parked_at_once(accounts, make_transfer, verb):
    alice, bob = accounts(1000, 0)
    transfer = make_transfer(alice, bob, 10, "accepted")
    check_risk([transfer.pk])
    Event.objects.filter(type="transfer.approved").update(due_at=timezone.now())
    missing = Transfer.objects.create(
        client="test", debit_account=alice, credit_account=bob, amount_minor=1, currency="EUR", status="approved"
    )
    verb(bug_in(missing.pk))

    tasks.post_transfers_task([str(transfer.pk), str(missing.pk)])

    assert statuses([transfer, missing]) == ["posted", "parked"]
    assert DeadLetter.objects.get().attempts == 1


def test_a_bug_in_screening_defers_the_acceptance(accounts, make_transfer, monkeypatch):
    alice, bob = accounts(1000, 0)
    first, culprit = (make_transfer(alice, bob, 10, "accepted") for _ in range(2))

    def trapped(ids):
        bug_in(culprit.pk)(ids)
        return check_risk(ids)

    monkeypatch.setattr(tasks, "check_risk", trapped)

    tasks.check_risk_task(ids([first, culprit]))

    assert statuses([first, culprit]) == ["approved", "accepted"]
    assert Event.objects.get(type="transfer.accepted", subject=str(culprit.pk)).attempt == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("error", [OperationalError, InterfaceError, ConnectionResetError, TimeoutError])
def test_infrastructure_is_waited_for_in_place_and_counts_nothing(transfers, verb, error):
    pks = [t.pk for t in transfers]

    def away_twice(ids):
        if len(calls) <= 2:
            raise error("the server is restarting")

    calls = verb(away_twice)

    tasks.post_transfers_task(ids(transfers))

    assert calls == [pks, pks, pks]
    assert statuses(transfers) == ["posted"] * 8
    assert [approval(t).attempt for t in transfers] == [0] * 8
    assert DeadLetter.objects.count() == 0


@pytest.mark.django_db(transaction=True)
def test_a_database_that_goes_away_while_a_culprit_is_parked_is_waited_for(transfers, verb, settings, monkeypatch):
    settings.TASK_ATTEMPTS_MAX = 0
    verb(bug_in(transfers[1].pk))
    park, tried = tasks.PostingTask.park, []

    def park_when_back(*arguments):
        tried.append(arguments[0])
        if len(tried) == 1:
            raise OperationalError("the server is restarting")
        park(*arguments)

    monkeypatch.setattr(type(tasks.post_transfers_task._get_current_object()), "park", staticmethod(park_when_back))

    tasks.post_transfers_task(ids(transfers[:2]))

    assert tried == [str(transfers[1].pk)] * 2
    assert statuses(transfers[:2]) == ["posted", "parked"]
    assert DeadLetter.objects.count() == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("asked", [0, 1, True])
@pytest.mark.parametrize("how", ["should_stop", "should_terminate"])
def test_a_worker_that_is_to_stop_gives_the_message_back_untouched(transfers, verb, monkeypatch, how, asked):
    def away(ids):
        if len(calls) <= 5:
            raise OperationalError("the server is away")

    calls = verb(away)
    monkeypatch.setattr(worker_state, how, asked)

    with pytest.raises(Reject) as rejected:
        tasks.post_transfers_task(ids(transfers))

    assert rejected.value.requeue is True
    assert len(calls) == 1
    assert statuses(transfers) == ["approved"] * 8
    assert [approval(t).attempt for t in transfers] == [0] * 8


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((None,), {}),
        (("one",), {}),
        ((7,), {}),
        (({"ids": ["1"]},), {}),
        (([],), {}),
        (([1.5],), {}),
        (([True],), {}),
        (([None],), {}),
        (([["1"]],), {}),
        ((["1"] * 501,), {}),
        ((["1"], ["2"]), {}),
        ((["1"],), {"more": 1}),
    ],
)
def test_malformed_arguments_are_rejected_for_good(verb, args, kwargs):
    calls = verb(lambda ids: None)

    with pytest.raises(Reject) as rejected:
        tasks.post_transfers_task(*args, **kwargs)

    assert rejected.value.requeue is False
    assert calls == []


@pytest.mark.parametrize("sqlstate", ["25006", "25P03", "40001", "53300", "57P01", "58030", "08006"])
def test_an_outage_is_known_by_its_sqlstate_however_it_is_sorted(sqlstate):
    error = InternalError("from the driver")
    error.__cause__ = psycopg.errors.lookup(sqlstate)("cause")

    assert is_infrastructure(error)


@pytest.mark.parametrize("error", [ValueError("a bug"), IntegrityError("a constraint"), InternalError("no sqlstate")])
def test_a_bug_is_no_outage(error):
    assert not is_infrastructure(error)


@pytest.mark.parametrize("sqlstate", ["27000", "2F005", "38000", "39P01", "3B001", "54001"])
def test_a_statement_that_is_itself_at_fault_is_no_outage(sqlstate):
    cause = psycopg.errors.lookup(sqlstate)("the driver sorts it as an OperationalError")
    error = OperationalError("from Django")
    error.__cause__ = cause

    assert not is_infrastructure(error)
    assert not is_infrastructure(cause)
