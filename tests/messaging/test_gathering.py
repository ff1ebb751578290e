"""Events gather while they stream, and a lone one never waits."""

import pytest

from bankcore.messaging.gathering import GATHER_SECONDS_MAX, REST_TIMES, Gathering


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def waits(per_second: float, *, seconds: float = 3.0, every: float = 0.02, took: float = 0.001) -> list[float]:
    """Deliver a steady stream in small lots and collect every wait."""
    clock = Clock()
    gathering, found, owed = Gathering(clock), [], 0.0
    while clock.now < seconds:
        owed += per_second * every
        clock.now += every
        if lot := int(owed):
            owed -= lot
            found.append(gathering.seconds_to_wait(lot, took))
    return found


@pytest.mark.parametrize("per_second", [1, 20, 100])
def test_few_events_never_wait(per_second: float) -> None:
    assert set(waits(per_second)) == {0.0}


def test_the_wait_grows_with_the_stream_up_to_its_maximum() -> None:
    steady = [waits(per_second)[-1] for per_second in (300, 750, 1500, 3000, 50_000)]

    assert steady == pytest.approx([0.02, 0.05, 0.1, GATHER_SECONDS_MAX, GATHER_SECONDS_MAX], rel=0.1)


def test_a_stream_waits_longer_where_delivering_takes_long() -> None:
    assert waits(300, took=0.03)[-1] == pytest.approx(0.03 * REST_TIMES)
    assert waits(300, took=0.5)[-1] == GATHER_SECONDS_MAX
    assert set(waits(100, took=0.5)) == {0.0}


def test_the_first_event_after_a_storm_does_not_wait() -> None:
    clock = Clock()
    gathering = Gathering(clock)
    for _ in range(100):
        clock.now += 0.01
        gathering.seconds_to_wait(1000, 0.001)
    assert gathering.seconds_to_wait(1000, 0.001) == GATHER_SECONDS_MAX

    clock.now += 60.0

    assert gathering.seconds_to_wait(1, 0.001) == 0.0
