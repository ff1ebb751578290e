"""What can go wrong with an order for a transfer, beyond its form and its accounts. The codes are part of the API."""

from bankcore.errors import BankError, Refused


class IdempotencyKeyMissing(BankError):
    """The call needs an Idempotency-Key, so that repeating it after a lost answer cannot move money twice."""

    code = "idempotency_key_missing"
    title = "The Idempotency-Key header is missing"


class IdempotencyKeyInvalid(BankError):
    """The key is not 1 to 255 visible ASCII characters."""

    code = "idempotency_key_invalid"
    title = "The Idempotency-Key header is not valid"


class IdempotencyKeyReused(BankError):
    """The key came before with another body; the first request stands."""

    code = "idempotency_key_reused"
    title = "The Idempotency-Key was used for another request"
    http_status = 422


class ExternalIdReused(BankError):
    """The client has given this external_id to another transfer."""

    code = "external_id_reused"
    title = "The external_id belongs to another transfer"
    http_status = 409


class AlreadyPosted(BankError):
    """The money has moved; only a reversal brings it back."""

    code = "already_posted"
    title = "The transfer is already posted"
    http_status = 409


class NotCancellable(BankError):
    """The transfer has ended without moving money."""

    code = "not_cancellable"
    title = "The transfer has already ended"
    http_status = 409


class BatchTooLarge(BankError):
    """The batch has more transfers than one request may bring."""

    code = "batch_too_large"
    title = "The batch has too many transfers"
    http_status = 413


class BatchRefused(Refused):
    """No transfer of the batch was accepted; `errors` says which rows stood in the way."""

    code = "batch_refused"
    title = "The batch was refused"


class ReviewAlreadyDecided(BankError):
    """Someone else has decided on this transfer; their decision stands."""

    code = "review_already_decided"
    title = "The review has already been decided"
    http_status = 409


class OwnTransfer(BankError):
    """The person who initiated a transfer may not decide on it."""

    code = "own_transfer"
    title = "Nobody decides on a transfer they initiated"
    http_status = 403


class NotInReview(BankError):
    """The transfer no longer waits for a decision: it was cancelled, for one."""

    code = "not_in_review"
    title = "The transfer is not in review"
    http_status = 409
