"""Keeps the processes of one instance alive, and ends every one of them.

The work is done by the library `supervisor`; in here are its configuration, the calls that start and stop programs,
and the account of what is running (stack.json). compose/watcher.py is the listener inside supervisord's tree.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
import xmlrpc.client
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compose.instance import REPOSITORY, Instance, StackError, boot_id, read_json, started_at, write_json

SERVERS, ROLES, WATCHER = "servers", "roles", "watcher"
RPC_ERRORS = (OSError, xmlrpc.client.Error, http.client.HTTPException)
STOP_SECONDS_MAX = 40.0
LOOK_SECONDS = 0.1
# Looks at a program that found it waiting for its next try: about six seconds in all.
FAILING_LOOKS_MAX = 60
LOG_BYTES_MAX = "20MB"
# supervisord waits one second longer before each further try; when it gives up, the watcher starts it over.
START_RETRIES = 8
DESCRIPTORS_WANTED = 4096


@dataclass(frozen=True)
class Program:
    """One supervised process. `empties` are folders emptied before each start."""

    name: str
    arguments: list[str]
    directory: str
    group: str = ROLES
    environment: Mapping[str, str] = field(default_factory=dict)
    inherits: bool = False
    user: str = ""
    stop_signal: str = "TERM"
    stop_seconds: int = 10
    empties: list[str] = field(default_factory=list)


def role_of(name: str) -> str:
    """The role that a program such as risk-1 plays."""
    return re.sub(r"-\d+$", "", name)


# -- supervisord -------------------------------------------------------------------------------------------------------


class Supervisor:
    """A running supervisord, started by this process or found through the instance's folder."""

    def __init__(self, instance: Instance, process: subprocess.Popen[bytes] | None = None) -> None:
        self.instance = instance
        self.process = process
        self._failing_looks: Counter[str] = Counter()
        control = read_json(instance.folder / "control.json")
        if not control:
            raise StackError(f"No stack is running in {instance.folder}.")
        self.pid = int(control["pid"])
        self._started_at = control["started_at"]
        address = f"http://bankcore:{control['password']}@127.0.0.1:{control['port']}/RPC2"
        self.rpc: Any = xmlrpc.client.ServerProxy(address).supervisor

    def is_alive(self) -> bool:
        if self.process is not None:
            return self.process.poll() is None
        return started_at(self.pid) == self._started_at

    def states(self) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.rpc.getAllProcessInfo()
        return result

    def start(self, name: str) -> None:
        """Start a group (`roles:*`) or one program (`servers:valkey`) without waiting for it."""
        with contextlib.suppress(xmlrpc.client.Fault):
            if name.endswith(":*"):
                self.rpc.startProcessGroup(name[:-2], False)
            else:
                self.rpc.startProcess(name, False)

    def wait_for(self, what: str, is_ready: Callable[[], bool], *, program: str, seconds: float) -> None:
        """Wait until something answers.

        Raises: StackError with the end of the program's log when the time is up, or when it cannot be started.
        """
        deadline = time.monotonic() + seconds
        while not is_ready():
            if time.monotonic() > deadline or not self.is_alive():
                raise StackError(f"{what} was not ready after {seconds:.0f} s.\n{self.log_tail(program)}")
            if self._gave_up(program):
                raise StackError(f"{what} does not start.\n{self.log_tail(program)}")
            time.sleep(LOOK_SECONDS)

    def _gave_up(self, program: str) -> bool:
        # A few failures are normal: PostgreSQL after a crash waits for its old children, for instance.
        if any(s["name"] == program and s["statename"] in ("FATAL", "BACKOFF") for s in self.states()):
            self._failing_looks[program] += 1
        return self._failing_looks[program] > FAILING_LOOKS_MAX

    def log_tail(self, program: str, lines: int = 25) -> str:
        path = self.instance.logs / f"{program}.log"
        text = path.read_text(errors="replace") if path.exists() else ""
        return f"The end of {path}:\n" + "\n".join(text.splitlines()[-lines:])

    def shut_down(self) -> None:
        """Stop all programs, roles before servers, then supervisord; end by force what does not stop."""
        with contextlib.suppress(*RPC_ERRORS):
            self.rpc.shutdown()
        deadline = time.monotonic() + STOP_SECONDS_MAX
        while self.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.is_alive():
            os.kill(self.pid, signal.SIGKILL)
        end_leftovers(self.instance)


def start_supervisor(
    instance: Instance, programs: Iterable[Program], *, port: int, password: str, parent: int | None
) -> Supervisor:
    """Start supervisord with all programs known and only the watcher running."""
    programs = list(programs)
    write_json(instance.folder / "programs.json", {program.name: asdict(program) for program in programs})
    configuration = instance.folder / "supervisord.conf"
    configuration.touch(mode=0o600)
    configuration.chmod(0o600)
    configuration.write_text(_configuration(instance, programs, port=port, password=password))
    with open(instance.logs / "supervisord.out", "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(configuration)],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Its own session: Ctrl-C at the terminal is for the caller, who then stops the stack in order.
            start_new_session=True,
            pass_fds=[instance.lock, *(claim.fileno() for claim in instance.claims)],
        )
    control = {
        "pid": process.pid,
        "started_at": started_at(process.pid),
        "port": port,
        "password": password,
        "parent": parent,
        "parent_started_at": started_at(parent) if parent else None,
    }
    write_json(instance.folder / "control.json", control)
    supervisor = Supervisor(instance, process)
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(*RPC_ERRORS):
            supervisor.rpc.getState()
            return supervisor
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise StackError(f"supervisord did not start.\n{supervisor.log_tail('supervisord')}")
        time.sleep(0.05)


