"""The states of a transfer and the only way from one to the next: guarded set-wise updates."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from django.db import models

from bankcore.database import execute, fetch_all
from bankcore.messaging.stretch import current_stretch


class Status(models.TextChoices):
    SCHEDULED = "scheduled"
    ACCEPTED = "accepted"
    IN_REVIEW = "in_review"
    APPROVED = "approved"
    POSTED = "posted"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    PARKED = "parked"


# Enforced here by guards and in the database by a trigger (migration 0002), which a test compares with this table.
TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.SCHEDULED: frozenset({Status.IN_REVIEW, Status.APPROVED, Status.REJECTED, Status.CANCELLED, Status.PARKED}),
    Status.ACCEPTED: frozenset({Status.IN_REVIEW, Status.APPROVED, Status.REJECTED, Status.CANCELLED, Status.PARKED}),
    Status.IN_REVIEW: frozenset({Status.APPROVED, Status.REJECTED, Status.CANCELLED}),
    Status.APPROVED: frozenset({Status.POSTED, Status.REJECTED, Status.CANCELLED, Status.PARKED}),
    Status.PARKED: frozenset({Status.ACCEPTED, Status.APPROVED, Status.REJECTED, Status.CANCELLED}),
    Status.POSTED: frozenset(),
    Status.REJECTED: frozenset(),
    Status.CANCELLED: frozenset(),
}
END_STATES = frozenset({Status.POSTED, Status.REJECTED, Status.CANCELLED})
OPEN_STATES = frozenset(Status) - END_STATES
WAITING_ROOMS = frozenset({Status.IN_REVIEW, Status.PARKED, Status.SCHEDULED})


class Claimed(NamedTuple):
    """What a stage needs to know of a transfer it has locked."""

    id: UUID
    status: str
    debit_account: UUID
    credit_account: UUID
    amount_minor: int
    currency: str
    created_at: Any
    updated_at: Any
    expired: bool
    request_id: str
    early: bool = False


class Change(NamedTuple):
    """One transfer's next status, and the reason where there is one."""

    id: UUID
    status: Status
    reason: str = ""


# How much of what was lost is taken at once, however much it is.
LOST_AT_ONCE_MAX = 1000
_LOST_BEFORE = "SELECT transfers_lost_before(%b::uuid[], %b, %b::int, %b::uuid)"
_NEWEST = "SELECT transfer_id FROM transfers_opentransfer ORDER BY transfer_id DESC LIMIT 1"
_LEFT = "SELECT EXISTS (SELECT FROM transfers_opentransfer WHERE transfer_id <= %b::uuid AND status = %b)"
_ANY = UUID(int=2**128 - 1)
_ASKED_FOR = """
SELECT subject, max(id) FROM messaging_event WHERE subject = ANY(%b::text[]) AND type = %b GROUP BY subject
"""


def in_turn(transfer_ids: Sequence[UUID], *, status: Status) -> Iterator[list[UUID]]:
    """Yield the transfers, and with or before them those that should have come earlier, in lots that are taken in turn.

    Those are transfers of the same debit accounts, accepted earlier and waiting in the same status. A queue keeps
    order, so the broker has lost their message. One that failed (attempt > 0) or is to be tried later stops nobody.
    One whose id is from a web host with a clock ahead of the others' may be missed here; then the sweep finds it.

    In a stretch of messages without a gap nothing gets lost. So what was open at its beginning is all that is looked
    at, and once none of that waits in this status, nothing is.
    """
    ids, lost = list(dict.fromkeys(transfer_ids)), list[UUID]()
    stretch = current_stretch()
    up_to = stretch.keep(_BeforeTheStretch).newest_waiting(status) if stretch else _ANY
    if up_to is None:
        yield ids
        return
    while True:
        earlier, lost = lost, [row[0] for row in fetch_all(_LOST_BEFORE, (ids, str(status), LOST_AT_ONCE_MAX, up_to))]
        if len(lost) < LOST_AT_ONCE_MAX or lost == earlier:
            break
        yield _in_order(lost, status)
    yield _in_order([*lost, *ids], status) if lost else ids


