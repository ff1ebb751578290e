"""The dead-letter desk: each letter is replayed or discarded once, by two people where there is much money.

Every verb is one transaction: the work's row is locked first, then the letter, then a request about it; the change and
its audit entry become true together.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import transaction
from django.db.models.functions import Now

from bankcore import metrics
from bankcore.errors import BankError, NotFound
from bankcore.messaging import audit, dead_letters, redrive
from bankcore.messaging.errors import (
    LetterResolved,
    NothingToApprove,
    NotReplayable,
    PersonNeeded,
    RequestPending,
    SamePerson,
)
from bankcore.messaging.forecasts import foresee, large_subjects, work_behind
from bankcore.messaging.models import DeadLetter, DeskRequest
from bankcore.messaging.rooms import NOTHING, room_of

REPLAY, DISCARD = DeskRequest.Action.REPLAY, DeskRequest.Action.DISCARD
# One call takes so many letters at most: each is a transaction of its own.
LETTERS_MAX = 500


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts. `user_id` is the person; a program that nobody signs for has none and cannot be one of two people."""

    name: str
    user_id: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a letter: `replayed`, `discarded`, `awaiting_approval`, or `refused` with the error's code."""

    letter: int
    outcome: str
    code: str = ""
    detail: str = ""
    request: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@transaction.atomic
def replay(letter_id: int, *, actor: Actor, delay_seconds: float = 0.0) -> Outcome:
    """Let the work behind a letter go on, at once or after a delay; where two people are needed, ask for the second.

    Parked work goes on where it stopped, as the same transfer. A message is not sent again as it was: the events that
    asked for its work become due again. Of two at once, the second one hears LetterResolved.

    Raises:
        NotFound, LetterResolved, NotReplayable; RequestPending, PersonNeeded: where two people are needed.
    """
    letter = _locked(letter_id)
    if needs_second_person(letter):
        # Nobody is bothered with what is refused anyway.
        _refuse_hopeless(letter)
        return _ask(letter, REPLAY, "", actor)
    return _replay(letter, actor, delay_seconds)


@transaction.atomic
def discard(letter_id: int, *, reason: str, actor: Actor) -> Outcome:
    """Give the work behind a letter up; the letter stays. Where two people are needed, ask for the second.

    Raises:
        NotFound, LetterResolved; RequestPending, PersonNeeded: where two people are needed.
    """
    letter = _locked(letter_id)
    if needs_second_person(letter):
        return _ask(letter, DISCARD, reason, actor)
    return _discard(letter, reason, actor)


@transaction.atomic
def approve(letter_id: int, *, action: str, actor: Actor) -> Outcome:
    """Agree, as the second person, to what somebody asked to do with a letter, and do it.

    `action` says what is agreed to, so that nobody approves something else than they saw.

    Raises:
        NotFound, LetterResolved, NothingToApprove, PersonNeeded, SamePerson, NotReplayable.
    """
    letter = _locked(letter_id)
    request = DeskRequest.objects.select_for_update().filter(letter=letter, decision="", action=action).first()
    if request is None:
        raise NothingToApprove
    if actor.user_id is None:
        raise PersonNeeded
    if actor.user_id == request.requested_by_id:
        raise SamePerson
    _decide(request, DeskRequest.Decision.APPROVED, actor)
    asked_by = request.requested_by.get_username()
    audit.record(actor=actor.name, action=f"dead_letter.approve_{action}", subject=letter.pk,
                 details={"asked_by": asked_by, "about": letter.subject})  # fmt: skip
    if action == REPLAY:
        return _replay(letter, actor, 0.0, asked_by)
    return _discard(letter, request.reason, actor, asked_by)


@transaction.atomic
def withdraw(letter_id: int, *, actor: Actor) -> None:
    """Take back, or turn down, what was asked about a letter.

    Raises:
        NotFound, LetterResolved, NothingToApprove.
    """
    letter = _locked(letter_id)
    request = DeskRequest.objects.select_for_update().filter(letter=letter, decision="").first()
    if request is None:
        raise NothingToApprove
    _decide(request, DeskRequest.Decision.WITHDRAWN, actor)
    audit.record(actor=actor.name, action=f"dead_letter.withdraw_{request.action}", subject=letter.pk)


def replay_each(letters: Iterable[int], *, actor: Actor, rate: float | None = None) -> list[Outcome]:
    """Replay letters in the order given, each in a transaction of its own: one that is refused holds up no other.

    With a `rate` (letters a second) the work is spread in time: each becomes due a little later than the one before.
    """
    outcomes: list[Outcome] = []
    going_on = 0
    for letter_id in letters:
        delay = going_on / rate if rate else 0.0
        outcome = attempt(lambda letter_id=letter_id, delay=delay: replay(letter_id, actor=actor, delay_seconds=delay),
                          letter_id)  # fmt: skip
        going_on += outcome.outcome == "replayed"
        outcomes.append(outcome)
    return outcomes


