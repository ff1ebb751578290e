"""The local stack as plain processes, without Docker: `python -m compose.local up | down | run | status | logs`.

Programs in compose/ are run as modules from the repository root (`.venv/bin/python -m compose.demo`), so they can
`from compose import local` and write:

    with local.stack(name="demo") as stack:            # everything: servers, migrations, topology, all roles
        httpx.get(stack["api"] + "/readyz")
        subprocess.run([sys.executable, "manage.py", "prove_books"], env={**os.environ, **stack["environment"]})

    with local.stack(name="test", roles=local.SERVERS_ONLY) as stack: ...

A stack is private to the caller (own ports, own data, in `.bankcore/runs/<name>/`), never the one of `make up`, and
is gone when the block ends or the calling process dies, however it dies.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from compose import supervision, worker_states
from compose.homes import remove_homes
from compose.instance import STATE, Instance, StackError, main_instance, other_runs, read_json, try_claim
from compose.roles import ALL_ROLES, parse_roles, role_log
from compose.stacks import SERVERS_ONLY, bring_up, forget, say, stack
from compose.supervision import Supervisor

__all__ = ["ALL_ROLES", "SERVERS_ONLY", "StackError", "stack"]

CLAIM_SECONDS_MAX = 150.0
COMMAND_STOP_SECONDS = 20.0


def up(options: argparse.Namespace) -> int:
    """Bring the whole stack up in the background, or say where the running one is."""
    instance = main_instance()
    deadline = time.monotonic() + CLAIM_SECONDS_MAX
    while not try_claim(instance):
        running = read_json(instance.stack_file)
        if running:
            say("already up")
            _print_addresses(running)
            return 0
        if time.monotonic() > deadline:
            raise StackError("Another `up` or `down` in this clone has not come to an end; see `make down`.")
        time.sleep(0.2)
    started = time.monotonic()
    try:
        supervision.end_leftovers(instance)
        forget(instance)
        with bring_up(instance, parse_roles(options.roles), {}, parent=None) as (_, description):
            say(f"ready after {time.monotonic() - started:.1f} s")
            _print_addresses(description)
    except BaseException:
        forget(instance)
        raise
    finally:
        instance.close()
    return 0


def down(options: argparse.Namespace) -> int:
    """Stop what `up` started, and what dead runs left; harmless when nothing runs."""
    instance = main_instance()
    if not STATE.exists():
        say("nothing is running")
        return 0
    say("stopped" if _stop(instance) else "nothing is running")
    if options.wipe:
        remove_homes(instance)
        for name in ("secrets.json", "credentials.json"):
            (instance.folder / name).unlink(missing_ok=True)
        say("its data is removed")
    for run in other_runs():
        # A run whose lock is taken has a living owner, or a watcher that is just stopping it.
        if try_claim(run):
            supervision.end_leftovers(run)
            remove_homes(run)
            forget(run)
            run.close()
    return 0


def _stop(instance: Instance) -> bool:
    was_running = False
    with contextlib.suppress(StackError):
        supervisor = Supervisor(instance)
        was_running = supervisor.is_alive()
        if was_running:
            supervisor.shut_down()
    deadline = time.monotonic() + supervision.STOP_SECONDS_MAX
    while not try_claim(instance):
        if time.monotonic() > deadline:
            raise StackError("A command that is bringing the stack up holds it; end that one first.")
        time.sleep(0.05)
    was_running = supervision.end_leftovers(instance) or was_running
    forget(instance)
    instance.close()
    return was_running


def run(options: argparse.Namespace) -> int:
    """Run a command against a private stack, which is stopped afterwards, come what may."""
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise StackError("run needs a command: run [--servers-only] -- COMMAND...")
    roles = parse_roles(options.roles) if options.stack else SERVERS_ONLY
    with stack(name=options.name, roles=roles) as description:
        process = subprocess.Popen(command, env={**os.environ, **description["environment"]})
        try:
            return _exit_code(process.wait())
        except BaseException:
            # Ctrl-C reached the command as well; a SIGTERM to this process did not.
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(COMMAND_STOP_SECONDS)
            process.kill()
            raise


def _exit_code(code: int) -> int:
    return 128 - code if code < 0 else code


def status(options: argparse.Namespace) -> int:
    """List the processes of `up`; exit code 3 if it is not running."""
    try:
        supervisor = Supervisor(main_instance())
        processes = supervisor.states()
    except (StackError, OSError):
        print("not running: make up starts it")
        return 3
    paused = worker_states.paused(main_instance(), [process["name"] for process in processes])
    for process in processes:
        print(f"{process['name']:<16} {process['statename']:<9} {process['description']}")
        for line in paused.get(process["name"], []):
            print(f"{'':<16} {'PAUSED':<9} {line}")
    _print_addresses(read_json(main_instance().stack_file))
    return 0


def logs(options: argparse.Namespace) -> int:
    """Print a role's or server's log, and go on with --follow."""
    instance = main_instance()
    paths = role_log(instance, options.role)
    if not paths:
        there = ", ".join(sorted(path.stem for path in instance.logs.glob("*.log")))
        raise StackError(f"No log of {options.role!r} in {instance.logs}. There are: {there or 'none'}.")
    tail = ["tail", "-n", str(options.lines), *(["-F"] if options.follow else [])]
    return subprocess.run([*tail, *map(str, paths)], check=False).returncode


def _print_addresses(running: Mapping[str, Any]) -> None:
    if not running:
        return
    for name in ("api", "admin", "flower"):
        if running.get(name):
            print(f"{name:<12} {running[name]}")
    if running.get("api"):
        print(f"{'API pages':<12} {running['api']}/api/docs/")
    print(f"{'credentials':<12} {_short(running['credentials'])}")
    print(f"{'details':<12} {_short(running['file'])}")
    print(f"{'logs':<12} {_short(running['logs'])}")


def _short(path: str) -> str:
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m compose.local", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(function: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        text = (function.__doc__ or "").splitlines()[0]
        command = commands.add_parser(function.__name__, help=text, description=text)
        command.set_defaults(function=function)
        return command

    roles_help = "other numbers of processes, such as risk=1,posting=4"
    add(up).add_argument("--roles", default="", help=roles_help)
    add(down).add_argument("--wipe", action="store_true", help="remove the stack's data as well")
    running = add(run)
    what = running.add_mutually_exclusive_group()
    what.add_argument("--servers-only", action="store_false", dest="stack", help="PostgreSQL, broker, Redis (default)")
    what.add_argument("--stack", action="store_true", help="the servers, migrations, and all roles")
    running.set_defaults(stack=False)
    running.add_argument("--name", default="run", help="names the folder in .bankcore/runs/")
    running.add_argument("--roles", default="", help=f"with --stack: {roles_help}")
    running.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND...")
    add(status)
    log = add(logs)
    log.add_argument("role", help="such as web, relay, risk, posting-0, postgresql, rabbitmq")
    log.add_argument("--lines", type=int, default=100)
    log.add_argument("--follow", action="store_true")
    return parser


def _on_terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def main(arguments: list[str] | None = None) -> int:
    """Parse, run one command, and turn its failure into words."""
    options = _parser().parse_args(arguments)
    # A shell starts background commands deaf to SIGINT; the stack has to be stopped all the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _on_terminate)
    signal.signal(signal.SIGHUP, _on_terminate)
    try:
        result: int = options.function(options)
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return result


if __name__ == "__main__":
    sys.exit(main())
