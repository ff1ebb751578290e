"""The risk provider outside, as a real HTTP server that fails in every way: nothing passes without its yes (F34)."""

import json
import threading

import pytest
import redis
from django.db import connection

from bankcore.messaging.breaker import Breaker, force
from bankcore.messaging.models import Event
from tests.outside import as_json, http_server, slowly
from transfers.models import DeniedAccount, Review, Transfer
from transfers.risk.screening import check_risk

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("forget_breakers")]


def verdicts(verdict="approve", **more):
    def answer(body):
        asked = json.loads(body)["transfers"]
        return as_json({"verdicts": [{"id": t["id"], "verdict": verdict, **more} for t in asked]})

    return answer


@pytest.fixture
def provider(settings):
    with http_server(verdicts()) as server:
        settings.RISK_PROVIDER_URL, settings.RISK_PROVIDER_TIMEOUT_SECONDS = server.url, 60.0
        settings.RISK_PROVIDER_TOKEN = "sesame"
        yield server


@pytest.fixture
def waiting(accounts, make_transfer):
    alice, bob = accounts(100_000, 0)
    return [make_transfer(alice, bob, 100 + n, "accepted") for n in range(3)]


def screened(transfers):
    check_risk([t.pk for t in transfers])
    rows = [Transfer.objects.get(pk=t.pk) for t in transfers]
    reasons = dict(Review.objects.values_list("transfer_id", "reasons"))
    return [(t.status, t.status_reason, reasons.get(t.pk, [])) for t in rows]


def test_one_call_for_a_batch_with_the_facts_it_needs(provider, waiting):
    assert screened(waiting) == [("approved", "", [])] * 3

    ((headers, body),) = provider.requests
    sent = json.loads(body)["transfers"]
    assert headers["authorization"] == "Bearer sesame"
    assert [t["id"] for t in sent] == [str(t.pk) for t in waiting]
    assert set(sent[0]) == {"id", "debit_account", "credit_account", "amount_minor", "currency", "created_at"}
    assert check_risk([t.pk for t in waiting]) == 0
    assert len(provider.requests) == 1


def test_the_stricter_of_rules_and_provider_decides(provider, waiting, settings, accounts, make_transfer):
    provider.answer = verdicts("review", reason="new_payee")
    settings.RISK_REVIEW_AMOUNT_MINOR = 102
    denied, other = accounts(1000, 0)
    DeniedAccount.objects.create(account=denied, why="court order")

    seen = screened([*waiting, make_transfer(denied, other, 1, "accepted")])

    assert seen == [
        ("in_review", "", ["provider_new_payee"]),
        ("in_review", "", ["provider_new_payee"]),
        ("in_review", "", ["amount_over_limit", "provider_new_payee"]),
        ("rejected", "risk_denied", []),
    ]


def test_a_denial_rejects(provider, waiting):
    provider.answer = verdicts("deny")

    assert screened(waiting) == [("rejected", "risk_denied", [])] * 3


BROKEN = {
    "5xx": lambda body: as_json({"verdicts": []}, status=503),
    "4xx": lambda body: as_json({}, status=404),
    "slow": lambda body: slowly(30, verdicts()(body)),
    "a redirect": lambda body: (302, {"Location": "http://127.0.0.1:1/"}, b""),
    "no JSON": lambda body: (200, {}, b"<html>"),
    "another shape": lambda body: as_json(["approve"]),
    "an unknown verdict": lambda body: verdicts("maybe")(body),
    "a verdict that is no text": lambda body: verdicts(True)(body),
    "nothing": lambda body: (200, {}, b""),
    "none mentioned": lambda body: as_json({"verdicts": []}),
    "another transfer": lambda body: as_json({"verdicts": [{"id": "7", "verdict": "approve"}]}),
    "endless": lambda body: (200, {}, b" " * (2 * 1024 * 1024)),
    "half a reply": lambda body: (200, {"Content-Length": "5000"}, b'{"verdicts": ['),
}


