"""Real worker processes against the test's own database."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.db import connection


@contextmanager
def running(folder: Path, **environment: str) -> Iterator[Callable[..., "subprocess.Popen[Any]"]]:
    """Yield `start(*arguments of manage.py)`; what was started is stopped at the end, and logs to `folder`."""
    database_url = urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{connection.settings_dict['NAME']}").geturl()
    processes: list[subprocess.Popen[Any]] = []

    def start(*arguments: str) -> "subprocess.Popen[Any]":
        with (folder / f"{'-'.join(arguments)}.log").open("wb") as output:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "manage.py", *arguments],
                    cwd=settings.BASE_DIR,
                    env={**os.environ, "DATABASE_URL": database_url, **environment},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
        return processes[-1]

    try:
        yield start
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
