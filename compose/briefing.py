"""What a stack's processes are told (their environment), and what the people using it are (addresses, credentials)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compose.instance import REPOSITORY, Instance, StackError, read_json, write_json, write_private
from compose.roles import FLOWER_USER, Roles
from compose.servers import Servers

STAFF = ("admin", "operations")


def environment_of(
    instance: Instance, servers: Servers, known: Mapping[str, str], more: Mapping[str, str]
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
    # django-environ cuts off one slash of the path, and takes a space as it is.
    return "filemail:///" + urllib.parse.quote(str(folder), safe="/ ")


def write_env_file(instance: Instance, variables: Mapping[str, str]) -> None:
    lines = (f"{name}='{value}'\n" for name, value in variables.items() if "'" not in value and "\n" not in value)
    write_private(instance.env_file, "".join(lines))


def describe(instance: Instance, servers: Servers, planned: Roles, variables: Mapping[str, str]) -> dict[str, Any]:
    return {
        "api": planned.web_url,
        "apis": planned.web_urls,
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
        "mail": str(instance.folder / "mail"),
        "environment": dict(variables),
    }


def take_first_steps(
    instance: Instance, servers: Servers, known: Mapping[str, str], variables: Mapping[str, str]
) -> None:
    """Make tables, queues, two staff users (a review needs four eyes) and a token, and note what only the owner reads.

    Raises: StackError with what the application said.
    """
    earlier = read_json(instance.credentials_file).get("token", "")
    answer = subprocess.run(
        [sys.executable, "-m", "compose.first_steps"],
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        input=json.dumps({"staff": {name: known[name] for name in STAFF}, "token": earlier}),
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        raise StackError(f"The application could not be set up:\n{(answer.stdout + answer.stderr).strip()[-4000:]}")
    made = json.loads(answer.stdout.splitlines()[-1])
    write_json(
        instance.credentials_file,
        {
            "admin": {"username": "admin", "password": made["staff"]["admin"]},
            "second_admin": {"username": "operations", "password": made["staff"]["operations"]},
            "flower": {"username": FLOWER_USER, "password": known["flower"]},
            "token": made["token"],
            "broker": {"api": servers.broker_api_url, "username": "operator", "password": known["broker_operator"]},
        },
    )
