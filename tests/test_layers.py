"""Who may import whom: floors, shelves, stages, cycles and names, read from the sources with `ast`.

The rules are in docs/architecture.md. The second half of this file proves that the checker can fail.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("bankcore", "accounts", "transfers", "notifications")

WIRING = frozenset(
    {
        "bankcore",
        *(
            f"bankcore.{name}"
            for name in ["settings", "topology", "celery", "urls", "health", "front", "refusals", "lanes", "wsgi"]
        ),
    }
)
FLOORS = ("foundation", "messaging", "accounts", "transfers", "notifications", "wiring")
APPS = {
    "messaging": "bankcore.messaging",
    "accounts": "accounts",
    "transfers": "transfers",
    "notifications": "notifications",
}

SHELVES = ("noun", "verb", "door")
NOUNS = frozenset({"errors", "states", "models", "events"})
DOORS = frozenset({"views", "serializers", "tasks", "admin", "urls", "management", "apps"})
DOORS_THAT_MEET = frozenset({("urls", "views"), ("views", "serializers")})
STAGES = frozenset({"intake", "risk", "posting", "cancellation", "reviews", "parking", "reversal"})

NAMES_THAT_SAY_NOTHING = frozenset({"utils", "util", "helpers", "helper", "common", "services", "base", "misc"})
PURE_DATA = "bankcore.topology"


@dataclass(frozen=True)
class Import:
    """One imported module, where it stands, and whether that is inside a function."""

    module: str
    line: int
    inside_function: bool


# -- reading -----------------------------------------------------------------------------------------------------------


def sources() -> dict[str, str]:
    """The text of every module of the project by its dotted name; a package goes by the package's name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def imports(name: str, text: str, known: Mapping[str, str]) -> Iterator[Import]:
    """Every import in a module; `from package import module` counts as an import of that module."""
    for node, inside in _walk(ast.parse(text), inside=False):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(name, node, known)
            for alias in node.names:
                member = f"{origin}.{alias.name}"
                yield Import(member if member in known else origin, node.lineno, inside)


