"""The way out for parked transfers: on from the stage that parked them, or to their end. The desk decides which."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from bankcore import metrics
from bankcore.identifiers import parse_id
from bankcore.messaging import outbox
from bankcore.messaging.errors import NotReplayable
from bankcore.messaging.models import DeadLetter, Event
from bankcore.messaging.rooms import FAIL_AGAIN, NOTHING, Forecast
from transfers import events, foresight
from transfers.models import Transfer
from transfers.states import Change, Status, claim, move

# What a customer reads as the reason of a transfer that the bank gave up.
DISCARDED = "discarded_by_staff"
_WOULD = {Status.POSTED: "post", Status.REJECTED: "be_refused", Status.IN_REVIEW: "wait_for_review"}


class ParkedTransfers:
    """The waiting room of transfers (see bankcore/messaging/rooms.py)."""

    page = "transfers_transfer"

    def lock(self, subject: str) -> None:
        if (transfer_id := parse_id(subject)) is not None:
            claim([transfer_id], status=list(Status))

    def amounts_minor(self, subjects: Sequence[str]) -> dict[str, int]:
        # A subject may spell its id another way than the database does.
        ids = {subject: key for subject in subjects if (key := parse_id(subject))}
        amounts = dict(Transfer.objects.filter(pk__in=ids.values()).values_list("pk", "amount_minor"))
        return {subject: amounts[key] for subject, key in ids.items() if key in amounts}

    def foresee(self, letters: Sequence[DeadLetter]) -> dict[int, Forecast]:
        resumed: dict[UUID, Status] = {}
        found: dict[int, Forecast] = {}
        for letter in letters:
            try:
                resumed.setdefault(*_next_step(letter))
            except NotReplayable as refusal:
                found[letter.pk] = Forecast(letter.pk, NOTHING, refusal.code, refusal.detail)
        ends = foresight.foresee(resumed) if resumed else {}
        for letter in letters:
            if letter.pk not in found:
                found[letter.pk] = _forecast(letter, ends.get(UUID(letter.subject)))
        return found

    def resume(self, letter: DeadLetter, *, actor: str, delay_seconds: float) -> str:
        transfer_id, status = _next_step(letter)
        claimed = claim([transfer_id], status=[Status.PARKED])
        change = Change(transfer_id, status)
        move(claimed, [change])
        due_at = timezone.now() + timedelta(seconds=delay_seconds) if delay_seconds else None
        outbox.record([events.of_change(claimed[0], change, actor=actor, due_at=due_at)])
        return f"the transfer goes on as {status}"

    def give_up(self, letter: DeadLetter, *, actor: str) -> str:
        transfer_id = parse_id(letter.subject)
        claimed = claim([transfer_id], status=[Status.PARKED]) if transfer_id else []
        if not claimed:
            return "no transfer waited for this"
        change = Change(claimed[0].id, Status.REJECTED, DISCARDED)
        move(claimed, [change])
        outbox.record([events.of_change(claimed[0], change, actor=actor)])
        transaction.on_commit(lambda: metrics.count_transfers([(str(change.status), change.reason)]))
        return f"the transfer is rejected as {DISCARDED}"


def _next_step(letter: DeadLetter) -> tuple[UUID, Status]:
    """Where the transfer goes on. Only one that risk has approved, and that posting parked, goes on to posting.

    Raises:
        NotReplayable: there is no such transfer, it is not parked, or its day has not come.
    """
    transfer_id = parse_id(letter.subject)
    transfer = Transfer.objects.filter(pk=transfer_id).first() if transfer_id else None
    if transfer is None:
        raise NotReplayable("There is no such transfer.")
    if transfer.status != Status.PARKED:
        raise NotReplayable(f"The transfer is not parked but {transfer.status}: there is nothing to do again.")
    if transfer.execute_on and transfer.execute_on > datetime.now(UTC).date():
        raise NotReplayable(f"The transfer is for {transfer.execute_on}: replay it on that day, or discard it.")
    subject = str(transfer.pk)
    parked_by = DeadLetter.objects.filter(subject=subject, body=None).order_by("-pk").values_list("task", flat=True)
    was_approved = Event.objects.filter(subject=subject, type=events.APPROVED).exists()
    goes_to_posting = was_approved and parked_by.first() == "transfers.post_transfers"
    return transfer.pk, Status.APPROVED if goes_to_posting else Status.ACCEPTED


def _forecast(letter: DeadLetter, end: foresight.End | None) -> Forecast:
    if end is None:
        return Forecast(letter.pk, NOTHING, NotReplayable.code, "The transfer has left the waiting room meanwhile.")
    if end.error:
        return Forecast(letter.pk, FAIL_AGAIN, detail=end.error)
    return Forecast(letter.pk, _WOULD.get(Status(end.status), end.status), end.reason)
