"""The incremental proof: what is new is proved at the cost of what is new, and what it finds stays until mended."""

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.utils import timezone

from accounts import increments
from accounts.chains import CHAINS
from accounts.models import JournalEntry, JournalLine, Proof
from accounts.proofs import PROOF_LOCK
from bankcore.identifiers import new_id
from bankcore.messaging import seal_checks, seals
from bankcore.messaging.seals import seal
from tests.accounts.increments_view import add_line, found, post, set_account
from tests.accounts.tampering import run, tamper
from transfers import books
from transfers.tasks import prove_books_task

pytestmark = pytest.mark.django_db(transaction=True)


# -- honest books ------------------------------------------------------------------------------------------------------


def test_an_increment_looks_at_what_is_new_and_says_so(two):
    post(*two)
    post(*two, reference="r:2")
    seal(CHAINS)

    result = books.prove_increment()

    assert result.balanced
    assert result.entries == 2
    proof = Proof.objects.first()
    assert (proof.kind, proof.entries, proof.named) == ("increment", 2, [])
    assert set(result.counts) == set(increments.NAMES) | set(books.CHECKS)
    assert books.prove_increment().entries == 0


def test_what_is_not_sealed_yet_is_left_to_the_next_increment(two):
    post(*two)
    assert books.prove_increment().entries == 0

    seal(CHAINS)
    assert books.prove_increment().entries == 1


def test_an_increment_goes_on_behind_a_full_proof(two):
    post(*two)
    seal(CHAINS)
    assert books.prove().balanced

    assert books.prove_increment().entries == 0


def test_a_long_way_is_gone_in_steps(accounts, monkeypatch):
    monkeypatch.setattr(increments, "STEP_IDS_MAX", 3)
    alice, bob = accounts(1000, 500)
    for number in range(10):
        post(alice, bob, f"r:{number}", 1)
    seal(CHAINS)

    assert books.prove_increment().entries == 12
    assert books.prove_increment().entries == 0


def test_time_that_runs_out_leaves_the_rest_to_the_next_increment(two, monkeypatch):
    post(*two)
    seal(CHAINS)
    monkeypatch.setattr(increments, "SECONDS_MAX", 0)
    assert books.prove_increment().entries == 0
    monkeypatch.undo()

    assert books.prove_increment().entries == 1


def test_only_one_increment_runs_at_a_time(two):
    with psycopg.connect(**connection.get_connection_params()) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", (PROOF_LOCK,))
        assert books.prove_increment() is None
        with pytest.raises(CommandError, match="running"):
            call_command("prove_books", incremental=True)


def test_the_task_proves_the_increment(two):
    prove_books_task()

    assert Proof.objects.first().kind == "increment"


# -- each check can fail -----------------------------------------------------------------------------------------------


def test_a_new_entry_without_lines_is_named(two):
    entry = JournalEntry.objects.create(reference="r:9", currency="EUR")

    assert found() == [("entry_unbalanced", str(entry.pk))]


def test_a_new_line_that_unbalances_an_old_entry_is_named(two):
    alice, _ = two
    old = JournalEntry.objects.order_by("id").first()
    add_line(old.pk, alice.pk, "C", 5, 1005, 2)
    set_account(alice, posted_minor=1005, lines=2)

    assert found() == [("entry_unbalanced", str(old.pk))]


def test_a_new_line_without_an_entry_is_named(two):
    alice, _ = two
    line = add_line(987_654_321, alice.pk, "C", 5, 1005, 2)
    set_account(alice, posted_minor=1005, lines=2)

    assert ("line_without_entry", str(line)) in found()


def test_new_lines_without_an_account_are_named(two):
    nobody = new_id()
    entry = JournalEntry.objects.create(reference="r:9", currency="EUR")
    lines = [add_line(entry.pk, nobody, "D", 5, -5, 1), add_line(entry.pk, nobody, "C", 5, 0, 2)]

    assert found() == sorted(("line_without_account", str(line)) for line in lines)


