"""The proof of the books: whatever is tampered with is named, and nothing else is."""

import json

import pytest
from django.core.management import call_command
from django.db import transaction
from django.utils import timezone

from accounts import books, ledger
from accounts.models import Account, JournalEntry, JournalLine, Proof
from bankcore.identifiers import new_id
from bankcore.messaging import seal_checks
from tests.accounts.tampering import run, tamper
from transfers import books as transfer_books
from transfers.models import Transfer

ALL_CHECKS = {*books.CHECKS, *transfer_books.CHECKS, *seal_checks.CHECKS}

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def books_of_two(accounts, make_transfer):
    """Alice and Bob with two posted entries, in one transaction that is undone with all that was tampered with."""
    with transaction.atomic():
        # The proof asks for this level, and a transaction can choose it only before its first query.
        run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        alice, bob = accounts(1000, 500)
        ledger.post(
            [
                ledger.Movement("r:1", alice.pk, bob.pk, 100, "EUR"),
                ledger.Movement("r:2", alice.pk, bob.pk, 70, "EUR"),
            ]
        )
        yield alice, bob
        transaction.set_rollback(True)


def found():
    result = transfer_books.prove()
    assert {check: count for check, count in result.counts.items() if count} == {
        check: len([v for v in result.violations if v.check == check]) for check in {v.check for v in result.violations}
    }
    return sorted((violation.check, violation.subject) for violation in result.violations)


def write_by_hand(entry_id, debit, credit, amount):
    """Write two lines and both balances without a fault in themselves: only what the caller makes wrong is wrong."""
    sql = """
        INSERT INTO accounts_journalline (entry_id, account_id, number, side, amount_minor, balance_after_minor)
        SELECT %s, a.id, a.lines + 1, s.side, %s, a.posted_minor + s.signed
          FROM (VALUES (%s::uuid, 'D', -(%s::bigint)), (%s::uuid, 'C', %s::bigint)) AS s(id, side, signed)
          JOIN accounts_account a USING (id)"""
    tamper(sql, entry_id, amount, debit.pk, amount, credit.pk, amount)
    tamper(
        "UPDATE accounts_account SET lines = lines + 1, posted_minor = posted_minor - %s WHERE id = %s",
        amount,
        debit.pk,
    )
    tamper(
        "UPDATE accounts_account SET lines = lines + 1, posted_minor = posted_minor + %s WHERE id = %s",
        amount,
        credit.pk,
    )
    return sorted(
        str(pk) for pk in JournalLine.objects.filter(entry_id=entry_id).order_by("-id")[:2].values_list("pk", flat=True)
    )


def test_books_that_nobody_touched_balance(books_of_two):
    result = transfer_books.prove()

    assert result.balanced
    assert result.entries == 4
    assert set(result.counts) == ALL_CHECKS
    assert set(result.counts.values()) == {0}
    assert (Proof.objects.get().entries, Proof.objects.get().violations) == (4, result.counts)


def test_a_proof_that_is_not_kept_leaves_no_row(books_of_two):
    assert transfer_books.prove(keep=False).balanced
    assert Proof.objects.count() == 0


def test_an_entry_without_lines_is_named(books_of_two):
    entry = JournalEntry.objects.create(reference="r:3", currency="EUR")

    assert found() == [("entry_unbalanced", str(entry.pk))]


def test_entries_whose_lines_do_not_add_up_are_named(books_of_two):
    first, second = (JournalEntry.objects.get(reference=reference) for reference in ("r:1", "r:2"))

    tamper(
        "UPDATE accounts_journalline SET entry_id = %s + %s - entry_id WHERE side = 'C' AND entry_id IN (%s, %s)",
        first.pk, second.pk, first.pk, second.pk,
    )  # fmt: skip

    assert found() == sorted([("entry_unbalanced", str(first.pk)), ("entry_unbalanced", str(second.pk))])


def test_lines_of_no_entry_are_named(books_of_two):
    lines = write_by_hand(987_654_321, *books_of_two, 10)

    assert found() == [("line_without_entry", line) for line in lines]


def test_lines_of_no_account_are_named(books_of_two):
    entry = JournalEntry.objects.create(reference="r:3", currency="EUR")
    nobody = new_id()

    tamper(
        "INSERT INTO accounts_journalline (entry_id, account_id, number, side, amount_minor, balance_after_minor)"
        " VALUES (%s, %s, 1, 'D', 5, -5), (%s, %s, 2, 'C', 5, 0)",
        entry.pk, nobody, entry.pk, nobody,
    )  # fmt: skip

    lines = JournalLine.objects.filter(account_id=nobody).values_list("pk", flat=True)
    assert found() == sorted(("line_without_account", str(line)) for line in lines)


def test_lines_in_another_currency_than_their_entry_are_named(books_of_two):
    entry = JournalEntry.objects.create(reference="r:3", currency="USD")
    lines = write_by_hand(entry.pk, *books_of_two, 10)

    assert found() == [("line_in_other_currency", line) for line in lines]


def test_a_currency_that_does_not_add_up_is_named_with_the_account_that_differs(books_of_two):
    alice, _ = books_of_two

    tamper("UPDATE accounts_account SET posted_minor = posted_minor + 1 WHERE id = %s", alice.pk)

    assert found() == [("balance_differs", str(alice.pk)), ("currency_unbalanced", "EUR")]


