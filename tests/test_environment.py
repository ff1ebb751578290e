"""Settings whose value makes no sense: named at the start."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from bankcore.environment import Environment

ROOT = Path(__file__).parent.parent
env = Environment()


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (lambda: env.bool("GIVEN", default=False), "enabled"),
        (lambda: env.int("GIVEN", default=1), "many"),
        (lambda: env.float("GIVEN", default=1.0), "long"),
        (lambda: env.rate("GIVEN"), "fast"),
        (lambda: env.limit("GIVEN", default="1/second"), "600 at most"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(read: Any, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read()
    monkeypatch.setenv("GIVEN", value)

    with pytest.raises(ImproperlyConfigured, match=r"^GIVEN: "):
        read()


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("1", True),
        ("On", True),
        ("yes", True),
        ("true", True),
        ("0", False),
        ("off", False),
        ("No", False),
        ("", False),
    ],
)
def test_a_switch_is_on_or_off(value: str, meant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIVEN", value)

    assert env.bool("GIVEN", default=not meant) is meant


def test_limits_are_read_from_a_file_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "limit").write_text("5/minute")
    monkeypatch.setenv("GIVEN_FILE", str(tmp_path / "limit"))

    assert (env.limit("GIVEN", default="1/second").amount, env.rate("GIVEN")) == (5, "5/minute")


@pytest.mark.parametrize("command", ["manage.py seal_head", "-m compose.first_steps"])
def test_a_command_says_it_in_one_line(command: str) -> None:
    run = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, env=os.environ | {"HTTPS": "enabled"},
        input='{"staff": {}, "token": ""}', capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert run.returncode == 1
    assert run.stderr.removeprefix("error: ") == "HTTPS: give 1 or 0 (on or off, yes or no), not 'enabled'\n"
