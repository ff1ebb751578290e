"""The risk provider outside, asked once for a whole batch. It makes the bank stricter, and never approves by silence.

Whatever goes wrong (down, slow, an error, nonsense, a missing verdict) is no verdict: the caller holds for review.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import aiohttp
from django.conf import settings
from pydantic import BaseModel, ConfigDict, Field

from bankcore.call_rates import wait_for_turn
from bankcore.database import fetch_all
from bankcore.messaging.breaker import Breaker, BreakerOpen
from bankcore.moments import format_moment
from transfers.risk.rules import Opinion, Outcome

log = logging.getLogger(__name__)

UNAVAILABLE = Opinion(Outcome.REVIEW, "risk_unavailable")
REPLY_BYTES_MAX = 1024 * 1024
_OUTCOMES = {"approve": Outcome.APPROVE, "review": Outcome.REVIEW, "deny": Outcome.DENY}


class NoVerdict(Exception):
    """The provider's answer is none; the message says why."""


class Question(NamedTuple):
    """What the provider is told of one transfer. All of it was fixed when the transfer was accepted."""

    id: UUID
    debit_account: UUID
    credit_account: UUID
    amount_minor: int
    currency: str
    created_at: datetime


class Verdict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    id: Annotated[str, Field(max_length=64)]
    verdict: Literal["approve", "review", "deny"]
    reason: Annotated[str, Field(max_length=64, pattern=r"^[a-z0-9_]*$")] = ""


class Verdicts(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    verdicts: Annotated[list[Verdict], Field(max_length=10_000)]


def is_configured() -> bool:
    return bool(settings.RISK_PROVIDER_URL)


_QUESTIONS = """
SELECT id, debit_account_id, credit_account_id, amount_minor, currency, created_at
  FROM transfers_transfer WHERE id = ANY(%b::uuid[]) AND status = ANY(%b::text[]) ORDER BY id
"""


def ask(transfer_ids: Sequence[UUID], status: Sequence[str]) -> Mapping[UUID, Opinion]:
    """Ask the provider about those of the transfers that are in one of these states, in one HTTP call.

    Takes no lock and must not be called with one held: it may wait RISK_PROVIDER_TIMEOUT_SECONDS for its turn and as
    long again for the answer. A transfer without a verdict is not in the result; the reader decides what that means.
    """
    rows = fetch_all(_QUESTIONS, (list(transfer_ids), [str(s) for s in status]))
    questions = [Question._make(row) for row in rows]
    if not questions:
        return {}
    try:
        _wait_for_turn()
        with Breaker("risk").call():
            return _opinions(_exchange(questions), questions)
    except BreakerOpen:
        return {}
    except Exception as error:
        log.warning("no verdict on %s transfers: %s: %s", len(questions), type(error).__name__, error)
        return {}


def _wait_for_turn() -> None:
    """Wait in place until RISK_PROVIDER_RATE allows one more call of all workers.

    Raises:
        NoVerdict: not within the time that the exchange itself may take.
    """
    rate, seconds = settings.RISK_PROVIDER_RATE, settings.RISK_PROVIDER_TIMEOUT_SECONDS
    if not wait_for_turn("risk_provider", rate, seconds):
        raise NoVerdict(f"the rate of {rate} left no turn within {seconds} s")


def _exchange(questions: Sequence[Question]) -> bytes:
    body = {
        "transfers": [
            {
                "id": str(q.id),
                "debit_account": str(q.debit_account),
                "credit_account": str(q.credit_account),
                "amount_minor": q.amount_minor,
                "currency": q.currency,
                "created_at": format_moment(q.created_at),
            }
            for q in questions
        ]
    }
    return asyncio.run(_post(body))


async def _post(body: Any) -> bytes:
    seconds = settings.RISK_PROVIDER_TIMEOUT_SECONDS
    # `total` bounds the whole exchange, a reply that trickles in included.
    timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=seconds, sock_read=seconds)
    token = settings.RISK_PROVIDER_TOKEN
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session,
        session.post(settings.RISK_PROVIDER_URL, json=body, headers=headers, allow_redirects=False) as reply,
    ):
        if reply.status != 200:
            raise NoVerdict(f"the provider answered {reply.status}")
        content = b""
        async for piece in reply.content.iter_chunked(64 * 1024):
            content += piece
            if len(content) > REPLY_BYTES_MAX:
                raise NoVerdict(f"the reply is larger than {REPLY_BYTES_MAX} bytes")
        return content


def _opinions(reply: bytes, questions: Sequence[Question]) -> Mapping[UUID, Opinion]:
    """Read a reply as a whole or not at all; a transfer judged twice keeps the stricter verdict."""
    asked = {str(q.id): q.id for q in questions}
    opinions: dict[UUID, Opinion] = {}
    for found in Verdicts.model_validate_json(reply).verdicts:
        known = asked.get(found.id)
        if known is None:
            raise NoVerdict("the reply judges a transfer that was not asked about")
        outcome = _OUTCOMES[found.verdict]
        reason = "" if outcome is Outcome.APPROVE else f"provider_{found.reason or found.verdict}"
        opinions[known] = max(opinions.get(known, Opinion(outcome, reason)), Opinion(outcome, reason))
    return opinions
