"""Waiting, for a caller who asked to, until a transfer has come to rest. Waiters take few of a process's threads."""

import time
from threading import BoundedSemaphore
from uuid import UUID

from django.conf import settings

from bankcore.database import fetch_all
from transfers.states import END_STATES, WAITING_ROOMS

WAIT_SECONDS_MAX = 20
_POLL_SECONDS_FIRST, _POLL_SECONDS = 0.02, 0.04
_AT_REST = frozenset(str(status) for status in END_STATES | WAITING_ROOMS)
# A quarter of the process's threads may wait; the others stay free to accept transfers.
_seats = BoundedSemaphore(max(1, settings.WEB_THREADS // 4))


def wait_until_at_rest(transfer_id: UUID, *, seconds: float) -> bool:
    """Wait until the transfer has ended or needs a person. Returns False at once when too many wait already."""
    if not _seats.acquire(blocking=False):
        return False
    try:
        until, pause = time.monotonic() + min(seconds, WAIT_SECONDS_MAX), _POLL_SECONDS_FIRST
        while not _is_at_rest(transfer_id) and (left := until - time.monotonic()) > 0:
            time.sleep(min(pause, left))
            pause = _POLL_SECONDS
    finally:
        _seats.release()
    return True


def _is_at_rest(transfer_id: UUID) -> bool:
    ((status,),) = fetch_all("SELECT status FROM transfers_transfer WHERE id = %s", (transfer_id,))
    return status in _AT_REST
