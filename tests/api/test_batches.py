"""Batches: all rows or none, or the good ones; every bad row is named."""

import json
import tracemalloc
from typing import Any

import pytest
from django.db import connection
from prometheus_client import REGISTRY

from accounts.models import Account
from bankcore.messaging.models import Event
from tests.api.conftest import written
from transfers.models import Transfer


def test_this_file_alone_gets_a_database_of_its_own(bank: Any, request: pytest.FixtureRequest) -> None:
    """Without the mark on any test that was collected, tests would write to the database they were started with."""
    assert request.node.get_closest_marker("django_db") is not None
    assert connection.settings_dict["NAME"].startswith("test_")


def test_an_atomic_batch_is_taken_whole(bank: Any) -> None:
    rows = [bank.body(amount_minor=n, external_id=f"x{n}", metadata={"n": n}) for n in (1, 2)]
    rows.append(bank.body(amount_minor=3, execute_on="2099-01-01", expires_at="2099-01-02T00:00:00Z"))

    response = bank.as_anna.post("batches", {"transfers": rows})

    batch = response.json()
    assert (response.status_code, response["Location"]) == (202, f"/api/v1/batches/{batch['id']}")
    assert {name: batch[name] for name in ("atomic", "accepted", "refused", "status_counts")} == {
        "atomic": True, "accepted": 3, "refused": [], "status_counts": {"accepted": 2, "scheduled": 1},
    }  # fmt: skip
    assert bank.as_anna.get(f"batches/{batch['id']}").json() == batch
    shown = bank.as_anna.get(f"batches/{batch['id']}/transfers").json()["results"]
    assert [(t["amount_minor"], t["external_id"], t["batch"]) for t in shown] == [
        (3, None, batch["id"]), (2, "x2", batch["id"]), (1, "x1", batch["id"]),
    ]  # fmt: skip
    assert shown[2]["metadata"] == {"n": 1}
    assert (shown[0]["execute_on"], shown[0]["expires_at"]) == ("2099-01-01", "2099-01-02T00:00:00.000000Z")
    assert list(Event.objects.order_by("id").values_list("subject", flat=True)) == [t["id"] for t in shown[::-1]]


def test_an_atomic_batch_with_malformed_rows_keeps_nothing(bank: Any, assert_refused: Any) -> None:
    rows = [bank.body(), bank.body(amount_minor="1"), 7, bank.body(currency="USD")]

    problem = assert_refused(bank.as_anna.post("batches", {"transfers": rows}), 400, "validation_error")

    assert [(e["field"], e["code"]) for e in problem["errors"]] == [
        ("transfers.1.amount_minor", "int_type"),
        ("transfers.2", "model_type"),
        ("transfers.3.currency", "currency_mismatch"),
    ]


def test_an_atomic_batch_with_refused_rows_keeps_nothing(bank: Any, assert_refused: Any) -> None:
    Account.objects.filter(id=bank.brunos.id).update(status="closed")

    problem = assert_refused(bank.as_anna.post("batches", {"transfers": [bank.body()]}), 422, "batch_refused")

    assert [(e["field"], e["code"]) for e in problem["errors"]] == [("transfers.0.credit_account", "account_closed")]


@pytest.mark.parametrize("earlier", [True, False])
def test_an_atomic_batch_does_not_reuse_an_external_id(bank: Any, assert_refused: Any, earlier: bool) -> None:
    rows = [bank.body(external_id="x")] if earlier else [bank.body(external_id="x"), bank.body(external_id="x")]
    if earlier:
        bank.as_anna.order(bank.body(external_id="x"))

    problem = assert_refused(bank.as_anna.post("batches", {"transfers": rows}), 422, "batch_refused", before=written())

    assert problem["errors"][0]["code"] == "external_id_reused"
    assert problem["errors"][0]["field"] == f"transfers.{len(rows) - 1}.external_id"


