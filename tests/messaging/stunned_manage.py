"""`manage.py` whose relay is frozen at the very moment it gets the lock: for one test."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bankcore.settings")

from django.core.management import execute_from_command_line

from bankcore.messaging import relay

ask = relay._scalar


def ask_and_freeze(database: Any, sql: str, *parameters: object) -> object:
    answer = ask(database, sql, *parameters)
    if relay.ACTIVE_LOCK in parameters and answer:
        os.kill(os.getpid(), signal.SIGSTOP)
    return answer


relay._scalar = ask_and_freeze
execute_from_command_line(sys.argv)
