"""What the account calls take and give, as JSON."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from accounts.models import Account, JournalLine
from bankcore.moments import format_moment
from bankcore.money import AMOUNT_MINOR_MAX
from bankcore.wire import Currency, OneLine


class AccountOrder(BaseModel):
    """An account to open."""

    model_config = ConfigDict(strict=True, extra="forbid")

    currency: Currency
    name: OneLine = ""
    customer: Annotated[str, Field(max_length=64)] | None = None
    limit_minor: Annotated[int, Field(ge=0, le=AMOUNT_MINOR_MAX)] | None = None


class AccountShown(BaseModel):
    id: str
    customer: str | None
    name: str
    currency: str
    status: Literal["open", "frozen", "closed"]
    posted_minor: int
    held_minor: int
    limit_minor: int | None
    created_at: datetime


class AccountPage(BaseModel):
    results: list[AccountShown]
    next: str | None
    previous: str | None


class LineShown(BaseModel):
    number: int
    entry: str
    side: Literal["D", "C"]
    amount_minor: int
    balance_after_minor: int
    created_at: datetime


class LinePage(BaseModel):
    results: list[LineShown]
    next: str | None
    previous: str | None


def show_account(account: Account) -> dict[str, Any]:
    return {
        "id": str(account.id),
        "customer": account.customer_id and str(account.customer_id),
        "name": account.name,
        "currency": account.currency,
        "status": account.status,
        "posted_minor": account.posted_minor,
        "held_minor": account.held_minor,
        "limit_minor": account.limit_minor,
        "created_at": format_moment(account.created_at),
    }


def show_line(line: JournalLine) -> dict[str, Any]:
    return {
        "number": line.number,
        "entry": line.entry.reference,
        "side": line.side,
        "amount_minor": line.amount_minor,
        "balance_after_minor": line.balance_after_minor,
        "created_at": format_moment(line.entry.created_at),
    }
