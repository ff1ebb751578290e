"""Seeded bugs, each with the test that has to catch it: `python -m tests.faults.mutants`, a quarter of an hour.

Every bug is a small patch, applied alone to a copy of the tree, in which its test is run. The tests pass without it
first: one that always fails catches nothing. A patch that does not fit the code any more is a failure as well.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from tests.faults.mutant_list import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS_MAX = 600
CAUGHT, SURVIVED = "caught", "survived"


@dataclass(frozen=True)
class Result:
    """What became of one mutant; `outcome` is "caught", "survived" or what kept it from being judged."""

    name: str
    test: str
    outcome: str


class Copy:
    """The tree as git knows it, with the changes that are not committed, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        self._fresh_database = True

    def run(self, tests: Sequence[str], *, fresh_database: bool = False) -> subprocess.CompletedProcess[str]:
        """Run tests in the copy. The test database is kept from run to run, unless the migrations have changed."""
        database = "--create-db" if fresh_database or self._fresh_database else "--reuse-db"
        self._fresh_database = fresh_database
        return subprocess.run(
            [sys.executable, "-m", "pytest", *tests, "-q", "-x", "--reuse-db", database, "-p", "no:cacheprovider"],
            cwd=self.folder,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True, text=True, check=False, timeout=SECONDS_MAX,
        )  # fmt: skip

    def judge(self, mutant: Mutant) -> Result:
        path = self.folder / mutant.path
        sound = path.read_text()
        if sound.count(mutant.before) != 1:
            found = sound.count(mutant.before)
            return Result(mutant.name, mutant.test, f"the patch does not apply: {found} places instead of one")
        path.write_text(sound.replace(mutant.before, mutant.after))
        try:
            code = self.run([mutant.test], fresh_database="migrations" in mutant.path).returncode
        except subprocess.TimeoutExpired:
            return Result(mutant.name, mutant.test, f"no result within {SECONDS_MAX} s")
        finally:
            path.write_text(sound)
        outcome = {0: SURVIVED, 1: CAUGHT}.get(code, f"pytest ended with {code}: the test did not run")
        return Result(mutant.name, mutant.test, outcome)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.mutants", description=__doc__)
    parser.add_argument("--only", metavar="TEXT", default="", help="only mutants with this text in their name")
    parser.add_argument("--list", action="store_true", help="name the mutants and their tests, and run nothing")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    options = parser.parse_args(arguments)
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.name]
    if options.list or not chosen:
        say("\n".join(f"{m.name}: {m.test}" for m in chosen) or f"No mutant has {options.only!r} in its name.")
        return 0 if chosen else 2
    if "DATABASE_URL" not in os.environ:
        return _with_servers(arguments if arguments is not None else sys.argv[1:])
    results = run(chosen)
    _report(results, as_json=options.json)
    return 0 if all(result.outcome == CAUGHT for result in results) else 1


def run(mutants: Sequence[Mutant]) -> list[Result]:
    """Judge the mutants one after another; none when their tests do not pass without them."""
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Copy(Path(folder))
        sound = copy.run(sorted({mutant.test for mutant in mutants}))
        if sound.returncode:
            console.print(sound.stdout[-3000:], markup=False)
            return [Result("no mutant at all", "all of them", "the tests do not pass on the sound tree")]
        return [copy.judge(mutant) for mutant in track(mutants, "Mutants", console=console)]


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _with_servers(arguments: Iterable[str]) -> int:
    command = [sys.executable, "-m", "tests.faults.mutants", *arguments]
    servers = [sys.executable, "-m", "compose.local", "run", "--servers-only", "--name", "mutants", "--"]
    return subprocess.run([*servers, *command], cwd=ROOT, check=False).returncode


def _report(results: Sequence[Result], *, as_json: bool) -> None:
    caught = sum(result.outcome == CAUGHT for result in results)
    if as_json:
        say(json.dumps({"mutants": len(results), "caught": caught, "results": [vars(r) for r in results]}))
        return
    width = max(len(result.name) for result in results)
    for result in results:
        say(f"{result.name:{width}}  {result.outcome:8}  {result.test.rpartition('::')[2]}")
    say(f"{caught} of {len(results)} caught")


if __name__ == "__main__":
    sys.exit(main())
