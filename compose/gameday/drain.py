"""Whether anything is still on its way, as the database and the broker say."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import psycopg

from compose.gameday.rig import Rig

LOOK_SECONDS = 0.5
_OWED = """
SELECT (SELECT count(*) FROM transfers_transfer WHERE status IN ('accepted', 'approved')),
       (SELECT count(*) FROM messaging_event WHERE published_at IS NULL),
       (SELECT count(*) FROM notifications_notification WHERE state = 'pending')
"""


def owed(rig: Rig) -> dict[str, int]:
    """How much has not come to its end: transfers, events, notifications, messages. Raises when nobody can say."""
    with psycopg.connect(rig.database_url, autocommit=True, connect_timeout=5) as database:
        row = database.execute(_OWED).fetchone() or (0, 0, 0)
    messages = sum(queue.get("messages", 0) for queue in rig.cluster.queues() if queue.get("type") == "quorum")
    return {"transfers": row[0], "events": row[1], "notifications": row[2], "messages": messages}


def await_drain(rig: Rig, seconds_max: float, say: Callable[[str], None]) -> tuple[float, dict[str, int]]:
    """Wait until nothing is owed, or the time is up; returns the seconds it took and what is left."""
    began, said_at = time.monotonic(), 0.0
    left: dict[str, int] = {"unknown": 1}
    while True:
        seconds = time.monotonic() - began
        try:
            left = owed(rig)
        except (psycopg.Error, httpx.HTTPError) as error:
            left = {"unknown": 1}
            say(f"cannot look: {error}")
        if not any(left.values()) or seconds > seconds_max:
            return seconds, {name: number for name, number in left.items() if number}
        if seconds - said_at > 10:
            said_at = seconds
            say(", ".join(f"{number:,} {name}" for name, number in left.items() if number) + " still on their way")
        time.sleep(LOOK_SECONDS)
