"""What the demo sends: a plan drawn from one seed, with the awkward cases that a bank meets every day mixed in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any
from uuid import UUID

BATCH_ROWS = 1_000
AMOUNT_MINOR_MAX = 2_000


class Kind(StrEnum):
    """Why a transfer is in the plan."""

    PLAIN = "plain"
    TOO_MUCH = "more than the account holds"
    RISKY = "large enough for a review"
    REPEATED = "repeated after the answer"
    TWICE_AT_ONCE = "sent twice at the same moment"
    KEY_REUSED = "key used again for another transfer"
    INVALID = "negative amount"


# How many in a hundred single transfers; the rest are plain. Invalid ones come on top: they are never accepted.
SHARES = {
    Kind.TOO_MUCH: 2.0,
    Kind.RISKY: 0.5,
    Kind.REPEATED: 3.0,
    Kind.TWICE_AT_ONCE: 3.0,
    Kind.KEY_REUSED: 1.0,
}
INVALID_SHARE = 1.0
# A batch row has no key of its own, so the cases about keys do not apply there.
BATCH_SHARES = {Kind.TOO_MUCH: 2.0, Kind.RISKY: 0.1}


@dataclass(frozen=True)
class Planned:
    """One transfer as it will be sent. `reference` is unique in the run: it finds the transfer again afterwards."""

    kind: Kind
    reference: str
    debit_account: str
    credit_account: str
    amount_minor: int
    currency: str

    @property
    def body(self) -> dict[str, Any]:
        return {
            "debit_account": self.debit_account,
            "credit_account": self.credit_account,
            "amount_minor": self.amount_minor,
            "currency": self.currency,
            "reference": self.reference,
        }


class Workload:
    """Draws transfers between the given accounts. The same seed and accounts give the same plan."""

    def __init__(self, accounts: Sequence[str], *, currency: str, review_amount_minor: int, seed: int) -> None:
        self._accounts = accounts
        self._currency = currency
        self._review_amount_minor = review_amount_minor
        self._random = Random(seed)
        # Names this run's transfers, also where an earlier run left its own in the same database.
        self.run = f"demo-{UUID(int=Random().getrandbits(128)).hex[:12]}"
        self._drawn = 0

    @staticmethod
    def opening_minor(review_amount_minor: int) -> int:
        """An opening balance below the review amount: 'too much' is then refused for the money, not for the risk."""
        return max(review_amount_minor * 9 // 10, 1)

    def singles(self, count: int) -> list[Planned]:
        kinds = [*self._kinds(count, SHARES), *([Kind.INVALID] * _share(count, INVALID_SHARE))]
        self._random.shuffle(kinds)
        return [self._draw(kind) for kind in kinds]

    def batches(self, count: int) -> Iterator[list[Planned]]:
        for start in range(0, count, BATCH_ROWS):
            kinds = self._kinds(min(BATCH_ROWS, count - start), BATCH_SHARES)
            self._random.shuffle(kinds)
            yield [self._draw(kind) for kind in kinds]

    def _kinds(self, count: int, shares: dict[Kind, float]) -> list[Kind]:
        special = [kind for kind, share in shares.items() for _ in range(_share(count, share))]
        return [*special[:count], *([Kind.PLAIN] * (count - len(special)))]

    def _draw(self, kind: Kind) -> Planned:
        debit, credit = self._random.sample(self._accounts, 2)
        self._drawn += 1
        return Planned(
            kind=kind,
            reference=f"{self.run}-{self._drawn:07d}",
            debit_account=debit,
            credit_account=credit,
            amount_minor=self._amount_minor(kind),
            currency=self._currency,
        )

    def _amount_minor(self, kind: Kind) -> int:
        if kind is Kind.TOO_MUCH:
            return self._review_amount_minor - self._random.randrange(1, max(self._review_amount_minor // 100, 2))
        if kind is Kind.RISKY:
            return self._review_amount_minor + self._random.randrange(self._review_amount_minor)
        amount_minor = self._random.randrange(1, AMOUNT_MINOR_MAX)
        return -amount_minor if kind is Kind.INVALID else amount_minor


def _share(count: int, percent: float) -> int:
    """At least one, so that even a small run shows every case."""
    return max(1, round(count * percent / 100.0)) if count else 0
