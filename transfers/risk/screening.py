"""The risk stage: accepted transfers become approved, in review, or rejected. A doubtful one is held."""

from collections.abc import Mapping, Sequence
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from bankcore import metrics
from bankcore.messaging.blame import blame
from transfers import events
from transfers.models import Review
from transfers.risk import facts, provider
from transfers.risk.rules import Limits, Opinion, Outcome, assess
from transfers.states import Change, Claimed, Status, claim, in_turn

_SCREENED = (Status.ACCEPTED, Status.SCHEDULED)


def check_risk(transfer_ids: Sequence[UUID]) -> int:
    """Screen accepted transfers and announce each result; return how many were screened.

    Earlier ones of the same accounts whose messages the broker lost are screened with them, first.

    Safe to repeat: transfers that are no longer waiting for screening are left alone. Locks the transfers, but only
    after the provider outside (if there is one) has been asked: its slowness holds no lock.
    """
    screened = 0
    for lot in in_turn(transfer_ids, status=Status.ACCEPTED):
        with blame(lot, transfer_ids):
            verdicts = provider.ask(lot, _SCREENED) if provider.is_configured() else None
            screened += screen(lot, verdicts)
    return screened


@transaction.atomic
def screen(transfer_ids: Sequence[UUID], verdicts: Mapping[UUID, Opinion] | None) -> int:
    """Screen by our own rules and by what the provider said; None: there is no provider."""
    # A message proves nothing, least of all that a scheduled transfer's day has come.
    claimed = [c for c in claim(transfer_ids, status=_SCREENED) if not c.early]
    if not claimed:
        return 0
    limits = Limits(settings.RISK_REVIEW_AMOUNT_MINOR, settings.RISK_VELOCITY_COUNT)
    assessed = [
        _with_provider(assess(known, limits), c.id, verdicts)
        for c, known in zip(claimed, facts.load(claimed), strict=True)
    ]
    changes = [_change(c, outcome) for c, (outcome, _) in zip(claimed, assessed, strict=True)]

    notes = [reasons for _, reasons in assessed]
    events.move_and_tell(claimed, changes, notes)
    _open_reviews(changes, notes)
    transaction.on_commit(lambda: _measure(claimed, changes))
    return len(claimed)


def _with_provider(
    ours: tuple[Outcome, list[str]], transfer_id: UUID, verdicts: Mapping[UUID, Opinion] | None
) -> tuple[Outcome, list[str]]:
    """Let the stricter of both decide. A provider that has not said anything has not said yes."""
    if verdicts is None:
        return ours
    theirs = verdicts.get(transfer_id, provider.UNAVAILABLE)
    if theirs.outcome is Outcome.APPROVE:
        return ours
    return max(ours[0], theirs.outcome), [*ours[1], theirs.reason]


def _change(claimed: Claimed, outcome: Outcome) -> Change:
    if claimed.expired:
        return Change(claimed.id, Status.REJECTED, "expired")
    if outcome is Outcome.DENY:
        return Change(claimed.id, Status.REJECTED, "risk_denied")
    if outcome is Outcome.REVIEW:
        return Change(claimed.id, Status.IN_REVIEW)
    return Change(claimed.id, Status.APPROVED)


def _open_reviews(changes: Sequence[Change], reasons: Sequence[list[str]]) -> None:
    Review.objects.bulk_create(
        Review(transfer_id=change.id, reasons=why)
        for change, why in zip(changes, reasons, strict=True)
        if change.status is Status.IN_REVIEW
    )


def _measure(claimed: Sequence[Claimed], changes: Sequence[Change]) -> None:
    created = (transfer.created_at for transfer in claimed)
    metrics.stage_seconds.labels("risk").observe_since(created, timezone.now())
    metrics.batch_size.labels("risk").observe(len(claimed))
    metrics.count_transfers((str(change.status), change.reason) for change in changes)
