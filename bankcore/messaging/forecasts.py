"""What replaying dead letters would come to today. Looks, and changes nothing."""

from collections.abc import Sequence
from typing import Any

from django.conf import settings

from bankcore.messaging import redrive, undelivered
from bankcore.messaging.errors import LetterResolved, NotReplayable
from bankcore.messaging.models import DeadLetter
from bankcore.messaging.rooms import NOTHING, Forecast, room_of


def foresee(letter_ids: Sequence[int]) -> list[Forecast]:
    """Say what replaying each letter would come to now, in the order given. Changes nothing; unknown ones are left out.

    What is parked is seen together, in the order in which the letters came: what one transfer takes from an account,
    the next one does not find there.
    """
    letters = list(DeadLetter.objects.filter(pk__in=list(letter_ids)).order_by("pk"))
    found: dict[int, Forecast] = {}
    parked: dict[Any, list[DeadLetter]] = {}
    for letter in letters:
        if letter.state != DeadLetter.State.OPEN:
            found[letter.pk] = Forecast(letter.pk, NOTHING, LetterResolved.code, f"It was {letter.state} already.")
        elif (room := room_of(letter)) is not None:
            parked.setdefault(type(room), []).append(letter)
        else:
            found[letter.pk] = _foresee_redrive(letter)
    for kind, waiting in parked.items():
        found |= kind().foresee(waiting)
        large = large_subjects(waiting)
        for letter in waiting:
            if letter.subject in large:
                said = found[letter.pk]
                found[letter.pk] = Forecast(said.letter, said.would, said.reason, said.detail, second_person=True)
    return [found[letter_id] for letter_id in dict.fromkeys(letter_ids) if letter_id in found]


def large_subjects(letters: Sequence[DeadLetter]) -> set[str]:
    """Those subjects of one room's letters whose money takes two people to decide on."""
    limit = settings.DESK_SECOND_PERSON_AMOUNT_MINOR
    rooms = (room_of(letter) for letter in letters)
    room = next((room for room in rooms if room is not None), None)
    amounts = room.amounts_minor([letter.subject for letter in letters]) if room is not None else {}
    return {subject for subject, amount in amounts.items() if amount > limit}


def work_behind(letter: DeadLetter) -> list[redrive.Owed]:
    """Find the events that asked for a message, or for work that waits in no room.

    Raises:
        NotReplayable: what it was cannot be read, or is not known here.
    """
    if letter.body is None:
        task: str = letter.task
        ids: tuple[str | int, ...] = (letter.subject,)
    else:
        reading = undelivered.read(letter.headers, bytes(letter.body))
        if reading.why_not:
            raise NotReplayable(f"It can never be read: {reading.why_not}")
        task, ids = reading.task, reading.ids
    owed = redrive.plan(task, ids)
    if not owed:
        raise NotReplayable("Nothing in the database asks for this work: none of its ids is known here.")
    return owed


def _foresee_redrive(letter: DeadLetter) -> Forecast:
    try:
        owed = work_behind(letter)
    except NotReplayable as refusal:
        return Forecast(letter.pk, NOTHING, refusal.code, refusal.detail)
    queues = ", ".join(sorted({event.queue for event in owed}))
    return Forecast(letter.pk, "be_sent_again", detail=f"{len(owed)} event(s) to {queues}, in new messages")
