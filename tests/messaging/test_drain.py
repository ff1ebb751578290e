"""The capacity of a stage is what it does while a backlog stands there; an idle stage and an outage teach nothing."""

import pytest

from bankcore.messaging.drain import Drain, Reading

BEGIN = Reading(0.0, 0, 0, 0.0)


def feed(drain: Drain, *, seconds: float, arrivals: float, capacity: float, start: Reading = BEGIN) -> Reading:
    """Let a stage of this capacity work for a while, read four times a second; return the last reading."""
    at, waiting, done = start.at, float(start.waiting), float(start.done)
    while at < start.at + seconds:
        at += 0.25
        waiting += arrivals * 0.25
        worked = min(waiting, capacity * 0.25)
        waiting, done = waiting - worked, done + worked
        drain.observe(Reading(at, int(waiting), int(done), at))
    return Reading(at, int(waiting), int(done), at)


@pytest.mark.parametrize("start_rate", [1, 1000, 50_000])
def test_the_rate_is_learnt_within_seconds_whatever_was_believed_before(start_rate: float) -> None:
    drain = Drain(start_rate)
    begun = Reading(0.0, 60_000, 0, 0.0)
    drain.observe(begun)

    feed(drain, seconds=4, arrivals=10_000, capacity=2000, start=begun)

    assert drain.rate == pytest.approx(2000, rel=0.02)


def test_an_idle_stage_is_not_taken_for_a_slow_one() -> None:
    drain = Drain(1000)
    busy = feed(drain, seconds=10, arrivals=5000, capacity=2000)

    feed(drain, seconds=60, arrivals=10, capacity=2000, start=Reading(busy.at, 0, busy.done, busy.at))

    assert drain.rate == pytest.approx(2000, rel=0.02)


def test_a_quick_stage_without_a_backlog_shows_at_least_what_it_does() -> None:
    drain = Drain(1000)

    feed(drain, seconds=5, arrivals=3000, capacity=9000)

    assert drain.rate == pytest.approx(3000, rel=0.05)


def test_a_stage_that_slows_down_is_believed() -> None:
    drain = Drain(1000)
    fast = feed(drain, seconds=10, arrivals=4000, capacity=2000)

    feed(drain, seconds=15, arrivals=4000, capacity=500, start=fast)

    assert drain.rate == pytest.approx(500, rel=0.05)


def test_an_outage_is_seen_and_does_not_count_as_slowness() -> None:
    drain = Drain(1000)
    fast = feed(drain, seconds=10, arrivals=4000, capacity=2000)

    down = feed(drain, seconds=4, arrivals=100, capacity=0, start=fast)

    assert drain.stalled_since == fast.at + 0.25
    assert drain.rate == pytest.approx(2000, rel=0.1)
    back = feed(drain, seconds=0.25, arrivals=100, capacity=2000, start=down)
    assert drain.stalled_since is None
    feed(drain, seconds=5, arrivals=100, capacity=2000, start=back)
    assert drain.rate == pytest.approx(2000, rel=0.1)


def test_transfers_that_are_stuck_for_good_are_no_outage() -> None:
    drain = Drain(1000)
    stuck = Reading(0.0, 7, 0, 0.0)
    drain.observe(stuck)

    quiet = feed(drain, seconds=3600, arrivals=0, capacity=0, start=stuck)

    assert (quiet.waiting, drain.stalled_since) == (7, None)


def test_one_more_transfer_that_does_not_move_is_an_outage() -> None:
    drain = Drain(1000)
    drain.observe(Reading(0.0, 7, 0, 0.0))

    for at in (1.0, 2.0, 3.0):
        drain.observe(Reading(at, 8, 0, at))

    assert drain.stalled_since == 1.0


def test_a_long_backlog_that_does_not_move_is_an_outage_from_the_first_reading_on() -> None:
    drain = Drain(1000)

    for at in (0.0, 1.0, 2.0, 3.0):
        drain.observe(Reading(at, 45_000, 0, at))

    assert drain.stalled_since == 1.0


def test_what_was_done_before_the_backlog_came_does_not_count() -> None:
    drain = Drain(1000)

    # Idle up to second 10; then 2,000 a second are done, and readings are rare and tell of two seconds ago.
    for at, waiting, done in (
        (9.0, 0, 0),
        (10.0, 20_000, 0),
        (12.0, 16_000, 0),
        (13.5, 13_000, 3000),
        (15.0, 9_000, 6000),
    ):
        drain.observe(Reading(at, waiting, done, at - 2.0))

    assert drain.rate == pytest.approx(2000, rel=0.01)


@pytest.mark.parametrize("behind_seconds", [0.0, 1.0])
def test_a_worker_that_is_replaced_is_no_slow_stage(behind_seconds: float) -> None:
    """A batch comes at the moment in which its worker dies: nothing is done for a while, and nothing is known."""
    drain = Drain(1000)
    begun = feed(drain, seconds=2, arrivals=0, capacity=1000)

    waits = []
    for step in range(1, 9):
        at = begun.at + 0.25 * step
        drain.observe(Reading(at, 1000, 0, at - behind_seconds))
        waits.append(drain.wait_seconds(1000))

    assert max(waits) == 1.0
    assert drain.stalled_since is None


def test_pauses_that_are_over_count_as_what_they_cost() -> None:
    """Half of the time nothing is done: what is done in the whole time is the rate."""
    drain = Drain(1000)
    reading = Reading(0.0, 60_000, 0, 0.0)
    drain.observe(reading)
    for _ in range(8):
        reading = feed(drain, seconds=1.25, arrivals=0, capacity=0, start=reading)
        reading = feed(drain, seconds=1.25, arrivals=0, capacity=2000, start=reading)

    assert 800 <= drain.rate <= 1600


def test_a_cold_start_is_not_what_a_stage_can_do() -> None:
    """Ten transfers in the first second, with workers that have just begun: a second is no proof."""
    drain = Drain(1000)
    drain.observe(Reading(0.0, 20_000, 0, 0.0))

    feed(drain, seconds=1.25, arrivals=0, capacity=10, start=Reading(0.0, 20_000, 0, 0.0))

    assert drain.wait_seconds(20_000) < 40


def test_a_stage_that_is_quick_again_is_believed_within_two_seconds() -> None:
    """Slowness ends, as when others leave the machine: the rate near zero goes with it."""
    drain = Drain(1000)
    slow = feed(drain, seconds=30, arrivals=0, capacity=5, start=Reading(0.0, 20_000, 0, 0.0))
    assert drain.rate == pytest.approx(5, rel=0.3)

    quick = feed(drain, seconds=2, arrivals=0, capacity=2000, start=slow)

    real_seconds = quick.waiting / 2000
    assert drain.wait_seconds(quick.waiting) < 2 * real_seconds


@pytest.mark.parametrize("coming", [0, 800, 4000])
def test_the_rate_is_the_same_however_much_is_taken_in_meanwhile(coming: int) -> None:
    """1,000 units of work a second, of which each transfer that comes in takes a quarter of one."""
    drain, done, taken = Drain(1000, intake_cost=0.25), 0.0, 0
    for step in range(40):
        drain.observe(Reading(step / 4, 60_000, int(done), step / 4, taken))
        done, taken = done + max(1000 - coming / 4, 1) / 4, taken + coming // 4

    assert drain.rate == pytest.approx(800, rel=0.02)
    assert drain.rate_alone == pytest.approx(1000, rel=0.02)
