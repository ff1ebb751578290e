"""The plan of a game day: the same for a seed, never two faults of the same thing, every class covered."""

from itertools import islice

import pytest

from compose.gameday.faults.catalogue import CATALOGUE, chosen
from compose.gameday.faults.fault import Fault, TookNoHold
from compose.gameday.schedule import QUICK, Round, are_compatible, rounds

ALL = list(CATALOGUE.values())


def first(seed: int, number: int) -> list[Round]:
    return list(islice(rounds(seed, ALL), number))


def named(plan: list[Round]) -> list[str]:
    return [planned.fault.name for each in plan for planned in each.planned]


def test_a_seed_gives_the_same_plan_down_to_the_seconds_and_another_gives_another() -> None:
    assert first(7, 60) == first(7, 60)
    assert named(first(7, 60)) != named(first(8, 60))


@pytest.mark.parametrize("seed", range(5))
def test_faults_that_touch_the_same_thing_never_strike_together(seed: int) -> None:
    for each in first(seed, 100):
        faults = [planned.fault for planned in each.planned]
        assert 1 <= len(faults) <= 3
        assert all(are_compatible(a, b) for number, a in enumerate(faults) for b in faults[number + 1 :])


@pytest.mark.parametrize("seed", range(5))
def test_every_fault_strikes_once_before_any_strikes_again(seed: int) -> None:
    names = named(first(seed, 3 * len(ALL)))
    assert sorted(names[: len(ALL)]) == sorted(CATALOGUE)


@pytest.mark.parametrize("seed", range(5))
def test_every_class_strikes_before_most_have_struck_twice(seed: int) -> None:
    classes = {fault.fault_class for fault in ALL}
    early = named(first(seed, 2 * len(classes)))[: 2 * len(classes)]
    assert {CATALOGUE[name].fault_class for name in early} == classes


def test_the_short_game_day_has_faults_and_classes_to_spare() -> None:
    quick = chosen(list(QUICK))
    assert len(quick) == len(QUICK) >= 25
    assert len({fault.fault_class for fault in quick}) >= 12
    assert not any(fault.is_long for fault in quick)


def test_the_matrix_that_can_be_injected_is_covered() -> None:
    numbers = {number for fault in ALL for number in fault.numbers}
    expected = {2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 19, 20, 21, 22, 24, 25, 26, 27, 28, 29, 35, 38}
    assert {f"F{number}" for number in expected} <= numbers


def test_a_name_that_begins_so_is_enough_and_an_unknown_one_is_refused() -> None:
    assert {fault.name for fault in chosen(["kill-web"])} == {"kill-web"}
    assert {fault.name for fault in chosen(["kill-broker"])} == {"kill-broker-leader", "kill-broker-node"}
    with pytest.raises(KeyError, match="earthquake"):
        chosen(["earthquake"])


def test_a_fault_that_left_no_trace_says_so() -> None:
    class Nothing(Fault):
        name = "nothing"

    with pytest.raises(TookNoHold):
        Nothing().evidence()
