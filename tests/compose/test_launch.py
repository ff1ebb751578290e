"""How programs of a stack are started: each with processors of its own, and those who yield do so."""

import json
import os
import subprocess
import sys
from pathlib import Path

from bankcore.niceness import NICENESS, SESSION_NICENESS

ASK = "import os; print(os.getsid(0) == os.getpid() == os.getpgid(0))"
AUTOGROUP = Path("/proc/self/autogroup")
NONE = "none"


def _output(arguments: list[str], **how: bool | int) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, **how)  # type: ignore[call-overload]
    return str(done.stdout).strip()


def test_each_program_leads_a_session_of_its_own(tmp_path: Path) -> None:
    program = {
        "arguments": [sys.executable, "-c", ASK], "directory": os.getcwd(), "environment": {}, "inherits": True,
        "user": None, "empties": [],
    }  # fmt: skip
    (tmp_path / "programs.json").write_text(json.dumps({"web": program}))

    # As supervisord starts it: the leader of a process group already.
    assert _output(["-m", "compose.launch", str(tmp_path), "web"], process_group=0) == "True"


def test_who_yields_lowers_the_session_it_leads_and_no_other() -> None:
    # The file is empty in a session as old as the machine: its programs are in no group.
    show = f"(open({str(AUTOGROUP)!r}).read().split() or [{NONE!r}])[-1]" if AUTOGROUP.exists() else repr(NONE)
    script = f"import os; from bankcore.niceness import yield_processors as y; y(); print(os.nice(0), {show})"

    leading = _output(["-c", script], start_new_session=True).split()
    follow = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {script!r}], check=True)"
    following = _output(["-c", follow]).split()

    niceness = str(min(os.nice(0) + NICENESS, 19))
    assert leading == [niceness, str(SESSION_NICENESS) if AUTOGROUP.exists() else NONE]
    assert following[0] == niceness
    assert following[1] != str(SESSION_NICENESS)
