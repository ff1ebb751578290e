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
    """A request that cannot be served as it stands. `retryable` tells whether repeating it unchanged may succeed.

    `title` names the fact, the same each time; `detail` says what is so and what to do, here or where it is raised.
    """

    code = "error"
    title = "The request failed"
    detail = "Nothing was changed. See the description of the call."
    http_status = 400
    retryable = False

    def __init__(self, detail: str = "", *, errors: Sequence[FieldError] = (), retry_after: int | None = None) -> None:
        self.detail = detail or type(self).detail
        super().__init__(self.detail)
        self.errors = tuple(errors)
        self.retry_after = retry_after


class Invalid(BankError):
    """The request is malformed; `errors` names each place."""

    code = "validation_error"
    title = "The request is not valid"
    detail = "Nothing was changed. Mend each place that `errors` names, and send the request again."


class MalformedJson(BankError):
    """The body is not JSON as RFC 8259 has it, or uses a key twice, or nests too deep."""

    code = "malformed_json"
    title = "The body is not valid JSON"
    detail = "Nothing was changed. Send one JSON value in UTF-8, with every key once."


class PayloadTooLarge(BankError):
    """The body is larger than the limit for this call."""

    code = "payload_too_large"
    title = "The body is too large"
    detail = "Nothing was changed. Send less at once."
    http_status = 413


class NotFound(BankError):
    """There is no such thing, or it is not the caller's to see; the two look the same on purpose."""

    code = "not_found"
    title = "Not found"
    detail = "Nothing at this address is to be seen with this token. Check the address, and whose token it is."
    http_status = 404


class ScopeMissing(BankError):
    """The token is good but lacks the scope for this call."""

    code = "scope_missing"
    title = "The token lacks a scope"
    detail = "Use a token that has the scope for this call."
    http_status = 403


class Unavailable(BankError):
    """Something underneath is away for a moment; nothing was changed, try again."""

    code = "temporarily_unavailable"
    title = "Temporarily unavailable"
    detail = "Send the same request again, with the same key, after the seconds that Retry-After says."
    http_status = 503
    retryable = True


class Refused(BankError):
    """The bank's answer is no. `code` is recorded as the reason; repeating changes nothing."""

    http_status = 422
