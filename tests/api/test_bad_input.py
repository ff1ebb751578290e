"""Bad input: every case is a 4xx problem with its code, and leaves no transfer and no event behind."""

import json
from io import BytesIO
from typing import Any

import pytest

from accounts.models import Account
from bankcore.api import LengthRequired, read_body
from bankcore.errors import MalformedJson
from bankcore.view import View

AMOUNTS = [
    0, -1, 0.001, 1.0, 1e2, "1", "1_000", "+5", " 5 ", "٣", "\uff11\uff12", 2**63, 10**15 + 1, True, None, [], {},
]  # fmt: skip

FIELDS: list[tuple[str, Any, str, str]] = [
    *(("amount_minor", amount, "amount_minor", "") for amount in AMOUNTS),
    ("amount_minor", ..., "amount_minor", "required"),
    ("currency", "eur", "currency", "unknown_currency"),
    ("currency", "XXX", "currency", "unknown_currency"),
    ("currency", "EURO", "currency", "unknown_currency"),
    ("currency", 978, "currency", ""),
    ("currency", None, "currency", ""),
    ("debit_account", ..., "debit_account", "required"),
    ("debit_account", 7, "debit_account", ""),
    ("credit_account", None, "credit_account", ""),
    ("reference", "x" * 141, "reference", "string_too_long"),
    ("reference", "two\nlines", "reference", "control_character"),
    ("reference", "bell\x07", "reference", "control_character"),
    ("reference", "\u202egnp.exe", "reference", "control_character"),
    ("reference", None, "reference", ""),
    ("external_id", "", "external_id", "string_too_short"),
    ("external_id", 5, "external_id", ""),
    ("metadata", [], "metadata", ""),
    ("metadata", {"a": {"b": 1}}, "metadata", "invalid_value"),
    ("metadata", {"a": 1.5}, "metadata", "invalid_value"),
    ("metadata", {"a": 2**63}, "metadata", "integer_too_large"),
    ("metadata", {"a": "x" * 501}, "metadata", "text_too_long"),
    ("metadata", {"": 1}, "metadata", "invalid_key"),
    ("metadata", {"k" * 41: 1}, "metadata", "invalid_key"),
    ("metadata", {str(n): n for n in range(21)}, "metadata", "too_many_keys"),
    ("execute_on", "2020-01-01", "execute_on", "in_the_past"),
    ("execute_on", "tomorrow", "execute_on", "invalid_day"),
    ("execute_on", "2099-02-30", "execute_on", "invalid_day"),
    ("execute_on", 20990101, "execute_on", "invalid_day"),
    ("expires_at", "2020-01-01T00:00:00Z", "expires_at", "in_the_past"),
    ("expires_at", "2099-01-01T00:00:00", "expires_at", "invalid_moment"),
    ("expires_at", "0001-01-01T00:00:00+10:00", "expires_at", "invalid_moment"),
    ("status", "posted", "status", "unknown_field"),
    ("id", "1", "id", "unknown_field"),
    ("client", "other", "client", "unknown_field"),
]


@pytest.mark.parametrize(("name", "value", "field", "code"), FIELDS)
def test_a_wrong_field_is_named(bank: Any, assert_refused: Any, name: str, value: Any, field: str, code: str) -> None:
    response = bank.as_anna.order(bank.body(**{name: value}))

    problem = assert_refused(response, 400, "validation_error")
    assert [error["field"] for error in problem["errors"]] == [field]
    assert code in ("", problem["errors"][0]["code"])


def test_all_wrong_fields_are_named_at_once(bank: Any, assert_refused: Any) -> None:
    response = bank.as_anna.order({"amount_minor": "1", "currency": "eur", "is_staff": True})

    problem = assert_refused(response, 400, "validation_error")
    assert {error["field"] for error in problem["errors"]} == {
        "debit_account", "credit_account", "amount_minor", "currency", "is_staff",
    }  # fmt: skip


def test_an_account_does_not_pay_itself(bank: Any, assert_refused: Any) -> None:
    response = bank.as_anna.order(bank.body(credit_account=str(bank.annas.id)))

    problem = assert_refused(response, 400, "validation_error")
    assert problem["errors"][0]["code"] == "same_account"