def test_the_good_rows_are_taken_when_the_batch_is_not_atomic(bank: Any) -> None:
    bank.as_anna.order(bank.body(external_id="old"))
    rows = [
        bank.body(), bank.body(amount_minor=0), bank.body(debit_account=str(bank.brunos.id), credit_account="no"),
        bank.body(external_id="old"), bank.body(external_id="new"), bank.body(external_id="new"), {},
    ]  # fmt: skip

    batch = bank.as_anna.post("batches", {"atomic": False, "transfers": rows}).json()

    assert (batch["accepted"], batch["status_counts"]) == (2, {"accepted": 2})
    assert [(row["field"], row["code"]) for row in batch["refused"]] == [
        ("transfers.1.amount_minor", "greater_than_equal"),
        ("transfers.2.debit_account", "account_not_found"),
        ("transfers.2.credit_account", "account_not_found"),
        ("transfers.3.external_id", "external_id_reused"),
        ("transfers.5.external_id", "external_id_reused"),
        *(
            (f"transfers.6.{name}", "required")
            for name in ("debit_account", "credit_account", "amount_minor", "currency")
        ),
    ]
    assert written() == (3, 1, 3)
    assert bank.as_anna.get(f"batches/{batch['id']}").json() == batch


def test_a_batch_is_one_request_that_was_accepted(bank: Any) -> None:
    def counted() -> float:
        return REGISTRY.get_sample_value("bankcore_stage_seconds_count", {"stage": "accept"}) or 0.0

    before, body = counted(), {"transfers": [bank.body(), bank.body()]}
    bank.as_anna.post("batches", body, idempotency_key="k")
    bank.as_anna.post("batches", body, idempotency_key="k")
    bank.as_anna.post("batches", {"transfers": [{}]})

    assert counted() == before + 1


def test_a_batch_without_one_good_row_is_refused(bank: Any, assert_refused: Any) -> None:
    body = {"atomic": False, "transfers": [bank.body(amount_minor=0)]}

    assert_refused(bank.as_anna.post("batches", body), 422, "batch_refused")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "validation_error"),
        ({"transfers": []}, 400, "validation_error"),
        ({"transfers": {}}, 400, "validation_error"),
        ({"transfers": [1], "atomic": "yes"}, 400, "validation_error"),
        ({"transfers": [1], "id": "x"}, 400, "validation_error"),
        ({"transfers": [1] * 10_001}, 413, "batch_too_large"),
        ({"transfers": ["x" * 9_000_000]}, 413, "payload_too_large"),
        ({"transfers": [{}] * 10_000}, 400, "validation_error"),
    ],
)
def test_a_wrong_batch_is_refused(bank: Any, assert_refused: Any, body: Any, status: int, code: str) -> None:
    problem = assert_refused(bank.as_anna.post("batches", body), status, code)

    assert len(problem["errors"]) <= 1001


def test_the_same_batch_again_gets_the_same_bytes(bank: Any, assert_refused: Any) -> None:
    body = {"atomic": False, "transfers": [bank.body(), bank.body(amount_minor=0)]}
    first = bank.as_anna.post("batches", body, idempotency_key="k")
    again = bank.as_anna.post("batches", body, idempotency_key="k")

    assert (again.status_code, again.content, again["Idempotent-Replayed"]) == (202, first.content, "true")
    other = bank.as_anna.post("batches", {"transfers": [bank.body()]}, idempotency_key="k")
    assert_refused(other, 422, "idempotency_key_reused", before=(1, 1, 1))


def test_a_batch_is_its_clients_only(bank: Any) -> None:
    batch_id = bank.as_anna.post("batches", {"transfers": [bank.body()]}).json()["id"]

    for path in (f"batches/{batch_id}", f"batches/{batch_id}/transfers"):
        assert bank.as_bruno.get(path).status_code == 404
        assert bank.as_staff.get(path).status_code == 200


