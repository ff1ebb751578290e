"""Becomes one program of a stack: reads its entry in programs.json, takes on its user and environment, and execs it.

supervisord starts everything through here, so that no secret is on a command line and no path, whatever it is made
of, has to survive the quoting of supervisord's configuration. Uses the standard library only, to be quick.
"""

import json
import os
import pwd
import shutil
import sys
from pathlib import Path


def launch(folder: Path, name: str) -> None:
    """Replace this process by the program."""
    program = json.loads((folder / "programs.json").read_text())[name]
    for empty in program["empties"]:
        shutil.rmtree(empty, ignore_errors=True)
        Path(empty).mkdir(parents=True)
    environment = {**os.environ, **program["environment"]} if program["inherits"] else program["environment"]
    if program["user"]:
        account = pwd.getpwnam(program["user"])
        os.initgroups(account.pw_name, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    _begin_session()
    os.chdir(program["directory"])
    os.execvpe(program["arguments"][0], program["arguments"], environment)  # noqa: S606 an argument list, no shell


def _begin_session() -> None:
    """Give the program a session of its own, as a service has.

    Linux may share out processors by session (autogroup), and each connection to PostgreSQL has one: all our programs
    in a single session would get as much together as one connection, and clients would wait for web.
    """
    # Who leads a process group may not begin a session; supervisord has made it one.
    os.setpgid(0, os.getpgid(os.getppid()))
    os.setsid()


if __name__ == "__main__":
    launch(Path(sys.argv[1]), sys.argv[2])
