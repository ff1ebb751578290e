"""Circuit breakers: shared by all workers, one trial at a time, held by staff, and sane without Redis."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bankcore import metrics
from bankcore.messaging import breaker as breakers
from bankcore.messaging.breaker import Breaker, BreakerOpen, conditions, force
from bankcore.messaging.breaker_rules import Policy, Rules
from bankcore.messaging.pause import is_infrastructure


@pytest.fixture(autouse=True)
def few_calls(settings, forget_breakers):
    settings.BREAKER_CALLS_MIN, settings.BREAKER_OPEN_SECONDS = 4, 30


def fail(breaker, times=1):
    for _ in range(times):
        with pytest.raises(TimeoutError), breaker.call():
            raise TimeoutError("no answer")


def succeed(breaker, times=1):
    for _ in range(times):
        with breaker.call():
            pass


def is_open(breaker):
    try:
        breaker.admit()
    except BreakerOpen as refusal:
        return refusal.retry_after > 0
    return False


def condition(name):
    return {c.name: c for c in conditions([name])}[name]


def test_it_opens_when_half_of_enough_calls_fail_and_says_why():
    mail = Breaker("email")
    succeed(mail, 2)
    fail(mail)
    assert condition("email").state == "closed"

    fail(mail)

    assert is_open(Breaker("email"))
    seen = condition("email")
    assert (seen.state, seen.error, seen.effective) == ("open", "TimeoutError: no answer", "open")
    assert seen.since <= seen.open_until


def test_a_few_failures_among_many_calls_do_not_open_it():
    mail = Breaker("email")
    succeed(mail, 10)
    fail(mail, 4)

    assert not is_open(mail)


def test_after_the_pause_one_trial_at_a_time_and_two_good_ones_close_it(end_pauses):
    mail = Breaker("email")
    fail(mail, 4)
    end_pauses()

    trial = mail.admit()
    assert is_open(Breaker("email"))
    assert condition("email").state == "half_open"
    mail.settle(trial, ok=True)
    assert condition("email").state == "half_open"
    succeed(mail)

    assert condition("email").state == "closed"


def test_a_failed_trial_opens_it_again_for_longer(end_pauses):
    mail = Breaker("email")
    fail(mail, 4)
    first = condition("email")
    end_pauses()

    fail(mail)

    again = condition("email")
    assert again.state == "open"
    pause = (again.open_until - again.since).total_seconds()
    assert 60 * 0.8 <= pause <= 60 * 1.2
    assert pause > (first.open_until - first.since).total_seconds()


def test_of_many_threads_one_gets_the_trial(end_pauses):
    mail = Breaker("email")
    fail(mail, 4)
    end_pauses()
    together = threading.Barrier(16)

    def ask(_):
        together.wait(timeout=60)
        return not is_open(Breaker("email"))

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(ask, range(16))) == 1


def test_a_trial_whose_process_died_is_given_to_another(end_pauses):
    mail = Breaker("email")
    fail(mail, 4)
    end_pauses()
    mail.admit()
    assert is_open(mail)

    end_pauses()

    assert not is_open(mail)


def test_a_late_result_of_an_earlier_time_changes_nothing(end_pauses):
    mail = Breaker("email")
    late = [mail.admit() for _ in range(3)]
    fail(mail, 4)
    end_pauses()
    trial = mail.admit()

    for permit in late:
        mail.settle(permit, ok=True)
        mail.settle(permit, ok=False)

    assert condition("email").state == "half_open"
    mail.settle(trial, ok=True)


def test_an_error_that_says_nothing_of_the_other_side_is_not_counted():
    mail = Breaker("email")
    for _ in range(8):
        with pytest.raises(ZeroDivisionError), mail.call(OSError):
            raise ZeroDivisionError

    assert not is_open(mail)


def test_staff_hold_it_open_or_closed_whatever_happens():
    mail = Breaker("email")
    force("email", "open")
    assert is_open(mail)
    assert condition("email").effective == "open"

    force("email", "closed")
    fail(mail, 20)
    assert not is_open(mail)

    force("email", "")
    fail(mail, 4)
    assert is_open(mail)
    with pytest.raises(ValueError, match="not 'ajar'"):
        force("email", "ajar")


def test_an_open_breaker_is_infrastructure_and_is_counted_as_refusal():
    before = metrics.breaker_refusals.labels("webhook")._value.get()
    endpoint = Breaker("webhook:7")
    fail(endpoint, 4)

    with pytest.raises(BreakerOpen) as refusal, endpoint.call():
        pytest.fail("the call was made")

    assert is_infrastructure(refusal.value)
    assert metrics.breaker_refusals.labels("webhook")._value.get() == before + 1


def test_without_redis_one_failure_opens_it_in_this_process_which_is_said_once(settings, caplog, end_pauses):
    force("email", "open")
    assert is_open(Breaker("email"))
    before = metrics.breaker_fallbacks._value.get()
    settings.REDIS_URL = "redis://127.0.0.1:1/0"

    with caplog.at_level(logging.ERROR):
        assert is_open(Breaker("email"))
        risk = Breaker("risk")
        fail(risk)
        assert is_open(risk)
        end_pauses()
        succeed(risk, 2)
        assert not is_open(risk)

    assert [r.message.split(":")[0] for r in caplog.records] == ["breakers"]
    assert metrics.breaker_fallbacks._value.get() > before
    with pytest.raises(redis.RedisError):
        conditions()


def test_when_redis_comes_back_all_decide_together_again(settings):
    url, settings.REDIS_URL = settings.REDIS_URL, "redis://127.0.0.1:1/0"
    fail(Breaker("risk"))
    assert is_open(Breaker("risk"))

    settings.REDIS_URL = url
    breakers._away_until = 0.0

    assert not is_open(Breaker("risk"))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "admit", "settle", "settle", "settle", "force"]),
        st.integers(0, 3000),
        st.sampled_from(["ok", "bad", "bad", "none"]),
        st.integers(0, 5),
        st.sampled_from(["open", "closed", "", "", ""]),
    ),
    max_size=40,
)


@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(steps=STEPS)
def test_the_script_and_the_rules_in_memory_are_the_same(steps, forget_breakers):
    forget_breakers()
    policy = Policy(window_seconds=10, calls_min=3, open_seconds=2, open_seconds_max=7, probe_seconds=3)
    rules, now, permits = Rules(), 1_000_000, []
    script = breakers._script()

    def ask(step, *arguments):
        return breakers._reply(script(keys=[breakers._key("x"), breakers._NAMES], args=[step, "x", now, *arguments]))

    for number, (step, passed_ms, outcome, which, mode) in enumerate(steps):
        now += passed_ms
        if step == "admit":
            token = str(number)
            expected = rules.admit(now, policy, token)
            assert ask("admit", 3000, token) == expected
            if expected.admitted:
                permits.append((expected.generation, token))
        elif step == "settle" and permits:
            generation, token = permits.pop(which % len(permits))
            expected = rules.settle(now, policy, generation, token, outcome, 1.0)
            answer = ask("settle", generation, token, outcome, "why", 10_000, 3, 0.5, 2000, 7000, 2, 1.0)
            assert answer == expected
        elif step == "force":
            expected = rules.force(mode)
            assert ask("force", mode) == expected