def test_new_lines_in_another_currency_are_named(two):
    alice, bob = two
    entry = JournalEntry.objects.create(reference="r:9", currency="USD")
    lines = [add_line(entry.pk, alice.pk, "D", 5, 995, 2), add_line(entry.pk, bob.pk, "C", 5, 505, 2)]
    set_account(alice, posted_minor=995, lines=2)
    set_account(bob, posted_minor=505, lines=2)

    assert found() == sorted(("line_in_other_currency", str(line)) for line in lines)


def test_a_reference_posted_twice_is_named(two):
    post(*two)
    seal(CHAINS)
    assert books.prove_increment().balanced
    with transaction.atomic():
        run("SET CONSTRAINTS ALL IMMEDIATE")
        run("ALTER TABLE accounts_journalentry DROP CONSTRAINT journalentry_reference")
        again = JournalEntry.objects.create(reference="r:1", currency="EUR")
        seal(CHAINS)
        named = sorted((v.check, v.subject) for v in books.prove_increment().violations)
        transaction.set_rollback(True)

    assert named == [("entry_unbalanced", str(again.pk)), ("reference_twice", "r:1")]


def test_a_running_balance_that_does_not_follow_is_named(two):
    post(*two)
    line = JournalLine.objects.get(account=two[0], number=2)
    tamper("UPDATE accounts_journalline SET balance_after_minor = 901 WHERE id = %s", line.pk)

    assert found() == [("balance_differs", str(two[0].pk)), ("running_balance_broken", str(line.pk))]


def test_a_gap_in_the_numbers_is_named(two):
    post(*two)
    tamper("UPDATE accounts_journalline SET number = 3 WHERE account_id = %s AND number = 2", two[0].pk)

    assert found() == [("line_numbers_broken", str(two[0].pk))]


def test_a_posted_transfer_without_an_entry_is_named(two, make_transfer):
    transfer = make_transfer(*two, status="posted", posted_at=timezone.now())

    assert found() == [("posted_without_entry", str(transfer.pk))]


def test_an_entry_of_a_transfer_that_is_not_posted_is_named(two, make_transfer):
    transfer, missing = make_transfer(*two, 10), new_id()
    # What only looks like an id must not stop the proof.
    nonsense = ("nonsense", "zzzzzzzz-zzzz-zzzz-zzzz-zzzzzzzzzzzz", "-1234567-1234-1234-1234-123456789abc")
    references = [f"transfer:{which}" for which in (transfer.pk, missing, *nonsense)]
    for reference in references:
        post(*two, reference=reference, amount=10)

    expected = sorted(("entry_without_posted", reference) for reference in references)
    assert found() == expected
    assert sorted((v.check, v.subject) for v in books.prove().violations) == expected


@pytest.mark.parametrize("wrong", ["amount", "direction"])
def test_an_entry_that_moved_something_else_is_named(two, make_transfer, wrong):
    alice, bob = two
    transfer = make_transfer(alice, bob, 10, status="posted", posted_at=timezone.now())
    debit, credit, amount = (alice, bob, 9) if wrong == "amount" else (bob, alice, 10)
    post(debit, credit, f"transfer:{transfer.pk}", amount)

    assert found() == [("entry_differs_from_transfer", str(transfer.pk))]


@pytest.mark.parametrize("touched", [True, False])
def test_rival_balance_truth_in_a_cache_a_balance_without_a_line_is_named(two, touched, monkeypatch):
    if touched:
        monkeypatch.setattr(increments, "SWEEPS", ())
        post(*two)
    set_account(two[0], posted_minor=5_000)

    assert found() == [("balance_differs", str(two[0].pk))]


def test_a_miscounted_account_and_one_beyond_its_limit_are_named(two):
    set_account(two[0], lines=7)
    with transaction.atomic():
        run("SET CONSTRAINTS ALL IMMEDIATE")
        run("ALTER TABLE accounts_account DROP CONSTRAINT account_limit")
        set_account(two[1], held_minor=501)
        named = found()
        transaction.set_rollback(True)

    assert named == [("limit_passed", str(two[1].pk)), ("line_numbers_broken", str(two[0].pk))]


