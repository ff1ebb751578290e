"""What goes over the wire everywhere: JSON answers, problems, and the small types that request bodies share."""

import unicodedata
from collections.abc import Mapping
from datetime import date, datetime
from typing import Annotated, Any

from django.http import HttpResponse
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError, to_json

from bankcore.moments import parse_day, parse_moment
from bankcore.money import is_currency

# Characters that make a line read otherwise than it is stored (Unicode TR 36): direction overrides and isolates.
_DIRECTION = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def one_line(text: str) -> str:
    if not text.isascii() or not text.isprintable():
        for char in text:
            if char in _DIRECTION or unicodedata.category(char) in ("Cc", "Zl", "Zp"):
                raise PydanticCustomError("control_character", "Control characters and line breaks are refused.")
    return text


def _currency(code: str) -> str:
    if not is_currency(code):
        raise PydanticCustomError("unknown_currency", "Give an ISO 4217 code such as EUR.")
    return code


def _moment(value: Any) -> Any:
    try:
        return parse_moment(value) if isinstance(value, str) else _not_text()
    except ValueError as error:
        raise PydanticCustomError("invalid_moment", "{why}", {"why": str(error)}) from error


def _day(value: Any) -> Any:
    try:
        return parse_day(value) if isinstance(value, str) else _not_text()
    except ValueError as error:
        raise PydanticCustomError("invalid_day", "{why}", {"why": str(error)}) from error


def _not_text() -> Any:
    raise ValueError("Give it as text.")


OneLine = Annotated[str, Field(max_length=140), AfterValidator(one_line)]
Currency = Annotated[
    str, AfterValidator(_currency), WithJsonSchema({"type": "string", "pattern": "^[A-Z]{3}$", "example": "EUR"})
]
Moment = Annotated[datetime, BeforeValidator(_moment), WithJsonSchema({"type": "string", "format": "date-time"})]
Day = Annotated[date, BeforeValidator(_day), WithJsonSchema({"type": "string", "format": "date"})]


class Problem(BaseModel):
    """What every refusal looks like (RFC 9457)."""

    class Place(BaseModel):
        field: str
        code: str
        message: str

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    retryable: bool
    errors: list[Place]


def body_bytes(environ: Mapping[str, Any]) -> int | None:
    """Return how large a request says its body is (Content-Length); None if what it says is not a number."""
    length = environ.get("CONTENT_LENGTH") or "0"
    # Eighteen digits are more than anybody sends, and still cheap to read.
    return int(length) if length.isascii() and length.isdigit() and len(length) <= 18 else None


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> HttpResponse:
    return HttpResponse(to_json(content), status=status, headers=headers, content_type="application/json")