def _walk(node: ast.AST, *, inside: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        yield child, inside
        yield from _walk(child, inside=inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def _origin(name: str, node: ast.ImportFrom, known: Mapping[str, str]) -> str:
    if not node.level:
        return node.module or ""
    is_package = any(other.startswith(f"{name}.") for other in known)
    parts = name.split(".")[: len(name.split(".")) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def floor(module: str) -> str:
    if module in WIRING:
        return "wiring"
    for app, package in APPS.items():
        if module == package or module.startswith(f"{package}."):
            return app
    return "foundation"


def room(module: str) -> str:
    """The first word below the app, such as `posting` or `management`; empty for the app itself and the foundation."""
    package = APPS.get(floor(module))
    return module.removeprefix(f"{package}.").split(".")[0] if package and module != package else ""


def shelf(module: str) -> str:
    return "noun" if room(module) in NOUNS else "door" if room(module) in DOORS else "verb"


# -- the rules ---------------------------------------------------------------------------------------------------------


def breaches(modules: Mapping[str, str]) -> list[str]:
    """Everything in these modules that breaks a rule, one line for each."""
    found = [f"{name}: a name that says nothing" for name in modules if name.split(".")[-1] in NAMES_THAT_SAY_NOTHING]
    graph: dict[str, set[str]] = {}
    for name, text in modules.items():
        graph[name] = set()
        for one in imports(name, text, modules):
            found += [f"{name}:{one.line}: {what}" for what in _wrong_with(name, one)]
            if one.module in modules and one.module != name:
                graph[name].add(one.module)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append("a circle: " + " -> ".join(error.args[1]))
    return found


def _wrong_with(name: str, one: Import) -> Iterator[str]:
    target = one.module
    if one.inside_function and not _is_migration(name):
        yield f"imports {target} inside a function"
    if target == "django.dispatch" or (target.startswith("django.") and target.endswith(".signals")):
        yield f"uses Django signals ({target})"
    top = target.split(".")[0]
    if top in ("compose", "tests"):
        yield f"imports {target}, which is not part of the application"
    if top not in PACKAGES or _is_migration(name):
        return
    if name == PURE_DATA:
        yield f"imports {target}, but is pure data"
    if FLOORS.index(floor(target)) > FLOORS.index(floor(name)):
        yield f"imports up: {floor(name)} -> {floor(target)} ({target})"
    # Its doors (a command that seeds customers, an address that needs to know who calls) use what they need.
    if floor(name) == "notifications" and shelf(name) != "door" and _hides_from_notifications(target):
        yield f"knows more than transfers.events ({target})"
    if floor(name) == floor(target) and room(name) and room(target) and room(name) != room(target):
        yield from _wrong_between_rooms(name, target)


def _wrong_between_rooms(name: str, target: str) -> Iterator[str]:
    if SHELVES.index(shelf(target)) > SHELVES.index(shelf(name)):
        yield f"imports up: {shelf(name)} -> {shelf(target)} ({target})"
    if shelf(name) == shelf(target) == "door" and (room(name), room(target)) not in DOORS_THAT_MEET:
        yield f"one door imports another ({target})"
    if floor(name) == "transfers" and {room(name), room(target)} <= STAGES:
        yield f"one stage imports another ({target})"


def _hides_from_notifications(target: str) -> bool:
    return floor(target) == "accounts" or (floor(target) == "transfers" and target != "transfers.events")


def _is_migration(name: str) -> bool:
    return ".migrations." in name


# -- the project -------------------------------------------------------------------------------------------------------


def test_every_import_points_down() -> None:
    assert breaches(sources()) == []


def test_the_checker_sees_the_project() -> None:
    modules = sources()

    assert {"bankcore.settings", "bankcore.metrics", "bankcore.messaging.models", "transfers.states"} <= set(modules)
    seen = {one.module for name, text in modules.items() for one in imports(name, text, modules)}
    assert {"accounts.models", "transfers.states", "django.conf"} <= seen


# -- the checker itself ------------------------------------------------------------------------------------------------

_PROJECT = {
    "bankcore": "",
    "bankcore.settings": "",
    "bankcore.topology": "",
    "bankcore.metrics": "",
    "bankcore.messaging": "",
    "bankcore.messaging.outbox": "",
    "accounts": "",
    "accounts.models": "",
    "accounts.ledger": "",
    "transfers": "",
    "transfers.errors": "",
    "transfers.events": "",
    "transfers.intake": "",
    "transfers.posting": "",
    "transfers.risk": "",
    "transfers.risk.rules": "",
    "transfers.serializers": "",
    "transfers.tasks": "",
    "transfers.views": "",
    "transfers.urls": "",
    "notifications": "",
    "notifications.dispatch": "",
}


@pytest.mark.parametrize(
    ("module", "text", "complaint"),
    [
        ("accounts.ledger", "from transfers import intake", "imports up: accounts -> transfers"),
        ("bankcore.metrics", "import accounts.models", "imports up: foundation -> accounts"),
        ("bankcore.messaging.outbox", "from accounts.models import Account", "imports up: messaging -> accounts"),
        ("transfers.tasks", "from bankcore.celery import app", "imports up: transfers -> wiring"),
        ("transfers.posting", "from bankcore.topology import ROUTES", "imports up: transfers -> wiring"),
        ("transfers.errors", "from transfers.intake import accept", "imports up: noun -> verb"),
        ("transfers.errors", "from .intake import accept", "imports up: noun -> verb"),
        ("transfers.intake", "from transfers.serializers import Body", "imports up: verb -> door"),
        ("transfers.tasks", "from transfers import views", "one door imports another"),
        ("transfers.serializers", "from transfers import views", "one door imports another"),
        ("transfers.posting", "from transfers import intake", "one stage imports another"),
        ("transfers.posting", "from transfers.risk.rules import deny", "one stage imports another"),
        ("transfers.risk.rules", "from transfers import posting", "one stage imports another"),
        ("notifications.dispatch", "from transfers.intake import accept", "knows more than transfers.events"),
        ("notifications.dispatch", "from accounts.models import Account", "knows more than transfers.events"),
        ("transfers.intake", "def f():\n    import json", "inside a function"),
        ("transfers.intake", "class A:\n    async def f(self):\n        from json import loads", "inside a function"),
        ("transfers.intake", "from django.db.models.signals import post_save", "uses Django signals"),
        ("transfers.intake", "from django.dispatch import receiver", "uses Django signals"),
        ("bankcore.topology", "from bankcore import metrics", "is pure data"),
        ("transfers.intake", "from compose import local", "not part of the application"),
        ("transfers.helpers", "", "a name that says nothing"),
        ("accounts.base", "", "a name that says nothing"),
    ],
)
def test_a_breach_is_found(module: str, text: str, complaint: str) -> None:
    found = breaches({**_PROJECT, module: text})

    assert len(found) == 1, found
    assert complaint in found[0]
    assert found[0].startswith(module)


def test_a_circle_is_found() -> None:
    circle = {"accounts.ledger": "import accounts.holds", "accounts.holds": "from accounts import ledger"}

    assert [line for line in breaches({**_PROJECT, **circle}) if line.startswith("a circle")] != []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (
            "transfers.posting",
            "from accounts import ledger\nfrom bankcore.messaging import outbox\nfrom django.conf import settings",
        ),
        ("transfers.views", "from transfers import intake\nfrom transfers.serializers import Body"),
        ("transfers.urls", "from transfers import views"),
        ("transfers.risk", "from transfers.risk import rules"),
        ("notifications.dispatch", "from transfers.events import TransferPosted"),
        ("notifications.management.commands.seed_demo", "from accounts.models import Account"),
        ("bankcore.settings", "from bankcore.topology import Topology"),
        ("bankcore.urls", "from transfers import views"),
        ("transfers.migrations.0002_rules", "def forwards(apps, editor):\n    import json"),
    ],
)
def test_what_is_allowed_passes(module: str, text: str) -> None:
    assert breaches({**_PROJECT, module: text}) == []
