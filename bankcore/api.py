"""How the REST API speaks: strict JSON in, problem details (RFC 9457) out, newest-first cursor pages."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, TypeVar

from django.core.exceptions import SuspiciousOperation
from django.http import Http404, HttpRequest, HttpResponse, UnreadablePostError
from django.views import defaults
from pydantic import BaseModel, ValidationError
from rest_framework import exceptions
from rest_framework.parsers import JSONParser

from bankcore.cursors import NewestFirst as NewestFirst

# REST framework finds the pages here (settings.REST_FRAMEWORK).
from bankcore.database import is_away
from bankcore.errors import BankError, FieldError, Invalid, MalformedJson, NotFound, PayloadTooLarge, Unavailable
from bankcore.logs import current_request_id
from bankcore.wire import body_bytes, json_response

log = logging.getLogger(__name__)
Body = TypeVar("Body", bound=BaseModel)
PROBLEM_JSON = "application/problem+json"
ERRORS_MAX = 1000
UNAVAILABLE_RETRY_SECONDS = 2
BAD_REQUEST = "Nothing was changed. It breaks the rules of HTTP, names another host, or has over 1,000 parameters."
INTERNAL = (
    "Something is wrong on our side; it has been logged under the request_id. An order with its key is safe to repeat."
)


class LengthRequired(BankError):
    """The body came in chunks without a Content-Length; how much is read must be known before it is read."""

    code = "length_required"
    title = "The Content-Length header is missing"
    detail = "Nothing was changed. Say in Content-Length how many bytes the body has; do not send it in chunks."
    http_status = 411


# -- in ----------------------------------------------------------------------------------------------------------------


def media_type_of(request: Any) -> tuple[str, dict[str, str]]:
    """Read Content-Type: the media type and its parameters, in small letters."""
    media_type, *parameters = str(request.META.get("CONTENT_TYPE", "")).lower().split(";")
    pairs = (parameter.partition("=") for parameter in parameters if parameter.strip())
    return media_type.strip(), {name.strip(): value.strip().strip('"') for name, _, value in pairs}


def read_body(
    request: Any,
    bytes_max: int,
    *,
    content_types: Sequence[str] = ("application/json",),
    parameters: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """Read the request's body, refusing one that is larger than `bytes_max` before it is in memory.

    `parameters` may stand in Content-Type, with these values alone, beside charset=utf-8.

    Raises:
        PayloadTooLarge: the body is larger.
        LengthRequired: how large it is was not said.
        UnsupportedMediaType: it is of another type, or compressed.
    """
    media_type, given = media_type_of(request)
    known = given.items() <= {"charset": "utf-8", **parameters}.items()
    plain = request.META.get("HTTP_CONTENT_ENCODING", "identity").lower() == "identity"
    if media_type not in content_types or not known or not plain:
        raise exceptions.UnsupportedMediaType(media_type[:100], "Send " + " or ".join(content_types) + " in UTF-8.")
    is_streamed = request.META.get("SERVER_PROTOCOL") == "HTTP/2" and not request.META.get("CONTENT_LENGTH")
    if is_streamed or "HTTP_TRANSFER_ENCODING" in request.META:
        raise LengthRequired
    length = body_bytes(request.META)
    if length is None or length > bytes_max:
        raise PayloadTooLarge(f"At most {bytes_max:,} bytes are read here.")
    try:
        body: bytes = request.read(bytes_max)
    except UnreadablePostError as error:
        raise MalformedJson("The body broke off.") from error
    # Django reads less without a word. Rows that are missing at the end are no orders of anybody's.
    if len(body) < length:
        raise MalformedJson("The body broke off.")
    return body


def parse_json(body: bytes) -> Any:
    """Parse RFC 8259 JSON; refuse what it leaves open: repeated keys, NaN, deep nesting, lone surrogates and NUL.

    Raises:
        MalformedJson: with the reason.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedJson("The body is not UTF-8.") from error
    try:
        parsed = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise MalformedJson("The body nests too deep.") from error
    except ValueError as error:
        raise MalformedJson(str(error)[:200]) from error
    # Raw bytes cannot carry NUL or a surrogate this far; only an escape can.
    if "\\u" in text:
        _check_text(parsed)
    return parsed


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number.")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("An object uses a key twice.")
    return unique


def _check_text(parsed: Any) -> None:
    waiting = [parsed]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value)
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, str) and ("\0" in value or any("\ud800" <= char <= "\udfff" for char in value)):
            raise MalformedJson("A string holds NUL or a lone surrogate.")


def read_model(request: Any, model: type[Body], bytes_max: int) -> Body:
    """Read, parse and validate a body.

    Raises:
        Invalid: with every place that is wrong.
    """
    try:
        return model.model_validate(parse_json(read_body(request, bytes_max)))
    except ValidationError as error:
        raise Invalid(errors=field_errors(error)) from error


