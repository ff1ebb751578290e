"""What can go wrong with an order for a transfer, beyond its form and its accounts. The codes are part of the API."""

from bankcore.errors import BankError, Refused


class IdempotencyKeyMissing(BankError):
    """The call needs an Idempotency-Key, so that repeating it after a lost answer cannot move money twice."""

    code = "idempotency_key_missing"
    title = "The Idempotency-Key header is missing"
    detail = "Nothing was changed. Send a key of your own: a new one for each order, the same one when you repeat it."


class IdempotencyKeyInvalid(BankError):
    """The key is not 1 to 255 visible ASCII characters."""

    code = "idempotency_key_invalid"
    title = "The Idempotency-Key header is not valid"
    detail = "Nothing was changed. Give 1 to 255 visible ASCII characters."


class IdempotencyKeyReused(BankError):
    """The key came before with another body; the first request stands."""

    code = "idempotency_key_reused"
    title = "The Idempotency-Key was used for another request"
    detail = "What was asked for first under this key stands. Send this request with a new key."
    http_status = 422


class ExternalIdReused(BankError):
    """The client has given this external_id to another transfer."""

    code = "external_id_reused"
    title = "The external_id belongs to another transfer"
    detail = (
        "Nothing was changed. Look for the earlier one with `GET transfers?external_id=`, or give another external_id."
    )
    http_status = 409


class AlreadyPosted(BankError):
    """The money has moved, and cancelling comes too late."""

    code = "already_posted"
    title = "The transfer is already posted"
    detail = "The money has moved, and stays where it is. It comes back if the payee transfers it back."
    http_status = 409


class NotCancellable(BankError):
    """The transfer has ended without moving money."""

    code = "not_cancellable"
    title = "The transfer has already ended"
    detail = "It has ended without moving money: there is nothing to cancel. Its status says how."
    http_status = 409


class BatchTooLarge(BankError):
    """The batch has more transfers than one request may bring."""

    code = "batch_too_large"
    title = "The batch has too many transfers"
    detail = "Nothing was changed. Send the transfers in several batches."
    http_status = 413


class BatchRefused(Refused):
    """No transfer of the batch was accepted; `errors` says which rows stood in the way."""

    code = "batch_refused"
    title = "The batch was refused"
    detail = (
        "None of its transfers was accepted. Mend or leave out the rows that `errors` names, and send it with "
        "a new key."
    )


class ReviewAlreadyDecided(BankError):
    """Someone else has decided on this transfer; their decision stands."""

    code = "review_already_decided"
    title = "The review has already been decided"
    detail = "Somebody else has decided on it, and that stands: see the transfer."
    http_status = 409


class OwnTransfer(BankError):
    """The person who initiated a transfer may not decide on it."""

    code = "own_transfer"
    title = "Nobody decides on a transfer they initiated"
    detail = "Nobody decides on a transfer they initiated: let somebody else do it."
    http_status = 403


class NotInReview(BankError):
    """The transfer no longer waits for a decision: it was cancelled, for one."""

    code = "not_in_review"
    title = "The transfer is not in review"
    detail = "It no longer waits for a decision: its status says what became of it."
    http_status = 409