class _BeforeTheStretch:
    """Up to which id a transfer may be one that was accepted before a stretch of messages began.

    Whatever was lost before had been published, so it was committed and open when this is first asked for.
    """

    # Between two looks at whether any of them still waits; doubled each time, as some may be tried again for long.
    LOOK_SECONDS_MIN, LOOK_SECONDS_MAX = 1.0, 60.0

    def __init__(self) -> None:
        newest = [row[0] for row in fetch_all(_NEWEST)]
        self._newest: UUID | None = newest[0] if newest else None
        self._pause = self.LOOK_SECONDS_MIN
        self._look_at = time.monotonic() + self._pause

    def newest_waiting(self, status: Status) -> UUID | None:
        """Return that id; None once none of those transfers waits in this status any more."""
        if self._newest is not None and time.monotonic() >= self._look_at:
            ((left,),) = fetch_all(_LEFT, (self._newest, str(status)))
            self._pause = min(self._pause * 2, self.LOOK_SECONDS_MAX)
            self._look_at = time.monotonic() + self._pause
            if not left:
                self._newest = None
        return self._newest


def _in_order(transfer_ids: Sequence[UUID], status: Status) -> list[UUID]:
    """Sort by the events that ask for the work: the database numbers them, and ids go by the clocks of web's hosts."""
    event_of = dict(fetch_all(_ASKED_FOR, ([str(one) for one in transfer_ids], f"transfer.{status}")))
    return sorted(transfer_ids, key=lambda one: (event_of.get(str(one), 0), one))


_CLAIM = """
SELECT id, status, debit_account_id, credit_account_id, amount_minor, currency, created_at, updated_at,
       coalesce(expires_at < statement_timestamp(), false), request_id,
       status = 'scheduled' AND execute_on > (statement_timestamp() AT TIME ZONE 'UTC')::date
  FROM transfers_transfer
 WHERE id = ANY(%b::uuid[]) AND status = ANY(%b::text[])
 ORDER BY id
   FOR NO KEY UPDATE
"""


def claim(transfer_ids: Iterable[UUID], *, status: Sequence[Status]) -> list[Claimed]:
    """Lock the transfers that are in one of these states, in id order, and return them in the order asked for.

    A transfer in another state has been handled by an earlier delivery: it is left out, so that repeating does nothing.
    """
    order = list(dict.fromkeys(transfer_ids))
    rows = fetch_all(_CLAIM, (order, [str(s) for s in status]))
    found = {row[0]: Claimed._make(row) for row in rows}
    return [found[transfer_id] for transfer_id in order if transfer_id in found]


_MOVE = """
UPDATE transfers_transfer AS t
   SET status = c.status, status_reason = c.reason, updated_at = statement_timestamp(),
       posted_at = CASE WHEN c.status = 'posted' THEN statement_timestamp() END
  FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::text[]) AS c(id, was, status, reason)
 WHERE t.id = c.id AND t.status = c.was
"""


class MovedMeanwhile(Exception):
    """A transfer changed state between claim and move: the lock was not held. A bug, never a race to tolerate."""


def move(claimed: Sequence[Claimed], changes: Sequence[Change]) -> None:
    """Write the next status of claimed transfers (same order, same length), one statement for all of them.

    Raises:
        MovedMeanwhile: not every transfer was still in the status it was claimed in.
    """
    moved = execute(
        _MOVE,
        (
            [c.id for c in changes],
            [c.status for c in claimed],
            [str(c.status) for c in changes],
            [c.reason for c in changes],
        ),
    )
    if moved != len(claimed):
        raise MovedMeanwhile(f"{moved} of {len(claimed)} transfers were moved")
