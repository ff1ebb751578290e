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


@pytest.mark.parametrize(
    "mutant", [mutant for mutant in MUTANTS if "/migrations/" in mutant.path], ids=lambda mutant: mutant.name
)
def test_no_later_migration_replaces_a_function_with_a_bug_in_it(mutant):
    """A bug in a function that the database does not keep would survive, and say nothing of the tests."""
    migration = ROOT / mutant.path
    before, _, _ = migration.read_text().partition(mutant.before)
    functions = re.findall(r"FUNCTION (\w+)\(", before + mutant.before)
    if not functions or "END $$" in before.rpartition("FUNCTION ")[2]:
        return

    later = [other for other in migration.parent.glob("0*.py") if other.name > migration.name]
    assert not [other.name for other in later if f"FUNCTION {functions[-1]}(" in other.read_text()]


def test_mutants_have_names_of_their_own():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20
