"""Why the dead-letter desk says no. The codes are part of the API."""

from bankcore.errors import BankError


class LetterResolved(BankError):
    """The dead letter has been replayed or discarded already; what was decided stands."""

    code = "dead_letter_resolved"
    title = "The dead letter is already resolved"
    detail = "What was decided stands: the letter says what, when and by whom."
    http_status = 409


class NotReplayable(BankError):
    """Replaying would not do anything good; the detail says why. Discarding is possible."""

    code = "not_replayable"
    title = "The dead letter cannot be replayed"
    detail = "A replay would come to nothing. Discard the letter, or mend the cause first."
    http_status = 422


class RequestPending(BankError):
    """Somebody has asked already; a second person is to approve that, or withdraw it first."""

    code = "approval_pending"
    title = "A request about this dead letter waits for approval"
    detail = "Somebody has asked already. A second person approves that, or withdraws it first."
    http_status = 409


class NothingToApprove(BankError):
    """There is no such request about the dead letter: it was withdrawn, decided, or asks for something else."""

    code = "no_request"
    title = "There is no such request to approve"
    detail = "Nothing is asked for that this approves: it was withdrawn or decided. Look at the letter."
    http_status = 409


class SamePerson(BankError):
    """Whoever asked may not approve: the amount needs two people."""

    code = "same_person"
    title = "A second person has to approve"
    detail = "A second person has to approve: so much money takes two people, and whoever asked is one of them."
    http_status = 403


class PersonNeeded(BankError):
    """The amount needs two people, and the caller is not known to be one: its token names no staff user."""

    code = "person_needed"
    title = "Nobody signs for this call"
    detail = "So much money takes two people. Use a token of a staff user, or sign in as one."
    http_status = 403
