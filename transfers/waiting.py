"""Waiting, for a caller who asked to, until a transfer has ended. Who waits takes a seat and no thread."""

from uuid import UUID

from bankcore.database import fetch_all
from bankcore.seats import Patience, Room
from transfers.models import Transfer
from transfers.states import END_STATES

WAIT_SECONDS_MAX = 20
# In one process; one more is answered at once.
WAITERS_MAX = 500
_ENDED = "SELECT id FROM transfers_transfer WHERE id = ANY(%b::uuid[]) AND status = ANY(%b::text[])"


def is_over(transfer: Transfer, patience: Patience | None, *, seconds: int) -> bool:
    """Say whether the transfer has ended or was waited for; if not, take a seat where the front has patience.

    Whoever finds no seat is answered as if it had not asked to wait.
    """
    if transfer.status in END_STATES or (patience is not None and patience.is_over):
        return True
    if patience is not None:
        patience.seat = _room.take(transfer.id, seconds)
    return False


def _ended(transfer_ids: list[UUID]) -> list[UUID]:
    return [row[0] for row in fetch_all(_ENDED, (transfer_ids, [str(status) for status in END_STATES]))]


_room = Room(_ended, seats_max=WAITERS_MAX)