def test_balances_that_differ_from_their_lines_are_named(books_of_two):
    alice, bob = books_of_two

    tamper("UPDATE accounts_account SET posted_minor = posted_minor + 1 WHERE id = %s", alice.pk)
    tamper("UPDATE accounts_account SET posted_minor = posted_minor - 1 WHERE id = %s", bob.pk)

    assert found() == sorted([("balance_differs", str(alice.pk)), ("balance_differs", str(bob.pk))])


def test_an_account_beyond_its_limit_is_named(books_of_two):
    alice, _ = books_of_two
    run("SET CONSTRAINTS ALL IMMEDIATE")
    run("ALTER TABLE accounts_account DROP CONSTRAINT account_limit")

    tamper("UPDATE accounts_account SET held_minor = posted_minor + 1 WHERE id = %s", alice.pk)

    assert found() == [("limit_passed", str(alice.pk))]


def test_a_miscounted_account_is_named(books_of_two):
    alice, _ = books_of_two

    tamper("UPDATE accounts_account SET lines = lines + 1 WHERE id = %s", alice.pk)

    assert found() == [("line_numbers_broken", str(alice.pk))]


def test_a_gap_in_the_numbers_is_named(books_of_two):
    _, bob = books_of_two

    tamper("UPDATE accounts_journalline SET number = number + 1 WHERE account_id = %s AND number = 3", bob.pk)

    assert found() == [("line_numbers_broken", str(bob.pk))]


def test_a_running_balance_that_lies_is_named(books_of_two):
    alice, _ = books_of_two
    line = JournalLine.objects.get(account=alice, number=2)

    tamper("UPDATE accounts_journalline SET balance_after_minor = balance_after_minor + 1 WHERE id = %s", line.pk)

    assert found() == [("running_balance_broken", str(line.pk))]


def test_a_reference_that_was_posted_twice_is_named(books_of_two):
    run("SET CONSTRAINTS ALL IMMEDIATE")
    run("ALTER TABLE accounts_journalentry DROP CONSTRAINT journalentry_reference")
    again = JournalEntry.objects.create(reference="r:1", currency="EUR")
    write_by_hand(again.pk, *books_of_two, 100)

    assert found() == [("reference_twice", "r:1")]


def test_a_posted_transfer_without_an_entry_is_named(books_of_two, make_transfer):
    transfer = make_transfer(*books_of_two, status="posted", posted_at=timezone.now())

    assert found() == [("posted_without_entry", str(transfer.pk))]


def test_an_entry_of_a_transfer_that_is_not_posted_is_named(books_of_two, make_transfer):
    alice, bob = books_of_two
    transfer = make_transfer(alice, bob, 10)
    missing = new_id()

    ledger.post([ledger.Movement(f"transfer:{pk}", alice.pk, bob.pk, 10, "EUR") for pk in (transfer.pk, missing)])

    assert found() == sorted(("entry_without_posted", f"transfer:{pk}") for pk in (transfer.pk, missing))


@pytest.mark.parametrize("wrong", ["amount", "direction"])
def test_an_entry_that_moved_something_else_than_was_asked_for_is_named(books_of_two, make_transfer, wrong):
    alice, bob = books_of_two
    transfer = make_transfer(alice, bob, 10, status="posted", posted_at=timezone.now())
    debit, credit, amount = (alice, bob, 9) if wrong == "amount" else (bob, alice, 10)

    ledger.post([ledger.Movement(f"transfer:{transfer.pk}", debit.pk, credit.pk, amount, "EUR")])

    assert found() == [("entry_differs_from_transfer", str(transfer.pk))]


def test_every_check_has_its_tampering():
    tested = {
        "entry_unbalanced", "line_without_entry", "line_without_account", "line_in_other_currency",
        "currency_unbalanced", "balance_differs", "limit_passed", "line_numbers_broken", "running_balance_broken",
        "reference_twice", "posted_without_entry", "entry_without_posted", "entry_differs_from_transfer",
    }  # fmt: skip

    assert {**books.CHECKS, **transfer_books.CHECKS}.keys() == tested


def test_the_command_prints_the_proof_as_json(books_of_two, capsys):
    call_command("prove_books", json=True)

    printed = json.loads(capsys.readouterr().out)
    assert (printed["books"], printed["entries"], printed["violations"]) == ("balanced", 4, [])
    assert printed["checks"].keys() == ALL_CHECKS


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_exits_with_1_and_names_the_culprit(books_of_two, capsys, as_json):
    alice, _ = books_of_two
    tamper("UPDATE accounts_account SET lines = lines + 1 WHERE id = %s", alice.pk)

    with pytest.raises(SystemExit) as ended:
        call_command("prove_books", json=as_json)

    assert ended.value.code == 1
    out = capsys.readouterr().out
    detail = "4 lines counted, 3 there, last number 3"
    if as_json:
        violation = {"check": "line_numbers_broken", "subject": str(alice.pk), "detail": detail}
        assert json.loads(out)["books"] == "unbalanced"
        assert json.loads(out)["violations"] == [violation]
    else:
        assert f"line_numbers_broken: {alice.pk}: {detail}" in out
        assert "THE BOOKS DO NOT BALANCE: 4 entries, 19 checks." in out


def test_a_proof_of_many_culprits_counts_all_and_names_a_hundred(books_of_two):
    JournalEntry.objects.bulk_create(JournalEntry(reference=f"empty:{i}", currency="EUR") for i in range(130))

    result = transfer_books.prove()

    assert result.counts["entry_unbalanced"] == 130
    assert len(result.violations) == 100
    assert Account.objects.filter(posted_minor=830).count() == 1
    assert Transfer.objects.count() == 0