RAW = {
    "nothing": b" ",
    "text": b"hello",
    "deep nesting": b"[" * 30_000,
    "deep objects": b'{"a":' * 10_000,
    "repeated key": b'{"amount_minor": 1, "amount_minor": 2}',
    "NaN": b'{"amount_minor": NaN}',
    "infinity": b'{"amount_minor": -Infinity}',
    "5000 digits": b'{"amount_minor": ' + b"9" * 5000 + b"}",
    "byte order mark": b"\xef\xbb\xbf{}",
    "bad UTF-8": b'{"a": "\xff"}',
    "UTF-16": "{}".encode("utf-16"),
    "trailing garbage": b"{} x",
    "comment": b"{} // ok",
    "NUL": b'{"reference": "a\\u0000b"}',
    "NUL in a key": b'{"a\\u0000b": 1}',
    "lone surrogate": b'{"reference": "\\ud800"}',
    "nested surrogate": b'{"metadata": {"a": ["\\udfff"]}}',
}


@pytest.mark.parametrize("raw", RAW.values(), ids=RAW.keys())
def test_what_is_not_strict_json_is_refused(bank: Any, assert_refused: Any, raw: bytes) -> None:
    assert_refused(bank.as_anna.order(raw), 400, "malformed_json")


@pytest.mark.parametrize("raw", [b"null", b"[]", b"1", b'"x"', b"true", b"1e400"])
def test_json_that_is_no_object_is_refused(bank: Any, assert_refused: Any, raw: bytes) -> None:
    problem = assert_refused(bank.as_anna.order(raw), 400, "validation_error")
    # No name of a class of ours.
    assert problem["errors"] == [{"field": "body", "code": "model_type", "message": "Give a JSON object."}]


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16", ""]
)
def test_another_content_type_is_refused(bank: Any, assert_refused: Any, content_type: str) -> None:
    response = bank.as_anna.order(bank.body(), content_type=content_type)

    assert_refused(response, 415, "unsupported_media_type")


def test_a_compressed_body_is_refused(bank: Any, assert_refused: Any) -> None:
    response = bank.as_anna.order(bank.body(), content_encoding="gzip")

    assert_refused(response, 415, "unsupported_media_type")


def test_a_body_that_is_shorter_than_it_says_is_refused(rf: Any) -> None:
    """Whatever server is in front: Django reads what there is, and says nothing."""
    short = {"CONTENT_LENGTH": "10", "wsgi.input": BytesIO(b"{}")}
    request = rf.generic("POST", "/api/v1/transfers", b"{}", "application/json", **short)

    with pytest.raises(MalformedJson, match="broke off"):
        read_body(request, 100)


def test_a_large_body_is_refused(bank: Any, assert_refused: Any) -> None:
    response = bank.as_anna.order(bank.body(reference="x" * 70_000))

    assert_refused(response, 413, "payload_too_large")


@pytest.mark.parametrize("currency", ["EUR", "JPY", "KWD"])
def test_the_currency_is_that_of_both_accounts(bank: Any, assert_refused: Any, currency: str) -> None:
    dollars = Account.objects.create(customer=bank.bruno, currency="USD")
    body = bank.body(currency=currency, credit_account=str(dollars.id))

    assert_refused(bank.as_anna.order(body), 422, "currency_mismatch")


@pytest.mark.parametrize("side", ["debit_account", "credit_account"])
@pytest.mark.parametrize(("status", "code"), [("frozen", "account_frozen"), ("closed", "account_closed")])
def test_an_account_that_is_not_open_is_refused(
    bank: Any, assert_refused: Any, side: str, status: str, code: str
) -> None:
    account = bank.annas if side == "debit_account" else bank.brunos
    Account.objects.filter(id=account.id).update(status=status)

    problem = assert_refused(bank.as_anna.order(bank.body()), 422, code)
    assert [error["field"] for error in problem["errors"]] == [side]