@pytest.mark.parametrize("how", BROKEN)
def test_risk_check_that_fails_open(provider, waiting, how, settings):
    """A rival's failing: with the provider broken, transfers went through. Here each is held, none rejected."""
    if how == "slow":
        settings.RISK_PROVIDER_TIMEOUT_SECONDS = 0.5
    provider.answer = BROKEN[how]

    assert screened(waiting) == [("in_review", "", ["risk_unavailable"])] * 3

    told = Event.objects.filter(type="transfer.in_review").values_list("data", flat=True)
    assert list(told) == [{"notes": ["risk_unavailable"]}] * 3
    # No retry was spent: the events that asked for the screening are as they were.
    assert set(Event.objects.filter(type="transfer.accepted").values_list("attempt", flat=True)) == {0}


def test_a_transfer_that_is_not_mentioned_is_held_alone(provider, waiting):
    left_out = str(waiting[1].pk)
    provider.answer = lambda body: as_json(
        {
            "verdicts": [
                {"id": t["id"], "verdict": "approve"} for t in json.loads(body)["transfers"] if t["id"] != left_out
            ]
        }
    )

    assert [status for status, _, _ in screened(waiting)] == ["approved", "in_review", "approved"]


def test_a_provider_that_is_down_is_not_asked_for_long(waiting, settings, accounts, make_transfer):
    settings.RISK_PROVIDER_URL, settings.BREAKER_CALLS_MIN = "http://127.0.0.1:1/", 2
    screened(waiting[:1])
    screened(waiting[1:2])
    with http_server(verdicts()) as server:
        settings.RISK_PROVIDER_URL = server.url

        assert screened(waiting[2:]) == [("in_review", "", ["risk_unavailable"])]

        assert server.requests == []


def test_retry_budget_spent_by_an_open_breaker(provider, waiting):
    """A rival's failing. Here an open breaker approves nothing, rejects nothing and uses up no attempt."""
    force("risk", "open")

    assert screened(waiting) == [("in_review", "", ["risk_unavailable"])] * 3

    assert provider.requests == []
    assert set(Event.objects.filter(type="transfer.accepted").values_list("attempt", flat=True)) == {0}


def test_what_the_provider_does_is_counted_by_its_breaker(provider, waiting, settings):
    settings.BREAKER_CALLS_MIN = 1
    provider.answer = BROKEN["another shape"]
    screened(waiting[:1])

    with pytest.raises(ConnectionError):
        Breaker("risk").admit()


IDLE = """
SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()
"""


@pytest.mark.django_db(transaction=True)
def test_a_slow_provider_holds_no_lock(provider, waiting):
    asked, go_on = threading.Event(), threading.Event()

    def answer(body):
        asked.set()
        go_on.wait(60)
        return verdicts()(body)

    provider.answer = answer

    def work():
        try:
            check_risk([t.pk for t in waiting])
        finally:
            connection.close()

    worker = threading.Thread(target=work)
    worker.start()
    assert asked.wait(60)
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '100ms'")
        cursor.execute("UPDATE transfers_transfer SET status_reason = '' WHERE id = %s", [waiting[0].pk])
        cursor.execute("RESET lock_timeout")
        cursor.execute(IDLE)
        assert cursor.fetchone() == (0,)
    go_on.set()
    worker.join(60)

    assert set(Transfer.objects.values_list("status", flat=True)) == {"approved"}


def test_calls_keep_to_the_rate_of_all_workers_and_then_hold(provider, waiting, settings):
    settings.RISK_PROVIDER_RATE, settings.RISK_PROVIDER_TIMEOUT_SECONDS = "1/hour", 1.0
    counts = redis.Redis.from_url(settings.REDIS_URL)
    for key in counts.scan_iter("*risk_provider*"):
        counts.delete(key)

    seen = [screened([t])[0][0] for t in waiting]

    # Two if the hour ended just now; a call that was made and not answered in time is held as well.
    assert seen.count("approved") <= len(provider.requests)
    assert 1 <= len(provider.requests) <= 2
    assert seen[-1] == "in_review"


def test_without_redis_the_rate_is_kept_by_the_process(provider, waiting, settings):
    settings.REDIS_URL, settings.RISK_PROVIDER_RATE = "redis://127.0.0.1:1/0", "100/second"

    assert [status for status, _, _ in screened(waiting)] == ["approved"] * 3