def test_ten_thousand_rows_are_taken_in_as_few_statements_as_two(bank: Any, statements: list[str]) -> None:
    counts = []
    for number in (2, 10_000):
        rows = [bank.body(amount_minor=n + 1, external_id=f"{number}-{n}") for n in range(number)]
        statements.clear()
        response = bank.as_anna.post("batches", {"transfers": rows})
        counts.append(len(statements))
        assert response.json()["accepted"] == number

    assert Transfer.objects.count() == Event.objects.count() == 10_002
    # The first request also reads the caller's token.
    assert counts[1] <= counts[0]


def test_rows_come_as_lines_of_json(bank: Any) -> None:
    lines = "\n".join(json.dumps(bank.body(amount_minor=n, metadata={"n": n})) for n in (1, 2)) + "\n\n"

    response = bank.as_anna.post("batches", lines.encode(), content_type="application/x-ndjson")

    assert (response.status_code, response.json()["accepted"]) == (202, 2)


def test_rows_come_as_csv(bank: Any) -> None:
    accounts = f"{bank.annas.id},{bank.brunos.id}"
    lines = [
        "debit_account,credit_account,amount_minor,currency,reference,execute_on",
        f'{accounts},100,EUR,"rent, May",2099-01-01',
        f"{accounts},200,EUR,,",
        f"{accounts},1_000,EUR,,",
        f"{accounts},0,EUR,,",
    ]

    batch = bank.as_anna.post("batches?atomic=false", "\r\n".join(lines).encode(), content_type="text/csv").json()

    assert (batch["atomic"], batch["status_counts"]) == (False, {"accepted": 1, "scheduled": 1})
    assert [(row["field"], row["code"]) for row in batch["refused"]] == [
        ("transfers.2.amount_minor", "int_type"),
        ("transfers.3.amount_minor", "int_type"),
    ]
    assert list(Transfer.objects.order_by("id").values_list("amount_minor", "reference")) == [
        (100, "rent, May"), (200, ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content_type", "body", "code"),
    [
        ("application/x-ndjson", b"{}\n{", "validation_error"),
        ("application/x-ndjson", b"\n", "validation_error"),
        ("application/x-ndjson", b'{"a": "\\u0000"}', "validation_error"),
        ("text/csv", b"", "validation_error"),
        ("text/csv", b"amount_minor\n1,2\n", "validation_error"),
        ("text/csv", b"currency,currency\nEUR,EUR\n", "validation_error"),
        ("text/csv", b"currency,status\nEUR,posted\n", "validation_error"),
        ("text/csv", b'currency\n"EUR', "validation_error"),
        ("text/csv", b"currency\n\xff", "validation_error"),
        ("text/csv", b"currency\nE\x00R", "validation_error"),
        ("application/json", b'{"atomic": false, "transfers": [' + b"[" * 900 + b"]" * 900 + b"]}", None),
    ],
)
def test_wrong_rows_are_refused(bank: Any, assert_refused: Any, content_type: str, body: bytes, code: str) -> None:
    response = bank.as_anna.post("batches", body or b"\n", content_type=content_type, idempotency_key="k")

    assert_refused(response, 422 if code is None else 400, code or "batch_refused")


_HEAD = "debit_account,credit_account,amount_minor,currency,reference"
_LINE_1 = f"{_HEAD}\n".encode()


def _csv(bank: Any, *lines: str) -> bytes:
    accounts = f"{bank.annas.id},{bank.brunos.id}"
    return "\n".join([_HEAD, *(line.replace("@", accounts) for line in lines)]).encode()


def test_what_is_wrong_in_a_file_is_told_by_its_line(bank: Any) -> None:
    body = _csv(bank, "@,100,EUR,ok", "", '@,100,EUR,"two\nlines"', "@,0,EUR,", "@,1,EUR", "@,1,EUR,,,", "@,200,EUR,")

    batch = bank.as_anna.post("batches?atomic=false", body, content_type="text/csv").json()

    assert batch["accepted"] == 2
    assert [(row["field"], row["code"], row["message"].partition(":")[0]) for row in batch["refused"]] == [
        ("transfers.1.reference", "control_character", "Line 4"),
        ("transfers.2.amount_minor", "int_type", "Line 6"),
        ("transfers.3", "malformed_row", "Line 7"),
        ("transfers.4", "malformed_row", "Line 8"),
    ]


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        ("-5", "An amount is at least 1"), ("0", "An amount is at least 1"), ("05", "without leading zeros"),
        ("12.50", "no point and no comma"), ("12,50", "no point and no comma"), ("9" * 19, "at most 1000000000000000"),
        (" 5", "digits 0 to 9 alone"), ("+5", "digits 0 to 9 alone"), ("1_000", "digits 0 to 9 alone"),
        ("٣", "digits 0 to 9 alone"),
    ],
)  # fmt: skip
def test_an_amount_in_csv_is_told_what_is_wrong_with_it(
    bank: Any, assert_refused: Any, amount: str, message: str
) -> None:
    response = bank.as_anna.post("batches", _csv(bank, f'@,"{amount}",EUR,'), content_type="text/csv")

    (error,) = assert_refused(response, 400, "validation_error")["errors"]
    assert (error["field"], error["code"]) == ("transfers.0.amount_minor", "int_type")
    assert error["message"].startswith("Line 2: ")
    assert message in error["message"]


