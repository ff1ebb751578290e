"""What the calls of the dead-letter desk take and give, as JSON."""

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bankcore.messaging import undelivered
from bankcore.messaging.desk import LETTERS_MAX, Outcome
from bankcore.messaging.models import DeadLetter, DeskRequest
from bankcore.messaging.rooms import Forecast
from bankcore.moments import format_moment
from bankcore.wire import Moment, OneLine

BODY_SHOWN_BYTES_MAX = 64 * 1024


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Filter(_Body):
    """Which open letters; an empty one means all of them."""

    cause: OneLine = ""
    task: OneLine = ""
    queue: OneLine = ""
    subject: OneLine = ""
    created_from: Moment | None = None
    created_to: Moment | None = None


class ReplayOrder(_Body):
    dry_run: bool = False


class ReplayManyOrder(_Body):
    """`rate`: how many a second go on; the others become due later, one after the other."""

    filter: Filter
    dry_run: bool = False
    limit: Annotated[int, Field(ge=1, le=LETTERS_MAX)] = 100
    rate: Annotated[float, Field(ge=0.01, le=1000)] | None = None


class DiscardOrder(_Body):
    reason: Annotated[OneLine, Field(min_length=3)]


class ApproveOrder(_Body):
    """What is approved, so that nobody approves something else than they have seen."""

    action: Literal["replay", "discard"]


class RequestShown(BaseModel):
    id: str
    action: Literal["replay", "discard"]
    reason: str
    requested_by: str
    requested_at: datetime


class LetterShown(BaseModel):
    id: str
    kind: Literal["parked", "message"]
    state: Literal["open", "replayed", "discarded"]
    task: str
    queue: str
    subject: str
    cause: str
    attempts: int
    body_digest: str
    created_at: datetime
    resolved_at: datetime | None
    resolved_by: str | None
    resolution: str


class LetterPage(BaseModel):
    results: list[LetterShown]
    next: str | None
    previous: str | None


class LetterDetailShown(LetterShown):
    """`detail` is the traceback, or why the message cannot be read; `body` has its first bytes as they came."""

    detail: str
    headers: dict[str, Any]
    body: str | None
    body_bytes: int
    ids: list[str]
    pending_request: RequestShown | None


class ReplayShown(BaseModel):
    """`outcome`: replayed, awaiting_approval, refused; of a dry run would_post, would_wait_for_review,
    would_be_refused, would_fail_again, would_be_sent_again, would_nothing. `code` says why, where it is no."""

    letter: str
    dry_run: bool
    outcome: str
    code: str
    detail: str
    second_person: bool
    request: str | None


class ReplayManyShown(BaseModel):
    results: list[ReplayShown]
    counts: dict[str, int]
    more: bool


class WithdrawnShown(BaseModel):
    letter: str
    outcome: str


def show_letter(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": str(letter.pk),
        "kind": "message" if letter.body_digest else "parked",
        "state": str(letter.state),
        "task": letter.task,
        "queue": letter.queue,
        "subject": letter.subject,
        "cause": letter.cause,
        "attempts": letter.attempts,
        "body_digest": letter.body_digest,
        "created_at": format_moment(letter.created_at),
        "resolved_at": letter.resolved_at and format_moment(letter.resolved_at),
        "resolved_by": letter.resolved_by and letter.resolved_by.get_username(),
        "resolution": letter.resolution,
    }


def show_letter_in_full(letter: DeadLetter, request: DeskRequest | None) -> dict[str, Any]:
    body = None if letter.body is None else bytes(letter.body)
    ids = [letter.subject] if body is None else undelivered.read(letter.headers, body).ids
    return {
        **show_letter(letter),
        "detail": letter.detail,
        "headers": letter.headers,
        "body": None if body is None else base64.b64encode(body[:BODY_SHOWN_BYTES_MAX]).decode("ascii"),
        "body_bytes": len(body or b""),
        "ids": [str(one) for one in ids if one != ""],
        "pending_request": request and _show_request(request),
    }


def _show_request(request: DeskRequest) -> dict[str, Any]:
    return {
        "id": str(request.pk),
        "action": request.action,
        "reason": request.reason,
        "requested_by": request.requested_by.get_username(),
        "requested_at": format_moment(request.requested_at),
    }


def show_outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "letter": str(outcome.letter),
        "dry_run": False,
        "outcome": outcome.outcome,
        "code": outcome.code,
        "detail": outcome.detail,
        "second_person": outcome.request is not None,
        "request": str(outcome.request) if outcome.request is not None else None,
    }


def show_forecast(forecast: Forecast) -> dict[str, Any]:
    return {
        "letter": str(forecast.letter),
        "dry_run": True,
        "outcome": f"would_{forecast.would}",
        "code": forecast.reason,
        "detail": forecast.detail,
        "second_person": forecast.second_person,
        "request": None,
    }


def show_many(results: list[dict[str, Any]], *, more: bool) -> Mapping[str, Any]:
    counts: dict[str, int] = {}
    for result in results:
        counts[result["outcome"]] = counts.get(result["outcome"], 0) + 1
    return {"results": results, "counts": counts, "more": more}
