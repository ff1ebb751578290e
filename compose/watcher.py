"""supervisord's listener (`python -m compose.watcher FOLDER`): keeps `pids` in stack.json true, starts again what
supervisord gave up on, and ends a private run whose parent has vanished.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

from supervisor import childutils

from compose.homes import remove_homes
from compose.instance import Instance, StackError, read_json, started_at
from compose.supervision import RPC_ERRORS, Supervisor, end_leftovers, publish, signal_group

PARENT_CHECK_SECONDS = 1.0
ENDED = ("PROCESS_STATE_EXITED", "PROCESS_STATE_BACKOFF", "PROCESS_STATE_STOPPED")


def watch(folder: Path) -> None:
    """Serve events until supervisord ends this process, as the last of all, or is gone itself."""
    signal.signal(signal.SIGTERM, _on_terminate)
    supervisor = _connected(folder)
    has_parent = bool(read_json(folder / "control.json")["parent"])
    instance = supervisor.instance
    try:
        _serve(instance, supervisor, has_parent=has_parent)
    finally:
        if has_parent and not _parent_lives(instance):
            end_leftovers(instance)
            remove_homes(instance)


def _serve(instance: Instance, supervisor: Supervisor, *, has_parent: bool) -> None:
    childutils.listener.ready(sys.stdout)
    while True:
        if has_parent and not _parent_lives(instance):
            with contextlib.suppress(*RPC_ERRORS):
                supervisor.rpc.shutdown()
        if not select.select([sys.stdin], [], [], PARENT_CHECK_SECONDS)[0]:
            continue
        line = sys.stdin.readline()
        if not line:
            return
        headers = childutils.get_headers(line)
        payload = childutils.get_headers(sys.stdin.read(int(headers["len"])))
        _react(instance, supervisor, headers["eventname"], payload)
        childutils.listener.ok(sys.stdout)
        childutils.listener.ready(sys.stdout)


def _on_terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def _connected(folder: Path) -> Supervisor:
    instance = Instance(folder=folder, throwaway=folder.parent.name == "runs")
    # The listener is started while its parent is still writing control.json.
    deadline = time.monotonic() + 10
    while True:
        with contextlib.suppress(StackError, KeyError):
            supervisor = Supervisor(instance)
            if supervisor.pid == os.getppid():
                return supervisor
        if time.monotonic() > deadline:
            raise StackError("The watcher found no supervisord.")
        time.sleep(0.02)


def _parent_lives(instance: Instance) -> bool:
    control = read_json(instance.folder / "control.json")
    return bool(control) and started_at(control["parent"]) == control["parent_started_at"]


def _react(instance: Instance, supervisor: Supervisor, event: str, payload: Mapping[str, str]) -> None:
    if event in ENDED and payload.get("pid", "0") != "0":
        # As in a container: when the first process is dead, so are its children (they would keep its port).
        signal_group(int(payload["pid"]), signal.SIGKILL)
    with contextlib.suppress(*RPC_ERRORS):
        if event == "PROCESS_STATE_FATAL":
            supervisor.start(f"{payload['groupname']}:{payload['processname']}")
        publish(instance, supervisor)


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