def _configuration(instance: Instance, programs: list[Program], *, port: int, password: str) -> str:
    wanted = DESCRIPTORS_WANTED
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    sections = [
        "[supervisord]",
        "nodaemon=true",
        "logfile=%(here)s/logs/supervisord.log",
        "logfile_maxbytes=5MB",
        "logfile_backups=1",
        "pidfile=%(here)s/supervisord.pid",
        "umask=077",
        f"minfds={wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)}",
        *(["user=root"] if os.geteuid() == 0 else []),
        "[inet_http_server]",
        f"port=127.0.0.1:{port}",
        "username=bankcore",
        f"password={password}",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
        f"[eventlistener:{WATCHER}]",
        f"command={_quoted(sys.executable, '-m', 'compose.watcher', str(instance.folder))}",
        "events=PROCESS_STATE",
        "buffer_size=1000",
        "autorestart=true",
        "stopwaitsecs=10",
        "stderr_logfile=%(here)s/logs/watcher.log",
        f"stderr_logfile_maxbytes={LOG_BYTES_MAX}",
    ]
    for program in programs:
        sections += [
            f"[program:{program.name}]",
            f"command={_quoted(sys.executable, '-S', '-m', 'compose.launch', str(instance.folder), program.name)}",
            "autostart=false",
            "autorestart=true",
            "startsecs=1",
            f"startretries={START_RETRIES}",
            f"stopsignal={program.stop_signal}",
            f"stopwaitsecs={program.stop_seconds}",
            "killasgroup=true",
            "redirect_stderr=true",
            f"stdout_logfile=%(here)s/logs/{program.name}.log",
            f"stdout_logfile_maxbytes={LOG_BYTES_MAX}",
            "stdout_logfile_backups=1",
        ]
    # Stopping goes by falling priority: roles first, and each group's programs together.
    for group, priority in ((SERVERS, 10), (ROLES, 20)):
        members = [program.name for program in programs if program.group == group]
        if members:
            sections += [f"[group:{group}]", f"programs={','.join(members)}", f"priority={priority}"]
    return "\n".join(sections) + "\n"


def _quoted(*words: str) -> str:
    return shlex.join(words).replace("%", "%%")


# -- what is running, for other programs -------------------------------------------------------------------------------


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600)) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def publish(instance: Instance, supervisor: Supervisor) -> dict[str, Any]:
    """Write stack.json: the stack's description with the pids of this moment.

    Asks supervisord while holding a lock, so whoever writes last has the newest answer.
    """
    with _exclusive(instance.folder / "publish.lock"):
        programs = read_json(instance.folder / "programs.json")
        running = {s["name"]: int(s["pid"]) for s in supervisor.states() if s["pid"]}
        processes = {str(pid): started_at(pid) for pid in running.values()}
        write_json(instance.folder / "processes.json", {"boot": boot_id(), "processes": processes})
        description = read_json(instance.folder / "description.json")
        if not description:
            return {}
        pids: dict[str, list[int]] = {}
        server_pids: dict[str, list[int]] = {}
        for name, program in programs.items():
            target = server_pids if program["group"] == SERVERS else pids
            target.setdefault(role_of(name), []).extend([running[name]] if name in running else [])
        stack = {**description, "pids": pids, "server_pids": server_pids, "supervisor_pid": supervisor.pid}
        write_json(instance.stack_file, stack)
        return stack


def end_leftovers(instance: Instance) -> bool:
    """End what a crashed supervisord left behind, known by pid and start time; False if there was nothing."""
    record = read_json(instance.folder / "processes.json")
    found = False
    if record.get("boot") == boot_id():
        groups = [int(pid) for pid, started in record["processes"].items() if _is_ours(int(pid), started)]
        found = bool(groups)
        for sign, patience in ((signal.SIGTERM, 5.0), (signal.SIGQUIT, 1.0), (signal.SIGKILL, 5.0)):
            groups = [group for group in groups if signal_group(group, sign)]
            deadline = time.monotonic() + patience
            while groups and time.monotonic() < deadline:
                groups = [group for group in groups if signal_group(group, 0)]
                time.sleep(0.05)
    (instance.folder / "processes.json").unlink(missing_ok=True)
    return found


def _is_ours(pid: int, started: str | None) -> bool:
    # A dead leader's orphans keep its number from being given to anyone else, so the group is still ours.
    now = started_at(pid)
    return started is not None and (now == started or (now is None and signal_group(pid, 0)))


def signal_group(group: int, sign: int) -> bool:
    """Signal a process group; False if nobody is left in it."""
    try:
        os.killpg(group, sign)
    except (ProcessLookupError, PermissionError):
        return False
    return True
