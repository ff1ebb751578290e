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
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from compose import roles as our_roles
from compose import servers as our_servers
from compose import supervision
from compose.instance import (
    REPOSITORY,
    STATE,
    Instance,
    StackError,
    claim_ports,
    claim_run,
    load_secrets,
    main_instance,
    other_runs,
    read_json,
    remove_tree,
    try_claim,
    write_json,
    write_private,
)
from compose.roles import ALL_ROLES
from compose.supervision import Supervisor

SERVERS_ONLY: Mapping[str, int] = {}
CLAIM_SECONDS_MAX = 150.0
COMMAND_STOP_SECONDS = 20.0
STAFF = {"admin": "admin", "operations": "operations"}
SCOPES = "accounts:read accounts:write transfers:read transfers:write staff ops:replay"


def say(line: str) -> None:
    print(f"[stack] {line}", file=sys.stderr, flush=True)


@contextmanager
def stack(
    *, name: str, roles: Mapping[str, int] = ALL_ROLES, environment: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Bring up a private stack, yield what stack.json holds, and stop it all when the block ends.

    `environment` is added to what every role sees (for instance {"PARTITIONS": "8"}).

    Keys of the yielded dict: "api" (http://127.0.0.1:PORT, without /api/v1), "admin", "flower", "metrics" (list of
    URLs), "database_url", "broker_url", "redis_url", "broker" ("rabbitmq" | "valkey"), "broker_api_url" (RabbitMQ's
    management API with credentials in it, or None), "database" (for instance "PostgreSQL 15.16"), "pids"
    ({role: [pid, ..]}, as at the start; read stack["file"] again to follow restarts), "server_pids", "logs" (folder),
    "file" (path of stack.json), "credentials" (path of credentials.json) and "environment" (every variable that a
    manage.py or pytest of yours needs, BANKCORE_STACK included).
    """
    instance = claim_run(name)
    try:
        supervision.end_leftovers(instance)
        _forget_run(instance)
        with _up(instance, roles, environment or {}, parent=os.getpid()) as (supervisor, description):
            try:
                yield description
            finally:
                with _unhurried():
                    supervisor.shut_down()
    finally:
        _forget(instance)
        our_servers.remove_homes(instance)
        instance.close()


@contextmanager
def _up(
    instance: Instance, roles: Mapping[str, int], environment: Mapping[str, str], *, parent: int | None
) -> Iterator[tuple[Supervisor, dict[str, Any]]]:
    """Bring a claimed instance up; whatever goes wrong before the block is entered, nothing stays running."""
    given = {**os.environ, **environment}
    choice = our_servers.choose(given, say)
    known = load_secrets(instance)
    ports = claim_ports(instance)
    supervisor_port = next(ports)
    servers = our_servers.prepare(instance, choice, given, ports, known)
    variables = _variables(instance, servers, known, environment)
    planned = our_roles.plan(instance, roles, servers, ports, known, variables)
    supervisor = supervision.start_supervisor(
        instance,
        [*servers.programs, *planned.programs],
        port=supervisor_port,
        password=known["supervisor"],
        parent=parent,
    )
    try:
        our_servers.start(servers, supervisor)
        _write_env_file(instance, variables)
        if roles:
            _manage("migrate", "--noinput", variables=variables)
            _manage("declare_topology", variables=variables)
            _write_credentials(instance, servers, known, variables)
            our_roles.start(planned, supervisor)
        write_json(instance.folder / "description.json", _description(instance, servers, planned, variables))
        description = supervision.publish(instance, supervisor)
    except BaseException:
        with _unhurried():
            supervisor.shut_down()
        raise
    yield supervisor, description


# -- what the stack is told, and tells ---------------------------------------------------------------------------------


def _variables(
    instance: Instance, servers: our_servers.Servers, known: Mapping[str, str], more: Mapping[str, str]
) -> dict[str, str]:
    mail = instance.folder / "mail"
    mail.mkdir(mode=0o700, exist_ok=True)
    return {
        "DJANGO_SETTINGS_MODULE": "bankcore.settings",
        "DATABASE_URL": servers.database_url,
        "BROKER_URL": servers.broker_url,
        "REDIS_URL": servers.redis_url,
        "SECRET_KEY": os.environ.get("SECRET_KEY") or known["secret_key"],
        "ALLOWED_HOSTS": os.environ.get("ALLOWED_HOSTS", "127.0.0.1,localhost"),
        "EMAIL_URL": os.environ.get("EMAIL_URL") or _mail_url(mail),
        "BANKCORE_STACK": str(instance.stack_file),
        "BANKCORE_ENV_FILE": str(instance.env_file),
        **more,
    }


def _mail_url(folder: Path) -> str:
    # django-environ cuts off one slash of the path.
    return "filemail:///" + urllib.parse.quote(str(folder))


def _write_env_file(instance: Instance, variables: Mapping[str, str]) -> None:
    lines = (f"{name}='{value}'\n" for name, value in variables.items() if "'" not in value and "\n" not in value)
    write_private(instance.env_file, "".join(lines))


def _description(
    instance: Instance, servers: our_servers.Servers, planned: our_roles.Roles, variables: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "api": planned.web_url,
        "admin": planned.web_url and f"{planned.web_url}/admin/",
        "flower": planned.flower_url,
        "metrics": planned.metrics,
        "database_url": servers.database_url,
        "broker_url": servers.broker_url,
        "redis_url": servers.redis_url,
        "database": servers.database,
        "broker": servers.broker,
        "broker_api_url": servers.broker_api_url,
        "file": str(instance.stack_file),
        "credentials": str(instance.credentials_file),
        "logs": str(instance.logs),
        "environment": dict(variables),
    }


def _write_credentials(
    instance: Instance, servers: our_servers.Servers, known: Mapping[str, str], variables: Mapping[str, str]
) -> None:
    """Create two staff users (a review needs four eyes) and a token, and note them where only the owner can read."""
    for name in STAFF:
        staff = {"DJANGO_SUPERUSER_USERNAME": name, "DJANGO_SUPERUSER_EMAIL": f"{name}@bankcore.localhost"}
        with contextlib.suppress(StackError):
            # It is there already, with the same password, when the data of an earlier `make up` is used again.
            staff["DJANGO_SUPERUSER_PASSWORD"] = known[name]
            _manage("createsuperuser", "--noinput", variables={**variables, **staff})
    earlier = read_json(instance.credentials_file).get("token", "")
    token = earlier or _manage("issue_token", "--client", "local", "--scopes", SCOPES, variables=variables).strip()
    write_json(
        instance.credentials_file,
        {
            "admin": {"username": "admin", "password": known["admin"]},
            "second_admin": {"username": "operations", "password": known["operations"]},
            "flower": {"username": "staff", "password": known["flower"]},
            "token": token,
            "broker": {"api": servers.broker_api_url, "username": "operator", "password": known["broker_operator"]},
        },
    )


def _manage(*command: str, variables: Mapping[str, str]) -> str:
    answer = subprocess.run(
        [sys.executable, "manage.py", *command],
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        raise StackError(f"manage.py {command[0]} failed:\n{(answer.stdout + answer.stderr).strip()[-4000:]}")
    return answer.stdout


def _forget(instance: Instance) -> None:
    """Remove the files that say a stack is running."""
    for name in ("stack.json", "description.json", "control.json", "programs.json", "supervisord.conf", "env"):
        (instance.folder / name).unlink(missing_ok=True)


def _forget_run(instance: Instance) -> None:
    """Start a private run afresh: nothing of an earlier one, its data and passwords included, except the folder."""
    _forget(instance)
    our_servers.remove_homes(instance)
    for name in ("secrets.json", "credentials.json"):
        (instance.folder / name).unlink(missing_ok=True)
    for name in ("mail", "metrics-web"):
        remove_tree(instance.folder / name)
    for log in instance.logs.glob("*"):
        log.unlink()


@contextmanager
def _unhurried() -> Iterator[None]:
    """A second Ctrl-C must not leave half a stack behind."""
    before = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM)}
    try:
        for sign in before:
            signal.signal(sign, signal.SIG_IGN)
    except ValueError:
        # Not in the main thread: signals do not come here anyway.
        before = {}
    try:
        yield
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


# -- commands ----------------------------------------------------------------------------------------------------------


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
        _forget(instance)
        with _up(instance, our_roles.parse_roles(options.roles), {}, parent=None) as (_, description):
            say(f"ready after {time.monotonic() - started:.1f} s")
            _print_addresses(description)
    except BaseException:
        _forget(instance)
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
        our_servers.remove_homes(instance)
        for name in ("secrets.json", "credentials.json"):
            (instance.folder / name).unlink(missing_ok=True)
        say("its data is removed")
    for run in other_runs():
        # A run whose lock is taken has a living owner, or a watcher that is just stopping it.
        if try_claim(run):
            supervision.end_leftovers(run)
            our_servers.remove_homes(run)
            _forget(run)
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
    _forget(instance)
    instance.close()
    return was_running


def run(options: argparse.Namespace) -> int:
    """Run a command against a private stack, which is stopped afterwards, come what may."""
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise StackError("run needs a command: run [--servers-only] -- COMMAND...")
    roles = our_roles.parse_roles(options.roles) if options.stack else SERVERS_ONLY
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
        print("not running")
        return 3
    for process in processes:
        print(f"{process['name']:<16} {process['statename']:<9} {process['description']}")
    _print_addresses(read_json(main_instance().stack_file))
    return 0


def logs(options: argparse.Namespace) -> int:
    """Print a role's or server's log, and go on with --follow."""
    instance = main_instance()
    paths = our_roles.role_log(instance, options.role)
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