def test_untouched_accounts_are_looked_at_in_turn(accounts, monkeypatch):
    monkeypatch.setattr(increments, "SWEPT_ROWS", 2)
    opened = accounts(*[100] * 6)
    seal(CHAINS)
    assert books.prove_increment().balanced
    last = max(opened, key=lambda account: account.pk)
    set_account(last, posted_minor=99)

    looks = 0
    while books.prove_increment().balanced:
        looks += 1
        assert looks < 5
    assert [(v.check, v.subject) for v in books.prove_increment().violations] == [("balance_differs", str(last.pk))]


def test_untouched_transfers_are_looked_at_in_turn(two, make_transfer):
    transfer = make_transfer(*two)
    assert found() == []
    tamper("UPDATE transfers_transfer SET status = 'posted', posted_at = now() WHERE id = %s", transfer.pk)

    assert found() == [("posted_without_entry", str(transfer.pk))]


def test_old_blocks_are_looked_at_in_turn(two, monkeypatch):
    monkeypatch.setattr(seals, "BLOCK_ROWS_MAX", 2)
    monkeypatch.setattr(increments, "SWEPT_BLOCKS", 1)
    for number in range(5):
        post(*two, reference=f"r:{number}", amount=1)
    seal(CHAINS)
    assert found() == []
    tamper("UPDATE accounts_journalentry SET created_at = created_at - interval '1 day' WHERE reference = 'r:3'")
    entry = JournalEntry.objects.get(reference="r:3").pk

    looks = 0
    while not (named := found()):
        looks += 1
        assert looks < 10
    assert named == [("sealed_row_changed", f"accounts_journalentry {entry}")]


# -- what it costs -----------------------------------------------------------------------------------------------------


def test_rival_balance_by_summing_all_entries_no_statement_of_an_increment_reads_a_whole_table(two, statements):
    post(*two)
    seal(CHAINS)
    statements.clear()
    books.prove_increment()
    asked = [sql for sql in statements if sql.lstrip().startswith(("SELECT", "WITH"))]
    values = {"after": 0, "upto": 10**9}

    plans = []
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"
        )
        for check in (*increments.NEW_CHECKS, *books.NEW_CHECKS):
            cursor.execute(f"EXPLAIN {check.sql}", values)
            plans.append("\n".join(line for (line,) in cursor.fetchall()))
        for sweep in (*increments.SWEEPS, *books.SWEEPS):
            part = f"SELECT id FROM {sweep.table} ORDER BY id LIMIT 10"
            cursor.execute(f"EXPLAIN WITH swept AS MATERIALIZED ({part}) {sweep.sql}", values)
            plans.append("\n".join(line for (line,) in cursor.fetchall()))

    assert len(plans) == 8
    assert [plan for plan in plans if "Seq Scan" in plan] == []
    assert len(asked) < 40


def test_an_increment_costs_the_same_number_of_statements_whatever_the_history(two, statements):
    def cost():
        post(*two, reference=f"r:{new_id()}", amount=1)
        seal(CHAINS)
        statements.clear()
        assert books.prove_increment().entries == 1
        return len(statements)

    before = cost()
    for number in range(60):
        post(*two, reference=f"r:{number}", amount=1)
    seal(CHAINS)
    books.prove_increment()

    assert cost() == before


def test_every_check_has_a_test_that_makes_it_fail():
    tested = {
        "entry_unbalanced", "line_without_entry", "line_without_account", "line_in_other_currency", "balance_differs",
        "limit_passed", "line_numbers_broken", "running_balance_broken", "reference_twice", "posted_without_entry",
        "entry_without_posted", "entry_differs_from_transfer",
    }  # fmt: skip

    assert (increments.NAMES | set(books.CHECKS)) - set(seal_checks.CHECKS) == tested