_CODES = {"missing": "required", "extra_forbidden": "unknown_field"}
# Where pydantic speaks of Python, and would name our classes.
_MESSAGES = {"model_type": "Give a JSON object.", "dict_type": "Give a JSON object."}


def field_errors(error: ValidationError, prefix: Sequence[str] = ()) -> list[FieldError]:
    """Name each place that pydantic found wrong, without repeating what was sent there."""
    return [
        FieldError(
            field=".".join([*prefix, *(str(part)[:64] for part in item["loc"])])[:200] or "body",
            code=_CODES.get(item["type"], item["type"]),
            message=_MESSAGES.get(item["type"], item["msg"]),
        )
        for item in error.errors(include_url=False, include_context=False, include_input=False)[:ERRORS_MAX]
    ]


def read_query(request: Any, parsers: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """Read the query parameters that `parsers` names (they raise ValueError); page parameters may stand beside them.

    Raises:
        Invalid: a parameter is unknown, repeated, or does not parse.
    """
    found, errors = {}, []
    for name, values in request.GET.lists():
        if name in ("cursor", "page_size"):
            continue
        try:
            if name not in parsers:
                errors.append(FieldError(name[:64], "unknown_parameter", "There is no such parameter."))
            elif len(values) > 1 or "\0" in values[0]:
                raise ValueError("Give it once, as plain text.")
            else:
                found[name] = parsers[name](values[0])
        except ValueError as error:
            errors.append(FieldError(name, "invalid", str(error)))
    if errors:
        raise Invalid(errors=errors)
    return found


class StrictJsonParser(JSONParser):
    """`request.data` for views that want it, as strict as everything else."""

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None) -> Any:
        return parse_json(stream.read())


# -- out ---------------------------------------------------------------------------------------------------------------


def _problem(
    status: int,
    code: str,
    *,
    detail: str,
    title: str = "",
    retryable: bool = False,
    errors: Iterable[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> HttpResponse:
    title = title or HTTPStatus(status).phrase
    content = {
        "type": f"urn:bankcore:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": current_request_id(),
        "retryable": retryable,
        "errors": [{"field": e.field, "code": e.code, "message": e.message} for e in errors],
    }
    response = json_response(content, status, headers)
    response["Content-Type"] = PROBLEM_JSON
    return response


def problem(error: BankError) -> HttpResponse:
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else None
    return _problem(
        error.http_status,
        error.code,
        title=error.title,
        detail=error.detail,
        retryable=error.retryable,
        errors=error.errors,
        headers=headers,
    )


def _framework_problem(error: exceptions.APIException) -> HttpResponse:
    """Answer for what REST framework itself refuses."""
    headers = {}
    if auth_header := getattr(error, "auth_header", None):
        headers["WWW-Authenticate"] = auth_header
    if wait := getattr(error, "wait", None):
        headers["Retry-After"] = str(int(wait))
    if isinstance(error, exceptions.ValidationError):
        return problem(Invalid(errors=list(_flat("", error.get_full_details()))))
    code = "malformed_json" if isinstance(error, exceptions.ParseError) else error.default_code
    retryable = error.status_code in (429, 503)
    return _problem(error.status_code, code, detail=str(error.detail), retryable=retryable, headers=headers)


def _flat(place: str, details: Any) -> Iterable[FieldError]:
    if isinstance(details, dict) and set(details) == {"message", "code"}:
        yield FieldError(place or "body", str(details["code"]), str(details["message"]))
    elif isinstance(details, dict):
        for name, inner in details.items():
            yield from _flat(f"{place}.{name}" if place else str(name), inner)
    else:
        for inner in details:
            yield from _flat(place, inner)


def problem_response(error: Exception, context: Mapping[str, Any] | None = None) -> HttpResponse:
    """Turn any exception of a view into problem details; only what the caller may know goes out."""
    match error:
        case BankError():
            return problem(error)
        case exceptions.APIException():
            return _framework_problem(error)
        case Http404():
            return problem(NotFound())
        case SuspiciousOperation():
            return _problem(400, "bad_request", detail=BAD_REQUEST)
        case _ if is_away(error):
            log.warning("the database is away: %s", error)
            return problem(Unavailable(retry_after=UNAVAILABLE_RETRY_SECONDS))
    log.error("a request failed", exc_info=error)
    return _problem(500, "internal_error", detail=INTERNAL)


def _is_api(request: HttpRequest) -> bool:
    return request.path.startswith("/api/")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return problem(NotFound()) if _is_api(request) else defaults.page_not_found(request, exception)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not _is_api(request):
        return defaults.bad_request(request, exception)
    return _problem(400, "bad_request", detail=BAD_REQUEST)


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not _is_api(request):
        return defaults.permission_denied(request, exception)
    return _problem(403, "permission_denied", detail="Nothing was changed. This is not allowed to this caller.")


def server_error(request: HttpRequest) -> HttpResponse:
    return _problem(500, "internal_error", detail=INTERNAL) if _is_api(request) else defaults.server_error(request)
