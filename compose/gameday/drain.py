"""Whether anything is still on its way, as the database and the broker say."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import psycopg

from compose.gameday.rig import Rig

LOOK_SECONDS = 0.5
TOTAL_SECONDS_MAX = 3_600.0
_OWED = """
SELECT (SELECT count(*) FROM transfers_transfer WHERE status IN ('accepted', 'approved')),
       (SELECT count(*) FROM messaging_owed),
       (SELECT count(*) FROM notifications_notification WHERE state = 'pending'),
       (SELECT count(*) FROM notifications_webhookdelivery WHERE state = 'pending')
"""


def owed(rig: Rig) -> dict[str, int]:
    """How much has not come to its end, by what it is. Raises when nobody can say."""
    with psycopg.connect(rig.database_url, autocommit=True, connect_timeout=5) as database:
        row = database.execute(_OWED).fetchone() or (0, 0, 0, 0)
    messages = sum(queue.get("messages", 0) for queue in rig.cluster.queues() if queue.get("type") == "quorum")
    names = ("transfers", "events", "notifications", "webhooks")
    return {**dict(zip(names, row, strict=True)), "messages": messages}


def await_drain(rig: Rig, seconds_max: float, say: Callable[[str], None]) -> tuple[float, dict[str, int]]:
    """Wait until nothing is owed; returns the seconds it took and what is left.

    Gives up when nothing has become less for `seconds_max`: a slow machine may take its time, a stuck bank may not.
    """
    began, said_at = time.monotonic(), 0.0
    left: dict[str, int] = {"unknown": 1}
    fewest: dict[str, int] = {}
    progress_at = began
    while True:
        now = time.monotonic()
        try:
            left = owed(rig)
            if any(number < fewest.get(name, number + 1) for name, number in left.items()):
                progress_at = now
            fewest = {name: min(number, fewest.get(name, number)) for name, number in left.items()}
        except (psycopg.Error, httpx.HTTPError) as error:
            left = {"unknown": 1}
            say(f"cannot look: {error}")
        if not any(left.values()) or now - progress_at > seconds_max or now - began > TOTAL_SECONDS_MAX:
            return now - began, {name: number for name, number in left.items() if number}
        if now - began - said_at > 10:
            said_at = now - began
            say(", ".join(f"{number:,} {name}" for name, number in left.items() if number) + " still on their way")
        time.sleep(LOOK_SECONDS)
