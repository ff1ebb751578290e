"""Files at the command line: lots, repetitions, what is refused and where it stands, and how the command exits."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from django.conf import settings as configured
from django.core.management import CommandError, call_command
from django.db import connection

from accounts.models import ApiToken, Customer
from bankcore.messaging import backpressure
from bankcore.messaging.models import AuditEntry, Event
from transfers import imports
from transfers.models import Batch, Transfer

pytestmark = pytest.mark.django_db
_HEAD = b"debit_account,credit_account,amount_minor,currency\n"
NAMES = ("debit_account", "credit_account", "amount_minor", "currency", "external_id")


@pytest.fixture
def shop(accounts):
    """A client, its customer's account, and somebody else's."""
    anna, bruno = Customer.objects.create(name="Anna"), Customer.objects.create(name="Bruno")
    ApiToken.objects.create_key(name="shop", scopes=["transfers:write"], customer=anna)
    (annas,), (brunos,) = accounts(0, customer=anna), accounts(0, customer=bruno)
    return SimpleNamespace(anna=anna, bruno=bruno, annas=str(annas.id), brunos=str(brunos.id))


@pytest.fixture
def write(tmp_path, shop):
    """Write a file of rows; a row is the amount of a transfer from Anna to Bruno, or all its cells."""

    def make(rows, name="file.csv"):
        orders = [
            dict(zip(NAMES, row if isinstance(row, tuple) else (shop.annas, shop.brunos, row, "EUR", ""), strict=False))
            for row in rows
        ]
        path, text = tmp_path / name, io.StringIO()
        if path.suffix == ".csv":
            sheet = csv.DictWriter(text, NAMES)
            sheet.writeheader()
            sheet.writerows(orders)
        else:
            plain = [{k: v for k, v in order.items() if v != ""} for order in orders]
            lines = [json.dumps(order) for order in plain]
            text.write(json.dumps({"transfers": plain}) if path.suffix == ".json" else "\n".join(lines))
        path.write_text(text.getvalue(), newline="")
        return path

    return make


@pytest.fixture
def run(shop):
    """Run the command; answer its exit code, what --json printed (or all output), and what it said beside."""

    def call(path, *options, client="shop"):
        out, err, code = io.StringIO(), io.StringIO(), 0
        named = ["--client", client] if client else []
        try:
            call_command("import_batch", str(path), *named, "--json", *map(str, options), stdout=out, stderr=err)
        except SystemExit as end:
            code = end.code
        except CommandError as error:
            return error.returncode, {}, str(error)
        return code, json.loads(out.getvalue()), err.getvalue()

    return call


def taken():
    return Transfer.objects.count(), Batch.objects.count(), Event.objects.filter(type="transfer.accepted").count()


def test_a_large_file_goes_in_lots_of_as_many_statements_each_and_once(write, run, statements, monkeypatch):
    path, per_lot, take = write(range(1, 25_001)), [], imports.Import.take

    def counted(job, lot):
        statements.clear()
        outcome = take(job, lot)
        per_lot.append(len(statements))
        return outcome

    monkeypatch.setattr(imports.Import, "take", counted)
    code, told, _ = run(path)
    assert (code, told["rows"], told["accepted"], told["refused"], told["replayed"]) == (0, 25_000, 25_000, 0, 0)
    assert len(told["batches"]) == 3
    assert taken() == (25_000, 3, 25_000)
    assert len(set(per_lot)) == 1
    assert per_lot[0] < 15
    assert Counter(Batch.objects.values_list("accepted", flat=True)) == {10_000: 2, 5_000: 1}

    again = run(path)
    assert again[:2] == (0, told | {"accepted": 0, "replayed": 25_000})
    assert "Lot 2 of 3 was taken in before." in again[2]
    assert taken() == (25_000, 3, 25_000)


@pytest.mark.parametrize("how", ["interrupted", "crashed"])
def test_what_ended_between_lots_goes_on_where_it_stopped(write, run, settings, monkeypatch, how):
    settings.BATCH_TRANSFERS_MAX = 2
    path, record, calls = write([1, 2, 3, 4, 5]), imports.audit.record, []

    def end_in_the_second(**entry):
        calls.append(entry)
        if how == "crashed" and len(calls) == 2:
            raise RuntimeError("no power")
        record(**entry)
        if how == "interrupted" and len(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(imports.audit, "record", end_in_the_second)
    if how == "crashed":
        with pytest.raises(RuntimeError):
            run(path)
    else:
        code, told, beside = run(path)
        assert (code, told["accepted"]) == (130, 2)
        assert "Stopped with 2 of 5 rows done." in beside
        assert "Repeat the command" in beside
    assert taken() == (2, 1, 2)
    monkeypatch.setattr(imports.audit, "record", record)

    code, told, beside = run(path)
    assert (code, told["accepted"], told["replayed"], len(told["batches"])) == (0, 3, 2, 3)
    assert "Lot 1 of 3 was taken in before." in beside
    assert sorted(Transfer.objects.values_list("amount_minor", flat=True)) == [1, 2, 3, 4, 5]
    assert AuditEntry.objects.filter(action="batch.import").count() == 3


@pytest.mark.parametrize("name", ["file.csv", "file.ndjson", "file.json"])
def test_bad_rows_are_named_by_their_place_in_the_file(write, run, shop, settings, tmp_path, name):
    settings.BATCH_TRANSFERS_MAX = 3
    stranger = (shop.brunos, shop.annas, 7, "EUR", "")
    bad = (shop.annas, shop.brunos, 0, "XXX", "")
    path, report = write([1, 2, stranger, 3, bad, 4, bad, bad, bad], name), tmp_path / "refused.csv"
    code, told, beside = run(path, "--errors", report)

    # CSV has its names in line 1.
    first, unit = (1, "line") if name == "file.csv" else (0, "line" if name == "file.ndjson" else "row")
    assert code == 1
    assert (told["accepted"], told["refused"], len(told["batches"])) == (4, 5, 2)
    assert f"{unit} {3 + first}: debit_account: " in beside
    rows = list(csv.DictReader(report.open(newline="")))
    assert {(int(row["place"]) - first, row["field"]) for row in rows} == {
        (3, "debit_account"), *((place, field) for place in (5, 7, 8, 9) for field in ("amount_minor", "currency")),
    }  # fmt: skip
    assert rows[0]["code"] == "account_not_found"
    # The lots that are in answer as they did; the last, of which nothing is in, is tried again.
    assert run(path)[:2] == (1, told | {"accepted": 0, "replayed": 4})
    assert taken() == (4, 2, 4)


def test_few_errors_are_shown_and_all_are_written_down(write, run, tmp_path):
    path, report = write([1, *[0] * 1500]), tmp_path / "refused.csv"
    code, told, beside = run(path, "--errors", report)
    assert (code, told["accepted"], told["refused"]) == (1, 1, 1500)
    assert beside.count("amount_minor") == 20
    assert "... and 1,480 more errors" in beside
    assert len(report.read_text().splitlines()) == 1501
    assert len(Batch.objects.get().refused) == 1001


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (None, "cannot be read: No such file"),
        (b"", "There is no row."),
        (b"debit_account;credit_account;amount_minor\n", "Line 1: The columns are separated by ';'"),
        (b"debit_account,currency\nx,EUR\n", "Line 1: Without the column credit_account, amount_minor there is no"),
        (_HEAD + b"x,EUR\nx,\0EUR\n", "Line 3: The text holds NUL."),
        (_HEAD + b"x,EUR\nx,\xff\n", "Line 3: This is not UTF-8."),
        ("debit_account,currency\n".encode("utf-16"), "Line 1: This is not UTF-8."),
        (_HEAD + b'"x\n' + b"y\n" * 40_000, "a quote may not be closed"),
        (b"debit_account,debit_account\n", "names a column twice"),
    ],
)
def test_a_file_that_cannot_be_read_to_its_end_is_not_begun(run, settings, tmp_path, body, said):
    settings.BATCH_TRANSFERS_MAX = 1
    path = tmp_path / "file.csv"
    if body is not None:
        path.write_bytes(body)
    code, _, beside = run(path)
    assert code == 2
    assert said in beside
    assert taken() == (0, 0, 0)


@pytest.mark.parametrize("name", ["file.csv", "file.jsonl", "file.json"])
def test_a_byte_order_mark_and_other_line_ends_do_no_harm(write, run, name):
    path = write([1, 2], name)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert run(path)[:1] == (0,)
    assert taken() == (2, 1, 2)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_lines_of_csv_end_in_a_carriage_return_alone_as_well(write, run, settings, at):
    """However long the file is, and wherever what is read at once ends."""
    path = write([1, 2, 3])
    rows = path.read_bytes().replace(b"\r\n", b"\n")
    # The names of the columns count with the first row.
    settings.REQUEST_BYTES_MAX = sum(map(len, rows.splitlines(keepends=True)[:2])) + at
    path.write_bytes(rows.replace(b"\n", b"\r"))
    assert run(path)[:1] == (0,)
    assert taken() == (3, 1, 3)
    path.write_bytes(rows.replace(b"\n", b"\r") + b"x,\0\r")
    assert "Line 5: The text holds NUL." in run(path)[2]


def test_atomic_is_for_files_that_fit_one_batch(write, run, settings):
    bad = write([1, 2, 0])
    code, told, _ = run(bad, "--atomic")
    assert (code, told["accepted"], told["refused"]) == (1, 0, 3)
    assert taken() == (0, 0, 0)
    settings.BATCH_TRANSFERS_MAX = 2
    code, _, beside = run(bad, "--atomic")
    assert code == 2
    assert "3 rows, which is 2 batches" in beside


def test_a_dry_run_finds_what_is_wrong_and_writes_nothing(write, run, shop):
    run(write([(shop.annas, shop.brunos, 1, "EUR", "x")]))
    before = taken(), AuditEntry.objects.count()
    path = write([1, 0, (shop.annas, shop.brunos, 2, "EUR", "x")], "other.csv")
    code, told, beside = run(path, "--dry-run")
    assert (code, told["accepted"], told["refused"], told["batches"]) == (1, 1, 2, [])
    assert "line 4: external_id" in beside
    assert (taken(), AuditEntry.objects.count()) == before


def test_the_same_file_is_meant_again_with_a_label(write, run):
    path = write([1])
    for number, options in enumerate([[], ["--label", "december"], ["--label", "december"]]):
        code, told, _ = run(path, *options)
        assert (code, told["replayed"]) == (0, int(number == 2))
    assert taken() == (2, 2, 2)


def test_other_limits_or_ways_do_not_take_a_begun_file_twice(write, run, settings):
    settings.BATCH_TRANSFERS_MAX = 2
    path = write([0, 0, 3, 4])
    run(path)
    assert "BATCH_TRANSFERS_MAX" not in run(path)[2]
    settings.BATCH_TRANSFERS_MAX = 4
    code, _, beside = run(path)
    assert code == 2
    assert "BATCH_TRANSFERS_MAX=2 " in beside
    settings.BATCH_TRANSFERS_MAX = 2
    one = write([3], "one.csv")
    assert run(one)[0] == 0
    code, _, beside = run(one, "--atomic")
    assert code == 2
    assert "as before" in beside
    assert taken() == (3, 2, 3)


def test_it_waits_while_the_gate_is_shut(write, run, settings, monkeypatch):
    settings.RETRY_AFTER_SECONDS_MAX = 1
    waiting, gate, sleep = [10**7], backpressure.gate, time.sleep
    stages = ("risk", "posting")

    def read():
        return backpressure.Measured(dict.fromkeys(stages, waiting[0]), dict.fromkeys(stages, 0))

    def sleep_while_work_is_done(seconds):
        sleep(seconds)
        waiting[0] = 0
        gate.refresh()

    for name, value in (("probe", read), ("_drains", {}), ("_view", None)):
        monkeypatch.setattr(gate, name, value)
    gate.refresh()
    monkeypatch.setattr(time, "sleep", sleep_while_work_is_done)
    code, told, beside = run(write([1]))
    assert (code, told["accepted"]) == (0, 1)
    assert "Too much work is waiting: lot 1 is tried again in 1 s." in beside


def test_only_a_client_with_the_scope_takes_part(write, run, shop):
    path = write([1])
    code, _, beside = run(path, client="stall")
    assert code == 2
    assert "manage.py issue_token --client stall" in beside
    ApiToken.objects.create_key(name="reader", scopes=["transfers:read"], customer=shop.anna)
    assert "has the scope transfers:write" in run(path, client="reader")[2]
    ApiToken.objects.create_key(name="shop", scopes=["transfers:write"], customer=shop.bruno)
    assert "Give --customer" in run(path)[2]
    assert run(path, "--customer", shop.bruno.id)[0] == 1
    assert taken() == (0, 0, 0)
    assert run(path, "--customer", shop.anna.id)[0] == 0
    ApiToken.objects.filter(name="shop").update(revoked=True)
    assert run(path)[0] == 2


def test_without_a_client_it_is_the_banks_own_and_debits_every_account(write, run, shop):
    rows = [(shop.annas, shop.brunos, 1, "EUR", "x"), (shop.brunos, shop.annas, 2, "EUR", "")]
    path = write(rows)
    code, told, _ = run(path, client=None)
    assert (code, told["accepted"]) == (0, 2)
    again = run(path, client=None)
    assert again[:2] == (0, told | {"accepted": 0, "replayed": 2})
    assert taken() == (2, 1, 2)
    entry = AuditEntry.objects.get(action="batch.import")
    assert (Batch.objects.get().client, entry.details["client"]) == ("import@bank", "import@bank")
    # Its keys and external_ids are not those of a client that somebody happens to call the same.
    issue = {"scopes": "staff transfers:write", "stdout": io.StringIO()}
    with pytest.raises(CommandError, match="no @"):
        call_command("issue_token", client="import@bank", **issue)
    call_command("issue_token", client="import", **issue)
    assert run(write(rows[:1], "one.csv"), client="import")[:1] == (0,)
    assert "--customer" in run(path, "--customer", shop.anna.id, client=None)[2]


@pytest.mark.parametrize("first", ["shop", None])
def test_a_file_that_came_in_for_another_does_not_move_its_money_again(write, run, first):
    path, second = write([1]), None if first else "shop"
    assert run(path, client=first)[0] == 0
    code, _, beside = run(path, client=second)
    assert code == 2
    assert ("for the client shop@" if first else "for the bank itself (without --client)") in beside
    assert taken() == (1, 1, 1)
    assert run(path, "--label", "december", client=second)[0] == 0
    assert taken() == (2, 2, 2)


@pytest.mark.django_db(transaction=True)
def test_the_exit_code_and_the_output_are_for_programs(write):
    """As a program runs it, from standard input, past the real gate."""
    path = urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{connection.settings_dict['NAME']}").geturl()
    with write([1, 0, 2], "file.ndjson").open("rb") as rows:
        done = subprocess.run(
            [sys.executable, "manage.py", "import_batch", "-", "--format", "ndjson", "--client", "shop", "--json"],
            stdin=rows, capture_output=True, cwd=configured.BASE_DIR, env={**os.environ, "DATABASE_URL": path},
            timeout=120, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["accepted"] == 2
    assert "line 2: amount_minor" in done.stderr
    assert taken() == (2, 1, 2)
