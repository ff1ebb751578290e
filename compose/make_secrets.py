"""Makes up this installation's passwords once, and writes what each container needs into that container's own folder.

Used by compose.yaml only: `python -m compose.make_secrets /secrets`. Nothing is in the image, the repository or an
environment variable. With secrets of your own, mount files in the same places instead.
"""

import argparse
import base64
import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEFINITIONS = Path(__file__).resolve().parent / "rabbitmq" / "docker" / "definitions.json"
# Who has a user of their own at the broker, besides the one that sets it up.
BROKER_ROLES = ("relay", "risk", "posting", "notifications", "maintenance", "flower")
# Of releases in which every role signed in as one user.
FORMER_FILES = ("application/broker_url", "flower/broker_url")
NAMES = (
    *("postgres", "rabbitmq", "valkey", "django", "flower", "grafana"),
    *(f"rabbitmq_{role}" for role in BROKER_ROLES),
)


def make_secrets(folder: Path) -> None:
    """Write every secret file. Safe to repeat: passwords that exist are kept, and the files follow from them."""
    passwords = _passwords(folder / "generator" / "passwords.json")
    for path, content in _files(passwords).items():
        # Each folder is a volume that one service mounts; its user is another than ours, hence readable by all.
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
        target.chmod(0o444)
    for path in FORMER_FILES:
        (folder / path).unlink(missing_ok=True)


def _passwords(path: Path) -> dict[str, str]:
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    passwords = {name: known.get(name) or secrets.token_urlsafe(32) for name in NAMES}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps(passwords))
    return passwords


def _files(passwords: Mapping[str, str]) -> dict[str, str]:
    broker = "amqp://{user}:{password}@rabbitmq:5672/bankcore"
    brokers = {
        f"broker_{role}/broker_url": broker.format(user=role, password=passwords[f"rabbitmq_{role}"])
        for role in BROKER_ROLES
    }
    return {
        **brokers,
        "broker_setup/broker_url": broker.format(user="bankcore", password=passwords["rabbitmq"]),
        "application/database_url": f"postgres://bankcore:{passwords['postgres']}@postgres:5432/bankcore",
        "application/redis_url": f"redis://:{passwords['valkey']}@valkey:6379/0",
        "application/secret_key": passwords["django"],
        "postgres/password": passwords["postgres"],
        "rabbitmq/definitions.json": json.dumps(_definitions(passwords), indent=2),
        "valkey/password.conf": f"requirepass {passwords['valkey']}\n",
        "flower/broker_api": f"http://flower:{passwords['rabbitmq_flower']}@rabbitmq:15672/api/",
        "flower/basic_auth": f"staff:{passwords['flower']}",
        "grafana/password": passwords["grafana"],
    }


def _definitions(passwords: Mapping[str, str]) -> dict[str, Any]:
    """The broker's definitions with its users: their names and tags are in definitions.json, their passwords here."""
    definitions: dict[str, Any] = json.loads(DEFINITIONS.read_text())
    known = {"bankcore": passwords["rabbitmq"], **{role: passwords[f"rabbitmq_{role}"] for role in BROKER_ROLES}}
    for user in definitions["users"]:
        user["hashing_algorithm"] = "rabbit_password_hashing_sha256"
        user["password_hash"] = rabbitmq_hash(known[user["name"]])
    return definitions


def rabbitmq_hash(password: str, salt: bytes | None = None) -> str:
    """RabbitMQ's salted SHA-256: four bytes of salt, then the digest of salt and password, in Base64."""
    salt = salt or secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--show", action="store_true", help="print the sign-ins that people use, and write nothing")
    options = parser.parse_args()
    if options.show:
        known = json.loads((options.folder / "generator" / "passwords.json").read_text())
        print(f"Grafana  admin / {known['grafana']}\nFlower   staff / {known['flower']}")
    else:
        make_secrets(options.folder)


if __name__ == "__main__":
    main()
