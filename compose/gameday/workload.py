"""What the clients of a game day order: a mix drawn from one seed, each order with the answers it may get."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from random import Random
from typing import Any

AMOUNT_MINOR_MAX = 2_000
# Rich accounts can pay everything that this run will ever ask of them; poor ones nothing of what is asked of them.
RICH_MINOR, POOR_MINOR = 100_000_000_000, 1_000
REVIEW_AMOUNT_MINOR = 1_000_000
BATCH_ROWS_MAX = 40
EXPIRY = timedelta(hours=1)
WAIT_SECONDS = 5


class Purpose(StrEnum):
    """Why an order is in the mix."""

    PLAIN = "plain"
    REPLAY = "repeated, and once more with another body"
    INVALID = "malformed first, then the same key with a good body"
    BATCH = "batch"
    RISKY = "large enough for a review"
    CANCEL = "called off at once"
    CANCEL_RISKY = "called off while it is in review"
    WAIT = "waited for"
    EXPIRING = "expires in an hour by the client's clock"
    TOO_MUCH = "more than the account holds"


# How many in a hundred; the rest is plain. Poor accounts only ever ask for too much.
SHARES: dict[Purpose, float] = {
    Purpose.REPLAY: 5.0,
    Purpose.INVALID: 2.0,
    Purpose.BATCH: 1.5,
    Purpose.RISKY: 1.0,
    Purpose.CANCEL: 2.0,
    Purpose.CANCEL_RISKY: 0.5,
    Purpose.WAIT: 3.0,
    Purpose.EXPIRING: 1.0,
}
HOT_SHARE, POOR_SHARE = 20.0, 5.0
HOT_CREDITS = 0.1

# What an operation's name ends in, beside the reference of the transfer that it is about.
MALFORMED, REPLAY, OTHER_BODY, CANCELLATION, LOOK = "!", "=", "#", "-", "?"


@dataclass(frozen=True)
class Cast:
    """The accounts of a run. `hot` is one of the rich; probes have accounts of their own."""

    rich: Sequence[str]
    poor: Sequence[str]
    hot: str
    currency: str
    review_amount_minor: int


@dataclass(frozen=True)
class Request:
    """One HTTP request of an operation. `body` is what the history keeps; `raw` is what is sent."""

    kind: str
    path: str
    expected: Sequence[int]
    body: Any = None
    raw: bytes = b""
    content_type: str = "application/json"


@dataclass
class Mix:
    """Draws orders. The same seed and cast give the same orders for each lane."""

    cast: Cast
    seed: int
    shift_seconds: float = 0.0
    _random: Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = Random(self.seed)

    def purpose(self, account: str) -> Purpose:
        if account in self.cast.poor:
            return Purpose.TOO_MUCH
        drawn = self._random.uniform(0, 100)
        for purpose, share in SHARES.items():
            if drawn < share:
                return purpose
            drawn -= share
        return Purpose.PLAIN

    def lane(self, lanes: int, hot_lanes: int, poor_lanes: int) -> int:
        """Draw which of the lanes gets the next order: hot lanes come first, then poor ones, then the rest."""
        drawn = self._random.uniform(0, 100)
        if drawn < HOT_SHARE:
            return self._random.randrange(hot_lanes)
        if drawn < HOT_SHARE + POOR_SHARE:
            return hot_lanes + self._random.randrange(poor_lanes)
        return self._random.randrange(hot_lanes + poor_lanes, lanes)

    def order(self, account: str, reference: str, purpose: Purpose) -> dict[str, Any]:
        body = {
            "debit_account": account,
            "credit_account": self._other(account),
            "amount_minor": self._amount_minor(purpose),
            "currency": self.cast.currency,
            "reference": reference,
        }
        if purpose is Purpose.EXPIRING:
            moment = datetime.now(UTC) + timedelta(seconds=self.shift_seconds) + EXPIRY
            body["expires_at"] = moment.isoformat(timespec="seconds").replace("+00:00", "Z")
        return body

    def transfer(self, body: dict[str, Any], expected: Sequence[int] = (202,)) -> Request:
        if "expires_at" in body and self.shift_seconds < 0:
            # A client whose clock is behind asks for what has expired already: it may be told so.
            expected = (*expected, 400)
        return Request("transfer", "/api/v1/transfers", expected, body, _dumps(body))

    def malformed(self, good: dict[str, Any]) -> Request:
        bad: dict[str, Any] = self._random.choice(
            [
                good | {"amount_minor": -good["amount_minor"]},
                good | {"amount_minor": 0},
                good | {"amount_minor": good["amount_minor"] + 0.5},
                good | {"amount_minor": str(good["amount_minor"])},
                good | {"credit_account": good["debit_account"]},
                good | {"credit_account": "00000000-0000-7000-8000-000000000000"},
                good | {"currency": "XXX"},
                good | {"status": "posted"},
            ]
        )
        return Request("transfer", "/api/v1/transfers", (400, 404, 422), bad, _dumps(bad))

    def other_body(self, first: dict[str, Any]) -> Request:
        other = first | {"amount_minor": first["amount_minor"] + 1}
        return Request("transfer", "/api/v1/transfers", (422,), other, _dumps(other))

    def batch(self, account: str, reference: str) -> Request:
        count = self._random.randrange(2, BATCH_ROWS_MAX)
        rows = [self.order(account, f"{reference}.{place}", Purpose.PLAIN) for place in range(count)]
        atomic = self._random.random() < 0.5
        if self._random.random() < 0.5:
            body = {"atomic": atomic, "transfers": rows}
            return Request("batch", "/api/v1/batches", (202,), body, _dumps(body))
        lines = b"\n".join(_dumps(row) for row in rows)
        return Request(
            kind="batch",
            path=f"/api/v1/batches?atomic={'true' if atomic else 'false'}",
            expected=(202,),
            body={"atomic": atomic, "transfers": rows},
            raw=lines,
            content_type="application/x-ndjson",
        )

    def _other(self, account: str) -> str:
        others = [other for other in self.cast.rich if other != account]
        return (
            self.cast.hot if account != self.cast.hot and self._random.random() < 0.1 else self._random.choice(others)
        )

    def _amount_minor(self, purpose: Purpose) -> int:
        review = self.cast.review_amount_minor
        if purpose is Purpose.TOO_MUCH:
            return review - self._random.randrange(1, 100)
        if purpose in (Purpose.RISKY, Purpose.CANCEL_RISKY):
            return review + self._random.randrange(AMOUNT_MINOR_MAX)
        return self._random.randrange(1, AMOUNT_MINOR_MAX)


def cancellation(transfer_id: str) -> Request:
    return Request("cancel", f"/api/v1/transfers/{transfer_id}/cancel", (200, 409))


def look(transfer_id: str) -> Request:
    return Request("look", f"/api/v1/transfers/{transfer_id}", (200,))


def _dumps(body: Any) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()
