"""What a client orders, and whether its accounts allow it: the same for one transfer and for a row of a batch."""

import json
from collections.abc import Collection, Mapping
from datetime import UTC, date, datetime
from hashlib import sha256
from typing import Annotated, Any, NamedTuple
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

from accounts.access import Client
from accounts.errors import AccountClosed, AccountFrozen, AccountNotFound, CurrencyMismatch
from accounts.models import Account
from bankcore.database import fetch_all
from bankcore.errors import BankError, FieldError, Invalid, MalformedJson
from bankcore.identifiers import is_id
from bankcore.money import AMOUNT_MINOR_MAX
from bankcore.wire import Currency, Day, Moment, OneLine, one_line

METADATA_KEYS_MAX, METADATA_KEY_LENGTH_MAX, METADATA_TEXT_LENGTH_MAX = 20, 40, 500


def _metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    if len(metadata) > METADATA_KEYS_MAX:
        raise PydanticCustomError("too_many_keys", f"At most {METADATA_KEYS_MAX} keys.")
    for key, value in metadata.items():
        if not 1 <= len(key) <= METADATA_KEY_LENGTH_MAX:
            raise PydanticCustomError("invalid_key", f"A key has 1 to {METADATA_KEY_LENGTH_MAX} characters.")
        if isinstance(value, str):
            if len(value) > METADATA_TEXT_LENGTH_MAX:
                raise PydanticCustomError("text_too_long", f"A text has at most {METADATA_TEXT_LENGTH_MAX} characters.")
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise PydanticCustomError("integer_too_large", "An integer fits 64 bits.")
        elif value is not None:
            raise PydanticCustomError("invalid_value", "A value is text, an integer, true, false or null.")
    # One order of keys, so that equal metadata reads equal wherever it is shown.
    return dict(sorted(metadata.items()))


Metadata = Annotated[
    dict[str, Any],
    AfterValidator(_metadata),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": METADATA_KEYS_MAX,
            "additionalProperties": {
                "anyOf": [
                    {"type": "string", "maxLength": METADATA_TEXT_LENGTH_MAX},
                    {"type": "integer", "format": "int64"},
                    {"type": "boolean"},
                    {"type": "null"},
                ]
            },
        }
    ),
]


class TransferOrder(BaseModel):
    """A transfer to make: an amount in minor units from one account to another of the same currency."""

    model_config = ConfigDict(strict=True, extra="forbid")

    debit_account: str
    credit_account: str
    amount_minor: Annotated[int, Field(ge=1, le=AMOUNT_MINOR_MAX, json_schema_extra={"example": 1250})]
    currency: Currency
    reference: OneLine = ""
    external_id: Annotated[str, Field(min_length=1, max_length=140), AfterValidator(one_line)] | None = None
    metadata: Metadata = Field(default_factory=dict)
    execute_on: Day | None = None
    expires_at: Moment | None = None

    @field_validator("credit_account")
    @classmethod
    def _two_accounts(cls, credit_account: str, info: ValidationInfo) -> str:
        if credit_account == info.data.get("debit_account"):
            raise PydanticCustomError("same_account", "The two accounts are the same.")
        return credit_account

    def fingerprint(self) -> bytes:
        """Digest what was asked for: equal for equal orders, however their JSON is written."""
        return fingerprint(self.model_dump(exclude_defaults=True))


class BatchOrder(BaseModel):
    """Transfers to make: all or none of them (`atomic`), or those that can be taken."""

    model_config = ConfigDict(strict=True, extra="forbid")

    atomic: bool = True
    # Each row is validated on its own, so that a bad one does not hide the others.
    transfers: Annotated[list[Any], Field(min_length=1)]


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str).encode


def fingerprint(content: Any) -> bytes:
    try:
        canonical = _canonical(content)
    except RecursionError as error:
        raise MalformedJson("The body nests too deep.") from error
    return sha256(canonical.encode()).digest()


class AccountFacts(NamedTuple):
    """What intake needs to know of an account."""

    id: str
    customer_id: UUID | None
    status: str
    currency: str


# Ids stay text on the way: a batch names thousands, and reading one into a UUID costs more than all else here.
_ACCOUNTS = "SELECT id::text, customer_id, status, currency FROM accounts_account WHERE id = ANY(%b::text[]::uuid[])"
Accounts = Mapping[str, AccountFacts]


def read_accounts(account_ids: Collection[str]) -> Accounts:
    """Read the accounts with one statement and no lock; ids that name none are left out."""
    known = [account_id for account_id in account_ids if is_id(account_id)]
    return {row[0]: AccountFacts._make(row) for row in fetch_all(_ACCOUNTS, (known,))}


_SIDES = ("debit_account", "credit_account")
_NOT_OPEN: Mapping[str, type[BankError]] = {
    Account.Status.FROZEN: AccountFrozen,
    Account.Status.CLOSED: AccountClosed,
}


def refusal(order: TransferOrder, accounts: Accounts, client: Client) -> BankError | None:
    """Say why the order cannot be taken now, if so. The credit account may be anyone's."""
    debit, credit = accounts.get(order.debit_account), accounts.get(order.credit_account)
    if debit and credit and client.may_use(debit.customer_id) and _may_take_part(order.currency, debit, credit):
        return too_late(order)
    if debit is not None and not client.may_use(debit.customer_id):
        debit = None
    if debit is None or credit is None:
        missing = [side for side, found in zip(_SIDES, (debit, credit), strict=True) if found is None]
        return _refused(AccountNotFound, missing)
    for side, account in zip(_SIDES, (debit, credit), strict=True):
        if account.status in _NOT_OPEN:
            return _refused(_NOT_OPEN[account.status], [side])
    if not debit.currency == credit.currency == order.currency:
        return _refused(CurrencyMismatch, ["currency"])
    return too_late(order)


def _may_take_part(currency: str, debit: AccountFacts, credit: AccountFacts) -> bool:
    return debit.status == credit.status == "open" and debit.currency == credit.currency == currency


def _refused(kind: type[BankError], fields: list[str]) -> BankError:
    return kind(errors=[FieldError(field, kind.code, f"{kind.title}.") for field in fields])


def too_late(order: TransferOrder) -> BankError | None:
    """Refuse days and moments that have passed; checked here and not with the form, because repetitions are exempt."""
    if order.execute_on is None and order.expires_at is None:
        return None
    errors, now = [], datetime.now(UTC)
    if order.execute_on is not None and order.execute_on < now.date():
        errors.append(FieldError("execute_on", "in_the_past", "Give today or a later day (UTC)."))
    if order.expires_at is not None and order.expires_at <= max(now, _start(order.execute_on)):
        errors.append(FieldError("expires_at", "in_the_past", "Give a moment that lies ahead, and after execute_on."))
    return Invalid(errors=errors) if errors else None


def _start(day: date | None) -> datetime:
    return datetime.min.replace(tzinfo=UTC) if day is None else datetime(day.year, day.month, day.day, tzinfo=UTC)
