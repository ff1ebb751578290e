"""Where parked work waits. A floor above this one names a room for its tasks in settings.WAITING_ROOMS.

Work without a room (a notification) waits in its own row, and all it needs is its event, due again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from django.conf import settings
from django.utils.module_loading import import_string

from bankcore.messaging.models import DeadLetter

NOTHING = "nothing"
FAIL_AGAIN = "fail_again"


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a replay would come to if it happened now.

    `would`: `post`, `wait_for_review`, `be_refused` (see `reason`), `fail_again`, `be_sent_again`, or `nothing`,
    when the replay itself is refused.
    """

    letter: int
    would: str
    reason: str = ""
    detail: str = ""
    second_person: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class WaitingRoom(Protocol):
    """What its own floor knows of parked work. Every method but `foresee` belongs into the caller's transaction."""

    # The admin's page of the work: `app_model`, as in the names of its addresses.
    page: str

    def lock(self, subject: str) -> None:
        """Lock the work, whatever state it is in, before its letters are locked."""

    def amounts_minor(self, subjects: Sequence[str]) -> dict[str, int]:
        """Tell how much money each concerns; what is unknown is left out."""

    def foresee(self, letters: Sequence[DeadLetter]) -> Mapping[int, Forecast]:
        """Say what would become of each, by the letter's number. Changes nothing."""

    def resume(self, letter: DeadLetter, *, actor: str, delay_seconds: float) -> str:
        """Let the work go on from the stage that parked it, and say so in a few words.

        Raises:
            NotReplayable: it is not parked, or must not go on.
        """

    def give_up(self, letter: DeadLetter, *, actor: str) -> str:
        """End the work for good, if it is still parked, and say so in a few words."""


def room_of(letter: DeadLetter) -> WaitingRoom | None:
    """The room for parked work of this letter's task; a message was never parked."""
    name = settings.WAITING_ROOMS.get(letter.task) if letter.body is None else None
    return import_string(name)() if name else None


def page_of(letter: DeadLetter) -> str:
    """The admin's page of what the letter is about, or nothing."""
    name = settings.WAITING_ROOMS.get(letter.task) if letter.subject else None
    return import_string(name).page if name else ""