def test_an_empty_column_without_a_name_does_no_harm(bank: Any) -> None:
    body = _csv(bank, "@,100,EUR,a").replace(b"\n", b",\n") + b","

    assert bank.as_anna.post("batches", body, content_type="text/csv").json()["accepted"] == 1


@pytest.mark.parametrize(
    "content_type",
    ["text/csv; charset=UTF-8; header=present", 'text/csv; header=present;charset="utf-8"', "Text/CSV;header=present"],
)
def test_csv_may_say_that_its_first_line_names_the_columns(bank: Any, content_type: str) -> None:
    response = bank.as_anna.post("batches", _csv(bank, "@,100,EUR,"), content_type=content_type)

    assert (response.status_code, response.json()["accepted"]) == (202, 1)


@pytest.mark.parametrize(
    ("content_type", "detail"),
    [
        ("text/csv; header=absent", "send header=present"),
        ("text/csv; charset=latin-1; header=present", "Send text/csv in UTF-8"),
        ("text/csv; charset=utf-8; delimiter=x", "Send text/csv in UTF-8"),
        ("application/x-ndjson; header=present", "Send application/x-ndjson in UTF-8"),
        ("text/plain", "application/json, application/x-ndjson, text/csv"),
        ("", "application/json, application/x-ndjson, text/csv"),
    ],
)
def test_a_file_of_another_type_is_told_which_there_are(
    bank: Any, assert_refused: Any, content_type: str, detail: str
) -> None:
    response = bank.as_anna.post("batches", _csv(bank, "@,100,EUR,"), content_type=content_type)

    assert detail in assert_refused(response, 415, "unsupported_media_type")["detail"]


def test_a_broken_line_of_json_does_not_hide_the_others(bank: Any) -> None:
    good = json.dumps(bank.body())
    lines = [good, "", '{"debit_account": ', good, '{"a": "\\u0000"}', "[1,", "\x00"]

    response = bank.as_anna.post(
        "batches?atomic=false", "\r\n".join(lines).encode(), content_type="application/x-ndjson"
    )

    batch = response.json()
    assert (response.status_code, batch["accepted"]) == (202, 2)
    assert [(row["field"], row["code"], row["message"].partition(":")[0]) for row in batch["refused"]] == [
        ("transfers.1", "malformed_row", "Line 3"),
        ("transfers.3", "malformed_row", "Line 5"),
        ("transfers.4", "malformed_row", "Line 6"),
        ("transfers.5", "malformed_row", "Line 7"),
    ]
    # The line is the file's; which column, the parser knows.
    assert [row["message"] for row in batch["refused"][:2]] == [
        "Line 3: Expecting value, at column 19",
        "Line 5: A string holds NUL or a lone surrogate.",
    ]


