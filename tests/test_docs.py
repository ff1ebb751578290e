"""The documents agree with the code and with each other."""

import re
from pathlib import Path

import pytest

from transfers.states import TRANSITIONS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text())

    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_the_table_of_states_is_the_one_in_the_code() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", text.split("## States")[1].split("##")[0], re.MULTILINE)

    assert {source: set(re.findall(r"`(\w+)`", targets)) for source, targets in rows} == {
        str(source): {str(target) for target in targets} for source, targets in TRANSITIONS.items()
    }


def test_files_that_the_documents_name_exist() -> None:
    named = {
        name
        for path in DOCUMENTS
        for name in re.findall(
            r"`((?:tests|docs|compose|bankcore|accounts|transfers|notifications)/[\w./-]*)`", path.read_text()
        )
    }

    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_decisions_are_numbered_without_a_gap() -> None:
    numbers = [int(path.name[:4]) for path in sorted((ROOT / "docs" / "decisions").glob("*.md"))]

    assert numbers == list(range(1, len(numbers) + 1))
