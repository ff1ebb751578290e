"""What workers say of themselves while they run: which queues they wait with, since when, and why."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Iterable
from typing import Any

from compose.instance import Instance, read_json

ANSWER_SECONDS_MAX = 1.0


def paused(instance: Instance, names: Iterable[str]) -> dict[str, list[str]]:
    """The pauses of each of these processes, in words; one that has none, or does not answer, is left out."""
    programs = read_json(instance.folder / "programs.json")
    found = {}
    for name in names:
        program = programs.get(name, {})
        port = program.get("environment", {}).get("METRICS_PORT")
        if port and "worker" in program["arguments"]:
            found[name] = [_words(pause) for pause in _state(port).get("paused", [])]
    return {name: lines for name, lines in found.items() if lines}


def _state(port: str) -> dict[str, Any]:
    address = f"http://127.0.0.1:{port}/state"
    with (
        contextlib.suppress(OSError, ValueError),
        urllib.request.urlopen(address, timeout=ANSWER_SECONDS_MAX) as answer,
    ):
        state: dict[str, Any] = json.load(answer)
        return state
    return {}


def _words(pause: dict[str, str]) -> str:
    return f"{pause['queue']} waits since {pause['since']} for infrastructure: {pause['cause']}"
