"""What the front refuses by itself, without Django: problems that look like those of the API.

A refusal is made anew each time: what is raised keeps all it passed, the request's body as well.
"""

import json
from typing import Any

from bankcore import metrics
from bankcore.errors import PayloadTooLarge
from bankcore.identifiers import new_id
from bankcore.logs import accepted_request_id
from bankcore.messaging.backpressure import Overloaded
from bankcore.pool import Exchange, Headers


class Refusal(Exception):
    """The request is answered here, without Django."""

    def __init__(self, status: int, code: str, title: str, detail: str, *, retry_after: int | None = None) -> None:
        super().__init__(code)
        self.status, self.code, self.title, self.detail, self.retry_after = status, code, title, detail, retry_after


def too_slow() -> Refusal:
    detail = "Nothing was changed. Send it again, and in one go."
    return Refusal(408, "body_too_slow", "The body did not arrive in time", detail)


def broken_off() -> Refusal:
    detail = "Nothing was changed. Fewer bytes came than Content-Length says. Send the whole of it again."
    return Refusal(400, "body_incomplete", "The body broke off", detail)


def too_large() -> Refusal:
    return Refusal(413, PayloadTooLarge.code, PayloadTooLarge.title, PayloadTooLarge.detail)


def overloaded(seconds: int) -> Refusal:
    return Refusal(503, Overloaded.code, Overloaded.title, Overloaded.detail, retry_after=seconds)


def refuse(refusal: Refusal, scope: Any, exchange: Exchange) -> None:
    metrics.front_refusals.labels(refusal.code).inc()
    exchange.response_bytes(*_problem(refusal, scope))


def _problem(refusal: Refusal, scope: Any) -> tuple[int, Headers, bytes]:
    request_id = accepted_request_id(scope.headers.get("x-request-id") or "") or str(new_id())
    content = {
        "type": f"urn:bankcore:problem:{refusal.code}",
        "title": refusal.title,
        "status": refusal.status,
        "detail": refusal.detail,
        "code": refusal.code,
        "request_id": request_id,
        "retryable": refusal.status in (400, 408, 503),
        "errors": [],
    }
    headers = [("content-type", "application/problem+json"), ("x-request-id", request_id)]
    if refusal.retry_after is not None:
        headers.append(("retry-after", str(refusal.retry_after)))
    if refusal.status in (400, 408, 413) and scope.http_version.startswith("1"):
        # The rest of the body is not read.
        headers.append(("connection", "close"))
    return refusal.status, headers, json.dumps(content, separators=(",", ":")).encode()
