"""The seeded bugs fit the code: `python -m tests.faults.mutants` then has something to seed."""

import re
from pathlib import Path

import pytest

from tests.faults.mutant_list import MUTANTS

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies_once_and_its_test_exists(mutant):
    path, _, name = mutant.test.partition("::")

    assert (ROOT / mutant.path).read_text().count(mutant.before) == 1
    assert mutant.before != mutant.after
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_mutants_have_names_of_their_own():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20
