"""A short game day with a fixed seed: faults of many classes under load, and nothing lost, doubled or out of order."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SEED = "1"
SECONDS_MAX = 1_200


def test_a_short_game_day_ends_with_nothing_lost_doubled_reordered_or_made_up() -> None:
    # The stack of a game day is its own, with its own addresses and its own mail folder.
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_URL")}

    done = subprocess.run(
        [sys.executable, "-m", "compose.gameday", "--quick", "--seed", SEED],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )

    assert done.stdout, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    damage = ("lost", "duplicated", "out_of_order", "stuck", "unexpected", "bad_answers", "dead_letters_missing")
    assert {name: told[name] for name in damage} == dict.fromkeys(damage, 0), done.stdout
    assert (told["notifications_missing"], told["notifications_false"]) == (0, 0), done.stdout
    assert (told["books"], told["void"], told["left"]) == ("balanced", 0, 0), done.stdout
    assert told["faults"] >= 25
    assert told["classes"] >= 12
    assert told["accepted"] >= 3_000
    assert done.returncode == 0, done.stdout
