"""What can go wrong for a caller: each error names a fact, has a stable code, and knows its HTTP status."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing wrong with one place in a request, such as `transfers.3.amount_minor`."""

    field: str
    code: str
    message: str


class BankError(Exception):
    """A request that cannot be served as it stands. `retryable` tells whether repeating it unchanged may succeed."""

    code = "error"
    title = "The request failed"
    http_status = 400
    retryable = False

    def __init__(self, detail: str = "", *, errors: Sequence[FieldError] = (), retry_after: int | None = None) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.errors = tuple(errors)
        self.retry_after = retry_after


class Invalid(BankError):
    """The request is malformed; `errors` names each place."""

    code = "validation_error"
    title = "The request is not valid"


class MalformedJson(BankError):
    """The body is not JSON as RFC 8259 has it, or uses a key twice, or nests too deep."""

    code = "malformed_json"
    title = "The body is not valid JSON"


class PayloadTooLarge(BankError):
    """The body is larger than the limit for this call."""

    code = "payload_too_large"
    title = "The body is too large"
    http_status = 413


class NotFound(BankError):
    """There is no such thing, or it is not the caller's to see; the two look the same on purpose."""

    code = "not_found"
    title = "Not found"
    http_status = 404


class ScopeMissing(BankError):
    """The token is good but lacks the scope for this call."""

    code = "scope_missing"
    title = "The token lacks a scope"
    http_status = 403


class Unavailable(BankError):
    """Something underneath is away for a moment; nothing was changed, try again."""

    code = "temporarily_unavailable"
    title = "Temporarily unavailable"
    http_status = 503
    retryable = True


class Refused(BankError):
    """The bank's answer is no. `code` is recorded as the reason; repeating changes nothing."""

    http_status = 422
