"""Why the bank says no about an account. The codes are part of the API."""

from bankcore.errors import Refused


class AccountNotFound(Refused):
    """There is no such account, or the caller may not use it; the two look the same on purpose."""

    code = "account_not_found"
    title = "There is no such account"
    detail = "Nothing was changed. Check the id of the account, and that this token may use it."


class AccountFrozen(Refused):
    """The account is frozen: no money moves from or to it until staff unfreeze it."""

    code = "account_frozen"
    title = "The account is frozen"
    detail = "No money moves from or to it until the bank unfreezes it. Ask the bank; repeating changes nothing."


class AccountClosed(Refused):
    """The account is closed for good."""

    code = "account_closed"
    title = "The account is closed"
    detail = "It is closed for good. Use another account."


class CurrencyMismatch(Refused):
    """The transfer's currency is not the currency of both accounts."""

    code = "currency_mismatch"
    title = "The currency is not the account's"
    detail = "Order the transfer in the currency that both accounts are kept in."


class InsufficientFunds(Refused):
    """The account holds less than the transfer would take from it."""

    code = "insufficient_funds"
    title = "The account holds too little"
    detail = "It holds less than the transfer takes, with its limit counted in. Pay in, or order less."


class LimitExceeded(Refused):
    """The transfer is larger than a limit allows."""

    code = "limit_exceeded"
    title = "A limit is exceeded"
    detail = "The amount is larger than a limit allows. Order less, or ask the bank for a higher limit."
