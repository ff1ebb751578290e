"""How the REST API speaks: strict JSON in, problem details (RFC 9457) out, newest-first cursor pages."""

import json
import logging
from typing import Any, TypeVar

from pydantic import BaseModel

from bankcore.errors import MalformedJson, PayloadTooLarge

log = logging.getLogger(__name__)
Body = TypeVar("Body", bound=BaseModel)
PROBLEM_JSON = "application/problem+json"


# -- in ----------------------------------------------------------------------------------------------------------------


def read_body(request: Any, bytes_max: int) -> bytes:
    """Read the request's body, refusing one that is larger than `bytes_max` before it is in memory.

    Raises:
        PayloadTooLarge: the body is larger.
    """
    length = request.META.get("CONTENT_LENGTH") or "0"
    if not length.isdigit() or int(length) > bytes_max:
        raise PayloadTooLarge(f"At most {bytes_max:,} bytes are read here.")
    return request.read(bytes_max)


def parse_json(body: bytes) -> Any:
    """Parse RFC 8259 JSON; refuse what it leaves open: repeated keys, NaN, deep nesting, lone surrogates and NUL.

    Raises:
        MalformedJson: with the reason.
    """
    try:
        text = body.decode("utf-8")
        parsed = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedJson(str(error)[:200]) from error
    if "\\" in text:
        _check_text(text)
    return parsed


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
