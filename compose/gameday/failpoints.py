"""Points between two steps of the product at which a process dies when told to; no product code knows of them.

A point is armed by a file of its name in the folder FAILPOINTS. Whoever comes by first renames it, which only one
can, and kills itself there and then: so each arming kills once, and the new name says whom.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.apps import AppConfig

# Each point, and what is done and not done there.
POINTS = {
    "web-after-commit": "an order is written down, and not answered",
    "relay-before-publish": "events are read, and not published",
    "relay-after-publish": "the broker has confirmed the messages, and their events are not marked",
    "risk-before-commit": "transfers are screened, and not committed",
    "risk-after-commit": "transfers are approved, and the message is not acknowledged",
    "posting-before-commit": "money is moved, and not committed",
    "posting-after-commit": "transfers are posted, and the message is not acknowledged",
    "notifications-after-commit": "notifications are written, and the message is not acknowledged",
    "notifications-mail-sent": "an e-mail is out, and not written down as delivered",
    "notifications-webhook-sent": "webhooks are taken, and not written down as delivered",
}
STRUCK = ".struck-"


def is_armed(point: str) -> bool:
    return (_folder() / point).exists()


def reached(point: str) -> None:
    """Die if this point is armed."""
    try:
        (_folder() / point).rename(_folder() / f"{point}{STRUCK}{os.getpid()}")
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _folder() -> Path:
    return Path(os.environ["FAILPOINTS"])


class Failpoints(AppConfig):
    name = "compose.gameday"
    label = "failpoints"

    def ready(self) -> None:
        # Imported here: apps have to be ready first.
        from bankcore.messaging.publisher import Publisher
        from notifications import tasks, webhooks
        from notifications.channels import email
        from transfers import intake, posting
        from transfers.risk import screening

        _wrap(intake, "write", after="web-after-commit")
        _wrap(Publisher, "publish", before="relay-before-publish", after="relay-after-publish")
        _wrap(screening, "screen", inside="risk-before-commit", after="risk-after-commit")
        _wrap(posting, "_post", inside="posting-before-commit", after="posting-after-commit")
        _wrap(tasks, "dispatch", after="notifications-after-commit")
        _wrap(email, "send", after="notifications-mail-sent")
        _wrap(webhooks, "_settle", before="notifications-webhook-sent")


def _wrap(owner: Any, name: str, *, before: str = "", inside: str = "", after: str = "") -> None:
    lawful: Callable[..., Any] = getattr(owner, name)

    def step(*arguments: Any, **more: Any) -> Any:
        if before:
            reached(before)
        # As it is, unless it is to die: one more transaction around it is none of the product's.
        is_to_die = inside and is_armed(inside)
        done = _in_transaction(lawful, inside, arguments, more) if is_to_die else lawful(*arguments, **more)
        if after:
            reached(after)
        return done

    setattr(owner, name, step)


def _in_transaction(lawful: Callable[..., Any], point: str, arguments: Any, more: Any) -> Any:
    from django.db import transaction

    with transaction.atomic():
        done = lawful(*arguments, **more)
        # Something must have been done that is lost; an empty visit would prove nothing.
        if done:
            reached(point)
    return done