def attempt(verb: Any, letter_id: int) -> Outcome:
    """Call a verb; its refusal becomes an outcome like the others."""
    try:
        return verb()
    except BankError as refusal:
        return Outcome(letter_id, "refused", refusal.code, refusal.detail)


def needs_second_person(letter: DeadLetter) -> bool:
    """Tell whether one person is too few for the money behind this letter."""
    return letter.subject in large_subjects([letter])


def pending_request(letter: DeadLetter) -> DeskRequest | None:
    return DeskRequest.objects.select_related("requested_by").filter(letter=letter, decision="").first()


def actor_of(user: Any) -> Actor:
    return Actor(user.get_username(), user.pk)


def actor_of_client(name: str, staff_user_id: int | None) -> Actor:
    """The person whom a token names, or else the program itself."""
    user = get_user_model().objects.filter(pk=staff_user_id, is_active=True).first() if staff_user_id else None
    return actor_of(user) if user else Actor(f"client:{name}")


# -- one letter --------------------------------------------------------------------------------------------------------


def _locked(letter_id: int) -> DeadLetter:
    """Lock the work, then its letter.

    Raises:
        NotFound: no such letter.
        LetterResolved: it was resolved, perhaps while this waited for the lock.
    """
    letter = DeadLetter.objects.filter(pk=letter_id).first()
    if letter is None:
        raise NotFound(f"There is no dead letter {letter_id}.")
    if (room := room_of(letter)) is not None:
        room.lock(letter.subject)
    letter = DeadLetter.objects.select_for_update(no_key=True).get(pk=letter_id)
    if letter.state != DeadLetter.State.OPEN:
        raise LetterResolved(f"It was {letter.state} already: {letter.resolution or 'without a word'}")
    return letter


def _replay(letter: DeadLetter, actor: Actor, delay_seconds: float, asked_by: str = "") -> Outcome:
    room = room_of(letter)
    if room is not None:
        said = room.resume(letter, actor=actor.name, delay_seconds=delay_seconds)
    else:
        owed = work_behind(letter)
        redrive.make_due([event.event_id for event in owed], delay_seconds)
        said = f"{len(owed)} event(s) due again"
    _resolve(letter, DeadLetter.State.REPLAYED, said, actor, about=room is not None)
    details = {"about": letter.subject, "came_to": said, **({"asked_by": asked_by} if asked_by else {})}
    audit.record(actor=actor.name, action="dead_letter.replay", subject=letter.pk, details=details)
    transaction.on_commit(lambda: metrics.retries.labels("desk", "replay").inc())
    return Outcome(letter.pk, "replayed", detail=said)


def _discard(letter: DeadLetter, reason: str, actor: Actor, asked_by: str = "") -> Outcome:
    room = room_of(letter)
    said = room.give_up(letter, actor=actor.name) if room is not None else "nothing is sent"
    _resolve(letter, DeadLetter.State.DISCARDED, reason, actor, about=room is not None)
    details = {"about": letter.subject, "came_to": said, **({"asked_by": asked_by} if asked_by else {})}
    audit.record(actor=actor.name, action="dead_letter.discard", subject=letter.pk, reason=reason, details=details)
    return Outcome(letter.pk, "discarded", detail=said)


def _resolve(letter: DeadLetter, state: str, words: str, actor: Actor, *, about: bool) -> None:
    letters = DeadLetter.objects.filter(pk=letter.pk)
    if about:
        # Work that was parked more than once has one decision.
        rooms = settings.WAITING_ROOMS
        tasks = [task for task, name in rooms.items() if name == rooms[letter.task]]
        letters = DeadLetter.objects.filter(subject=letter.subject, body=None, task__in=tasks)
    resolution = f"{actor.name}: {words}"
    if not dead_letters.close(letters, state=state, resolution=resolution, user_id=actor.user_id):
        raise LetterResolved


def _ask(letter: DeadLetter, action: str, reason: str, actor: Actor) -> Outcome:
    if actor.user_id is None:
        raise PersonNeeded
    if (pending := pending_request(letter)) is not None:
        raise RequestPending(f"{pending.requested_by} asked to {pending.action} it; somebody else has to approve that.")
    request = DeskRequest.objects.create(letter=letter, action=action, reason=reason, requested_by_id=actor.user_id)
    audit.record(actor=actor.name, action=f"dead_letter.request_{action}", subject=letter.pk, reason=reason,
                 details={"about": letter.subject})  # fmt: skip
    return Outcome(letter.pk, "awaiting_approval", detail="A second person has to approve.", request=request.pk)


def _decide(request: DeskRequest, decision: str, actor: Actor) -> None:
    request.decision, request.decided_by_id = decision, actor.user_id
    request.decided_at = Now()
    request.save(update_fields=["decision", "decided_by", "decided_at"])


def _refuse_hopeless(letter: DeadLetter) -> None:
    for forecast in foresee([letter.pk]):
        if forecast.would == NOTHING:
            raise NotReplayable(forecast.detail)