@pytest.mark.parametrize("content_type", ["text/csv", "application/x-ndjson"])
def test_a_byte_order_mark_is_no_part_of_the_file(bank: Any, content_type: str) -> None:
    body = _csv(bank, "@,100,EUR,") if content_type == "text/csv" else json.dumps(bank.body()).encode()

    response = bank.as_anna.post("batches", b"\xef\xbb\xbf" + body, content_type=content_type)

    assert (response.status_code, response.json()["accepted"]) == (202, 1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"debit_account;credit_account;amount_minor\na;b;1\n", "Line 1: The columns are separated by ';'"),
        (b"debit_account\tcredit_account\na\tb\n", "Line 1: The columns are separated by '\\t'"),
        (b"currency\nEUR\nE\x00R\n", "Line 3: The text holds NUL."),
        (b"currency\nEUR\nEUR\n\xff\n", "Line 4: This is not UTF-8."),
        (_LINE_1 + b'EUR,a\nEUR,"open\nEUR,b\n', "Line 3: unexpected end of data."),
        (_LINE_1 + b'EUR,"a"b\n', "Line 2: ',' expected after '\"'."),
        (b"currency,currency\nEUR,EUR\n", "Line 1: It names a column twice."),
        (
            b"\n" + _LINE_1 + b"a,b,1,EUR,\n",
            "Line 1: It is empty. The names of the columns stand here: debit_account, ",
        ),
        (b"a,b,1,EUR\nc,d,2,EUR\n", "Line 1: It names no column that there is ('a', 'b', '1', 'EUR'); the first line "),
        (_LINE_1.upper(), "Line 1: It names no column that there is ('DEBIT_ACCOUNT', "),
        (_LINE_1.replace(b",", b", "), "Line 1: There is no column ' credit_account', ' amount_minor', "),
        (
            _LINE_1.replace(b"reference", b"Reference"),
            "Line 1: There is no column 'Reference'. Names are written exactly",
        ),
        (
            b"currency,amount_minor,status\n",
            "Line 1: There is no column 'status'. Without the column debit_account, credit",
        ),
        (
            _LINE_1.replace(b"reference", b"metadata"),
            "Line 1: metadata cannot come in CSV: leave the column out, or send",
        ),
    ],
)
def test_a_file_that_is_no_csv_is_told_where(bank: Any, assert_refused: Any, body: bytes, message: str) -> None:
    response = bank.as_anna.post("batches?atomic=false", body + b"row\n" * 30, content_type="text/csv")

    problem = assert_refused(response, 400, "validation_error")
    assert [(e["field"], e["code"]) for e in problem["errors"]] == [("body", "malformed_csv")]
    assert problem["errors"][0]["message"].startswith(message)


@pytest.mark.parametrize(("content_type", "line"), [("text/csv", b"EUR\n"), ("application/x-ndjson", b"{}\n")])
def test_a_file_of_too_many_rows_is_not_read_to_its_end(
    bank: Any, assert_refused: Any, content_type: str, line: bytes
) -> None:
    body = (_LINE_1 if content_type == "text/csv" else b"") + line * 10_001

    assert_refused(bank.as_anna.post("batches", body, content_type=content_type), 413, "batch_too_large")


def test_rows_that_are_wrong_all_over_do_not_fill_the_memory(bank: Any, assert_refused: Any) -> None:
    wide = {f"k{n}": 1 for n in range(60)}
    rows = [wide, bank.body(metadata=wide), *([{f"k{n}": 1 for n in range(40)}] * 3000)]

    tracemalloc.start()
    response = bank.as_anna.post("batches", {"transfers": rows})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    problem = assert_refused(response, 400, "validation_error")
    assert [(e["field"], e["code"]) for e in problem["errors"][:3]] == [
        ("transfers.0", "malformed_row"), ("transfers.1", "malformed_row"), ("transfers.2.debit_account", "required"),
    ]  # fmt: skip
    assert problem["errors"][-1]["code"] == "more_errors"
    assert peak < 100_000_000