def test_accounts_that_are_not_the_callers_look_like_none(bank: Any, assert_refused: Any) -> None:
    absent = ["not-an-id", str(bank.anna.id), str(bank.annas.id).upper(), f"{{{bank.annas.id}}}", ""]
    answers = [
        bank.as_anna.order(bank.body(debit_account=account, credit_account=str(bank.annas.id)))
        for account in [str(bank.brunos.id), *absent]
    ]

    problems = [assert_refused(answer, 422, "account_not_found") for answer in answers]
    assert len({json.dumps({**problem, "request_id": ""}) for problem in problems}) == 1


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (None, "idempotency_key_missing"),
        ("", "idempotency_key_invalid"),
        ("k" * 256, "idempotency_key_invalid"),
        ("ké", "idempotency_key_invalid"),
        ("a b", "idempotency_key_invalid"),
    ],
)
def test_the_idempotency_key_is_required_and_plain(bank: Any, assert_refused: Any, key: str | None, code: str) -> None:
    headers = {} if key is None else {"idempotency_key": key}

    assert_refused(bank.as_anna.post("transfers", bank.body(), **headers), 400, code)


@pytest.mark.parametrize(
    "query",
    [
        "sort=amount", "status=gone", "status=posted&status=posted", "page_size=0", "page_size=201", "page_size=x",
        "page_size=٣", "cursor=x", "cursor=b2xkZXI6eA==", "created_from=yesterday", "reference=%00",
    ],
)  # fmt: skip
def test_a_wrong_query_is_refused(bank: Any, assert_refused: Any, query: str) -> None:
    assert_refused(bank.as_anna.get(f"transfers?{query}"), 400, "validation_error")


def test_a_query_without_end_is_refused(bank: Any, assert_refused: Any) -> None:
    query = "&".join(f"a{number}=1" for number in range(1_001))

    assert_refused(bank.as_anna.get(f"transfers?{query}"), 400, "bad_request")


@pytest.mark.parametrize(
    "text", ["'; DROP TABLE x; --", "{{7*7}}", "<script>", "=1+1", "Zoë 🎉 שלום", "e" + "\u0301" * 99]
)
def test_odd_but_honest_text_is_kept_as_it_is(bank: Any, text: str) -> None:
    location = bank.as_anna.order(bank.body(reference=text, metadata={"note": text}))["Location"]

    shown = bank.as_anna.get(location.removeprefix("/api/v1/")).json()
    assert (shown["reference"], shown["metadata"]) == (text, {"note": text})


def test_unknown_paths_and_methods_speak_problem_json(bank: Any, assert_refused: Any) -> None:
    assert_refused(bank.as_anna.get("nothing"), 404, "not_found")
    response = bank.as_anna.post("transfers/x")
    assert_refused(response, 405, "method_not_allowed")
    assert response["Allow"] == "GET, HEAD"


def test_a_body_of_unknown_length_is_refused(bank: Any, assert_refused: Any) -> None:
    response = bank.as_anna.order(bank.body(), transfer_encoding="chunked")

    assert_refused(response, 411, "length_required")


def test_a_body_of_unknown_length_over_http_2_is_not_taken_for_an_empty_one(rf: Any) -> None:
    said = {"CONTENT_TYPE": "application/json", "SERVER_PROTOCOL": "HTTP/2"}
    request = rf.generic("POST", "/api/v1/transfers", **said)

    with pytest.raises(LengthRequired):
        read_body(request, 100)


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PUT", "DELETE", "PATCH", "FOO"])
def test_an_unknown_method_is_refused(bank: Any, assert_refused: Any, client: Any, method: str) -> None:
    headers = {"Authorization": f"Bearer {bank.as_anna.token}"}

    assert_refused(client.generic(method, "/api/v1/transfers", headers=headers), 405, "method_not_allowed")


def test_a_view_without_declared_scopes_is_nobodys(bank: Any, rf: Any) -> None:
    class Undeclared(View):
        def get(self, request: Any) -> Any:
            raise AssertionError

    request = rf.get("/api/v1/undeclared", headers={"Authorization": f"Bearer {bank.as_staff.token}"})

    assert Undeclared.as_view()(request).status_code == 403
