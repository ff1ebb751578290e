"""The table of faults (docs/faults.md) names what there is, and leaves nothing of the matrix out."""

import re
from pathlib import Path

import pytest

from compose.gameday.faults.catalogue import CATALOGUE

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS = {
    number: (faults, tests)
    for number, faults, tests in re.findall(
        r"^\| (F\d+) \|[^|]*\|([^|]*)\|([^|]*)\|$", (ROOT / "docs" / "faults.md").read_text(), re.MULTILINE
    )
}
INJECTED_OTHERWISE = {"--broker-down"}


def injected(number: str) -> set[str]:
    names: set[str] = set()
    for name in re.findall(r"`([^`]+)`", ROWS[number][0]):
        fitting = {fault for fault in CATALOGUE if fault == name or (name[-1] == "*" and fault.startswith(name[:-1]))}
        assert fitting or name in INJECTED_OTHERWISE, f"{number}: game day has no fault {name}"
        names |= fitting
    return names


def test_the_matrix_is_whole():
    assert list(ROWS) == [f"F{number}" for number in range(1, 41)]


@pytest.mark.parametrize("number", ROWS)
def test_a_row_names_faults_and_tests_that_exist(number):
    tests = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", ROWS[number][1])

    for path, name in tests:
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{name}"
    assert tests or injected(number)


def test_a_fault_stands_in_the_rows_that_it_names():
    for fault in CATALOGUE.values():
        assert fault.numbers, fault.name
        for number in fault.numbers:
            assert fault.name in injected(number), f"{fault.name} is not in the row of {number}"
