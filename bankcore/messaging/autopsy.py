"""Say what a dead message died of. The broker knows only that it was rejected, or delivered too often.

The worker that refused it passes nothing on, so that nothing can be lost on the way: the same checks are made once more
at the desk, on the same bytes, in the order that tells a person most.
"""

import json
from collections.abc import Mapping
from typing import Any

from celery import current_app
from django.conf import settings

from bankcore.messaging import envelope
from bankcore.messaging.envelope import Refused
from bankcore.messaging.unpacking import UNREADABLE_HEADER, Unpackable, unpack

KILLED = "killed its worker"


def cause(headers: Mapping[str, Any], *, content_type: Any, body: bytes) -> str:
    """Say in a few words why a message with these headers (x-death among them) and bytes could not be handled."""
    death = _death(headers)
    reason = str(death.get("reason", headers.get("x-first-death-reason", "unknown")))
    if reason == "delivery_limit":
        return KILLED
    try:
        _check(headers, _queue(death), content_type, body)
    except (Refused, Unpackable) as why:
        return why.kind
    except (ValueError, RecursionError):
        return "no JSON"
    return reason


def _check(headers: Mapping[str, Any], queue: str, content_type: Any, body: bytes) -> None:
    if UNREADABLE_HEADER in headers:
        raise Refused("unreadable headers")
    plain = unpack(headers.get("compression"), body)
    if content_type != "application/json":
        raise Refused("wrong content type", f"Its content type is {str(content_type)[:80]!r}, not JSON.")
    call = json.loads(plain.decode("utf-8"))
    name = headers.get("task")
    if not isinstance(name, str) or not name:
        raise Refused("no task named", "Its headers name no task.")
    if not isinstance(headers.get("id"), str):
        raise Refused("no id", "Its headers have no id.")
    if name not in current_app.tasks or envelope.is_celerys(name):
        raise Refused("unknown task", f"There is no task {name[:128]!r}.")
    envelope.check_call(call)
    envelope.check(headers, queue=queue, body=body)
    arguments, keywords = call[0], call[1]
    takes_ids = name in {route.task for route in settings.TOPOLOGY_ROUTES.values()}
    if takes_ids and (keywords or len(arguments) != 1 or not envelope.is_id_list(arguments[0])):
        raise Refused("wrong arguments", f"{name} takes one list of ids.")


def _death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    deaths = headers.get("x-death")
    return deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}


def _queue(death: Mapping[str, Any]) -> str:
    keys = death.get("routing-keys")
    return str(keys[0] if isinstance(keys, list) and keys else death.get("queue", ""))
