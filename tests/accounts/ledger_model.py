"""The reference of `accounts.ledger.post` in plain Python: what it must answer and what it must leave behind."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from accounts.ledger import Movement

BALANCE_MAX = 4_000_000_000_000_000_000


class Line(NamedTuple):
    number: int
    side: str
    amount_minor: int
    balance_after_minor: int


@dataclass
class ModelAccount:
    currency: str
    status: str = "open"
    posted_minor: int = 0
    held_minor: int = 0
    limit_minor: int | None = 0
    lines: list[Line] = field(default_factory=list)

    def move(self, side: str, amount_minor: int) -> None:
        self.posted_minor += amount_minor if side == "C" else -amount_minor
        self.lines.append(Line(len(self.lines) + 1, side, amount_minor, self.posted_minor))


@dataclass
class LedgerModel:
    accounts: dict[Hashable, ModelAccount]
    references: set[str] = field(default_factory=set)

    def post(self, movements: Sequence[Movement]) -> list[str]:
        first_answers: dict[str, str] = {}
        outcomes = []
        for movement in movements:
            if movement.reference in first_answers:
                outcomes.append(first_answers[movement.reference] or "already_posted")
                continue
            outcome = first_answers[movement.reference] = self._refusal(movement)
            outcomes.append(outcome)
            if not outcome:
                self.references.add(movement.reference)
                self.accounts[movement.debit_account].move("D", movement.amount_minor)
                self.accounts[movement.credit_account].move("C", movement.amount_minor)
        return outcomes

    def _refusal(self, movement: Movement) -> str:
        debit, credit = self.accounts.get(movement.debit_account), self.accounts.get(movement.credit_account)
        if movement.reference in self.references:
            return "already_posted"
        if debit is None or credit is None:
            return "account_not_found"
        for status in ("closed", "frozen"):
            if status in (debit.status, credit.status):
                return f"account_{status}"
        if {debit.currency, credit.currency} != {movement.currency}:
            return "currency_mismatch"
        left = debit.posted_minor - debit.held_minor - movement.amount_minor
        if debit.limit_minor is not None and left < -debit.limit_minor:
            return "insufficient_funds"
        if (
            credit.posted_minor + movement.amount_minor > BALANCE_MAX
            or debit.posted_minor - movement.amount_minor < -BALANCE_MAX
        ):
            return "limit_exceeded"
        return ""
