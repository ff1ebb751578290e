"""One instance of the local stack: its folder, its lock, its ports and its secrets.

Whoever holds the lock is the instance: supervisord inherits the descriptor, so the kernel says truthfully, after any
crash, whether a stack is running. Ports are claimed the same way, by sockets that supervisord keeps open.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
STATE = REPOSITORY / ".bankcore"
RUNS_MAX = 100

# Below every system's range of ephemeral ports: a client's outgoing connection must not take a server's port.
PORT_BLOCKS = range(20_000, 32_000, 40)
PORT_BLOCK_SIZE = 40
# A preferred port such as 8000 is claimed by binding this much above it, before its server is up.
CLAIM_OFFSET = 10_000
PREFERRED_TRIES = 100

SECRET_NAMES = (
    *("secret_key", "supervisor", "database_superuser", "database", "redis"),
    *("broker", "broker_operator", "broker_monitor", "broker_cookie"),
    *(f"broker_{role}" for role in ("relay", "risk", "posting", "notifications", "maintenance", "flower")),
    *("admin", "operations", "flower"),
)


class StackError(Exception):
    """The local stack cannot do what was asked; the message says why in words for the person at the terminal."""


@dataclass
class Instance:
    """A claimed instance folder. Private runs are throwaway: their data goes when they end."""

    folder: Path
    throwaway: bool
    lock: int = -1
    claims: list[socket.socket] = field(default_factory=list)

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def stack_file(self) -> Path:
        return self.folder / "stack.json"

    @property
    def credentials_file(self) -> Path:
        return self.folder / "credentials.json"

    @property
    def env_file(self) -> Path:
        return self.folder / "env"

    @property
    def outside(self) -> Path:
        """A place for servers that cannot live in the clone, tied to it by the hash of its path."""
        clone = hashlib.sha256(str(REPOSITORY).encode()).hexdigest()[:10]
        name = self.folder.name if self.throwaway else "up"
        if os.geteuid() == 0:
            return Path("/var/lib") / f"bankcore-{clone}" / name
        temporary = tempfile.gettempdir()
        place = Path("/tmp" if " " in temporary else temporary)  # noqa: S108 the folder made there is private
        return place / f"bankcore-{os.geteuid()}-{clone}" / name

    def close(self) -> None:
        for claim in self.claims:
            claim.close()
        self.claims.clear()
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


def main_instance() -> Instance:
    """The instance of `make up`, not claimed."""
    return Instance(folder=STATE, throwaway=False)


def try_claim(instance: Instance) -> bool:
    """Take the instance's lock; False if a living stack, or another program starting one, has it."""
    make_folder(STATE)
    make_folder(instance.folder.parent)
    make_folder(instance.folder)
    make_folder(instance.logs)
    descriptor = os.open(instance.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    instance.lock = descriptor
    return True


def claim_run(name: str) -> Instance:
    """The first free of `.bankcore/runs/<name>`, `<name>-2`, ...: runs of one name may overlap."""
    if not name or not all(letter.isalnum() or letter in "-_" for letter in name):
        raise StackError(f"A run's name is letters, digits, - and _; not {name!r}.")
    for number in range(1, RUNS_MAX + 1):
        folder = STATE / "runs" / (name if number == 1 else f"{name}-{number}")
        instance = Instance(folder=folder, throwaway=True)
        if try_claim(instance):
            return instance
    raise StackError(f"{RUNS_MAX} runs named {name!r} are going on already.")


def other_runs() -> Iterator[Instance]:
    for folder in sorted((STATE / "runs").glob("*")):
        if folder.is_dir():
            yield Instance(folder=folder, throwaway=True)


def make_folder(folder: Path) -> None:
    """Private to its owner; root's may be passed through by the users that the servers run as, but not listed."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711 if os.geteuid() == 0 else 0o700)


# -- files -------------------------------------------------------------------------------------------------------------


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step, readable by its owner only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_private(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """What a file of ours holds; empty if it is missing or was never finished."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def load_secrets(instance: Instance) -> Mapping[str, str]:
    """The instance's passwords: random, made once, and kept as long as the data they protect."""
    path = instance.folder / "secrets.json"
    known = read_json(path)
    for name in SECRET_NAMES:
        known.setdefault(name, secrets.token_urlsafe(48 if name == "secret_key" else 18).replace("-", "a"))
    write_json(path, known)
    return known


def remove_tree(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path, ignore_errors=True)


# -- ports -------------------------------------------------------------------------------------------------------------


def claim_ports(instance: Instance) -> Iterator[int]:
    """Hand out ports for this instance one by one, from blocks that are claimed as they are needed."""
    while True:
        yield from _claim_block(instance)


def _claim_block(instance: Instance) -> range:
    for first in random.sample(PORT_BLOCKS, len(PORT_BLOCKS)):
        claim = _claim(first)
        if claim is None:
            continue
        if all(_is_free(port) for port in range(first + 1, first + PORT_BLOCK_SIZE)):
            instance.claims.append(claim)
            return range(first + 1, first + PORT_BLOCK_SIZE)
        claim.close()
    raise StackError("No block of free ports found on 127.0.0.1.")


def claim_preferred(instance: Instance, preferred: int) -> int:
    """The preferred port, or the next one that nobody uses and no other stack has set its eyes on."""
    for port in range(preferred, preferred + PREFERRED_TRIES):
        claim = _claim(port + CLAIM_OFFSET)
        if claim is None:
            continue
        if _is_free(port):
            instance.claims.append(claim)
            return port
        claim.close()
    raise StackError(f"No free port from {preferred} to {preferred + PREFERRED_TRIES - 1}.")


def _claim(port: int) -> socket.socket | None:
    claim = socket.socket()
    try:
        claim.bind(("127.0.0.1", port))
    except OSError:
        claim.close()
        return None
    return claim


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers bind it: connections lingering from a stack just stopped do not make a port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


# -- processes ---------------------------------------------------------------------------------------------------------


def started_at(pid: int) -> str | None:
    """When a process started, in the system's own words, or None if it is gone: with the pid, its identity."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    else:
        # The name in parentheses may hold anything; the start time is the 20th field after it. Z: dead, not reaped.
        fields = text.rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        answer = subprocess.run(["sysctl", "-n", "kern.boottime"], capture_output=True, text=True, check=False)
        return answer.stdout.strip()


def command_line(pid: int) -> str:
    answer = subprocess.run(["ps", "-o", "args=", "-ww", "-p", str(pid)], capture_output=True, text=True, check=False)
    return answer.stdout.strip()
