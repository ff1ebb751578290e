"""Worked examples of the ledger, and what the database refuses whoever asks."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import IntegrityError, connection, transaction

from accounts import ledger
from accounts.models import Account, JournalEntry, JournalLine
from bankcore.identifiers import new_id

pytestmark = pytest.mark.django_db

NEVER = "rows of this table are never changed or removed"


def pay(debit, credit, amount, reference, currency="EUR"):
    return ledger.Movement(reference, debit.pk, credit.pk, amount, currency)


def balances(*accounts):
    found = Account.objects.in_bulk([account.pk for account in accounts])
    return [found[account.pk].posted_minor for account in accounts]


def lines_of(account):
    lines = JournalLine.objects.filter(account=account).order_by("number")
    return list(lines.values_list("number", "side", "amount_minor", "balance_after_minor"))


def run(statement):
    with connection.cursor() as cursor:
        # TRUNCATE does not go along with foreign keys that are still to be checked.
        cursor.execute(f"SET CONSTRAINTS ALL IMMEDIATE; {statement}")


def write_lines(entry, *lines):
    """Write (account, side, amount) lines as a program that goes around the ledger would."""
    JournalLine.objects.bulk_create(
        JournalLine(
            entry_id=entry.pk, account=account, number=100 + i, side=side, amount_minor=amount, balance_after_minor=0
        )
        for i, (account, side, amount) in enumerate(lines)
    )


def test_a_movement_writes_one_entry_with_a_debit_and_a_credit(accounts):
    alice, bob = accounts(1000, 50)

    outcomes = ledger.post([pay(alice, bob, 300, "r:1")])

    assert outcomes == [""]
    assert balances(alice, bob) == [700, 350]
    assert lines_of(alice) == [(1, "C", 1000, 1000), (2, "D", 300, 700)]
    assert lines_of(bob) == [(1, "C", 50, 50), (2, "C", 300, 350)]
    entry = JournalEntry.objects.get(reference="r:1")
    assert (entry.currency, entry.lines.count()) == ("EUR", 2)


def test_a_refusal_in_the_middle_leaves_the_others_alone(accounts):
    alice, bob = accounts(100, 0)

    outcomes = ledger.post([pay(alice, bob, 60, "r:1"), pay(alice, bob, 41, "r:2"), pay(alice, bob, 40, "r:3")])

    assert outcomes == ["", "insufficient_funds", ""]
    assert balances(alice, bob) == [0, 100]
    assert lines_of(bob) == [(1, "C", 60, 60), (2, "C", 40, 100)]
    assert not JournalEntry.objects.filter(reference="r:2").exists()


def test_a_credit_funds_a_later_debit_of_the_same_batch(accounts):
    alice, bob, carol = accounts(100, 0, 0)

    outcomes = ledger.post([pay(bob, carol, 100, "r:1"), pay(alice, bob, 100, "r:2"), pay(bob, carol, 100, "r:3")])

    assert outcomes == ["insufficient_funds", "", ""]
    assert balances(alice, bob, carol) == [0, 0, 100]
    assert lines_of(bob) == [(1, "C", 100, 100), (2, "D", 100, 0)]


def test_a_second_post_of_a_reference_answers_already_posted(accounts):
    alice, bob = accounts(1000, 0)
    ledger.post([pay(alice, bob, 300, "r:1")])

    outcomes = ledger.post([pay(alice, bob, 300, "r:1"), pay(bob, alice, 5, "r:1")])

    assert outcomes == ["already_posted", "already_posted"]
    assert balances(alice, bob) == [700, 300]
    assert JournalEntry.objects.filter(reference="r:1").count() == 1


def test_a_reference_twice_in_one_batch_posts_once(accounts):
    alice, bob = accounts(1000, 0)

    outcomes = ledger.post([pay(alice, bob, 300, "r:1"), pay(alice, bob, 300, "r:1")])

    assert outcomes == ["", "already_posted"]
    assert balances(alice, bob) == [700, 300]


def test_a_refused_reference_may_be_posted_later(accounts):
    alice, bob = accounts(100, 500)
    assert ledger.post([pay(alice, bob, 300, "r:1")]) == ["insufficient_funds"]
    ledger.post([pay(bob, alice, 200, "r:2")])

    outcomes = ledger.post([pay(alice, bob, 300, "r:1")])

    assert outcomes == [""]
    assert balances(alice, bob) == [0, 600]


@pytest.mark.parametrize(("status", "code"), [("frozen", "account_frozen"), ("closed", "account_closed")])
def test_an_account_that_is_not_open_neither_pays_nor_receives(accounts, status, code):
    alice, bob = accounts(500, 500)
    Account.objects.filter(pk=bob.pk).update(status=status)

    outcomes = ledger.post([pay(alice, bob, 10, "r:1"), pay(bob, alice, 10, "r:2")])

    assert outcomes == [code, code]
    assert balances(alice, bob) == [500, 500]


def test_an_unknown_account_between_known_ones_is_not_mistaken_for_a_neighbour(accounts):
    alice, bob = accounts(500, 0)
    nobody = Account(id=new_id(), currency="EUR")
    (carol,) = accounts(70)

    outcomes = ledger.post(
        [
            pay(alice, nobody, 10, "r:1"),
            pay(nobody, bob, 10, "r:2"),
            pay(alice, bob, 10, "r:3"),
            pay(carol, bob, 7, "r:4"),
        ]
    )

    assert outcomes == ["account_not_found", "account_not_found", "", ""]
    assert balances(alice, bob, carol) == [490, 17, 63]


def test_currencies_do_not_mix(accounts):
    alice, bob = accounts(500, 0)
    (dollars,) = accounts(500, currency="USD")

    outcomes = ledger.post(
        [pay(alice, dollars, 10, "r:1"), pay(dollars, bob, 10, "r:2"), pay(alice, bob, 10, "r:3", currency="USD")]
    )

    assert outcomes == ["currency_mismatch"] * 3
    assert balances(alice, bob, dollars) == [500, 0, 500]


def test_an_overdraft_is_used_to_its_end_and_not_beyond(accounts):
    alice, bob = accounts(100, 0, limit_minor=50)

    outcomes = ledger.post([pay(alice, bob, 151, "r:1"), pay(alice, bob, 150, "r:2"), pay(alice, bob, 1, "r:3")])

    assert outcomes == ["insufficient_funds", "", "insufficient_funds"]
    assert balances(alice, bob) == [-50, 150]


def test_held_money_is_not_spent(accounts):
    (alice,) = accounts(100, held_minor=30)
    (bob,) = accounts(0)

    outcomes = ledger.post([pay(alice, bob, 71, "r:1"), pay(alice, bob, 70, "r:2")])

    assert outcomes == ["insufficient_funds", ""]
    assert balances(alice, bob) == [30, 70]


def test_an_account_without_limit_stays_within_a_64_bit_integer(accounts):
    bank, other = accounts(0, 0, limit_minor=None)
    huge = 3_999_999_999_999_999_999

    outcomes = ledger.post(
        [
            pay(bank, other, huge, "r:1"),
            pay(bank, other, 2, "r:2"),
            pay(bank, other, 1, "r:3"),
            pay(bank, other, 1, "r:4"),
        ]
    )

    assert outcomes == ["", "limit_exceeded", "", "limit_exceeded"]
    assert balances(bank, other) == [-huge - 1, huge + 1]


def test_nothing_to_post_is_nothing(statements):
    assert ledger.post([]) == []
    assert statements == []


@pytest.mark.parametrize("size", [1, 200])
def test_post_takes_one_statement_whatever_the_size(accounts, statements, size):
    payers = accounts(*[100] * size)
    (shop,) = accounts(0)
    statements.clear()

    outcomes = ledger.post([pay(payer, shop, 1, f"r:{i}") for i, payer in enumerate(payers)])

    assert len(statements) == 1
    assert outcomes == [""] * size
    assert balances(shop) == [size]


@pytest.mark.parametrize("table", ["accounts_journalentry", "accounts_journalline"])
@pytest.mark.parametrize(
    "statement", ["UPDATE {} SET id = id", "DELETE FROM {}", "DELETE FROM {} WHERE false", "TRUNCATE {} CASCADE"]
)
def test_the_journal_is_append_only(accounts, table, statement):
    accounts(100)

    with pytest.raises(IntegrityError, match=NEVER), transaction.atomic():
        run(statement.format(table))

    assert (JournalEntry.objects.count(), JournalLine.objects.count()) == (1, 2)


@pytest.mark.parametrize("statement", ["DELETE FROM {}", "TRUNCATE {} CASCADE", "UPDATE {} SET currency = 'USD'"])
def test_an_account_neither_goes_nor_changes_its_currency(accounts, statement):
    (alice,) = accounts(100)

    with pytest.raises(IntegrityError, match=NEVER), transaction.atomic():
        run(statement.format("accounts_account"))

    alice.refresh_from_db()
    assert (alice.currency, alice.posted_minor) == ("EUR", 100)


@pytest.mark.parametrize(
    "amounts", [[("D", 100), ("C", 99)], [("D", 100)], [("C", 5)], [("D", 5), ("D", 5)], [("D", 9), ("C", 4), ("C", 4)]]
)
def test_lines_that_do_not_balance_are_refused(accounts, amounts):
    (alice,) = accounts(100)
    entry = JournalEntry.objects.create(reference="r:1", currency="EUR")

    with pytest.raises(IntegrityError, match="does not balance"), transaction.atomic():
        write_lines(entry, *[(alice, side, amount) for side, amount in amounts])

    assert entry.lines.count() == 0


def test_an_entry_that_has_lines_takes_no_more(accounts):
    alice, bob = accounts(100, 0)
    ledger.post([pay(alice, bob, 10, "r:1")])
    entry = JournalEntry.objects.get(reference="r:1")

    with pytest.raises(IntegrityError, match="does not balance"), transaction.atomic():
        write_lines(entry, (alice, "D", 5), (bob, "C", 5))

    assert entry.lines.count() == 2


def test_lines_without_an_entry_are_refused(accounts):
    alice, bob = accounts(100, 0)

    with pytest.raises(IntegrityError, match="does not balance"), transaction.atomic():
        write_lines(JournalEntry(id=987_654_321), (alice, "D", 5), (bob, "C", 5))

    assert JournalLine.objects.filter(entry_id=987_654_321).count() == 0


def test_lines_in_another_currency_or_without_an_account_are_refused(accounts):
    (alice,) = accounts(100)
    (dollars,) = accounts(100, currency="USD")
    entry = JournalEntry.objects.create(reference="r:1", currency="EUR")

    for stranger in (dollars, Account(id=new_id())):
        with pytest.raises(IntegrityError, match="in another currency or without an account"), transaction.atomic():
            write_lines(entry, (alice, "D", 5), (stranger, "C", 5))

    assert entry.lines.count() == 0


def test_one_bad_line_among_many_of_several_currencies_is_found(accounts):
    """Entries far apart, with others' lines between them, and both currencies in one statement."""
    alice, bob = accounts(100, 0)
    dollars, more = accounts(100, 0, currency="USD")
    first, other = (JournalEntry.objects.create(reference=f"r:{i}", currency=c) for i, c in enumerate(["EUR", "USD"]))
    ledger.post([pay(alice, bob, 1, f"between:{i}") for i in range(20)])
    last = JournalEntry.objects.create(reference="r:2", currency="EUR")

    def write(*, wrong=None, missing=None):
        pairs = [(first, alice, bob), (other, dollars, more), (last, wrong or bob, missing or alice)]
        lines = [(e, a, side) for e, debit, credit in pairs for a, side in ((debit, "D"), (credit, "C"))]
        with transaction.atomic():
            JournalLine.objects.bulk_create(
                JournalLine(entry_id=e.pk, account=a, number=900 + i, side=s, amount_minor=5, balance_after_minor=0)
                for i, (e, a, s) in enumerate(lines)
            )

    for bad in ({"wrong": dollars}, {"missing": Account(id=new_id())}):
        with pytest.raises(IntegrityError, match=f"entry {last.pk} has a line in another currency or without"):
            write(**bad)
    write()

    assert [entry.lines.count() for entry in (first, other, last)] == [2, 2, 2]


@pytest.mark.parametrize("currency", ["eur", "EU", "E1R", ""])
def test_an_account_is_opened_in_a_currency(currency):
    with pytest.raises(IntegrityError, match="is no currency") as refused, transaction.atomic():
        Account.objects.create(id=new_id(), currency=currency)

    assert refused.value.__cause__.diag.constraint_name == "account_currency"


def test_the_database_refuses_a_balance_beyond_the_limit(accounts):
    (alice,) = accounts(100, limit_minor=50)

    for change in ({"posted_minor": -51}, {"held_minor": 151}, {"limit_minor": -101}, {"held_minor": -1}):
        with pytest.raises(IntegrityError, match=r"account_limit|account_held"), transaction.atomic():
            Account.objects.filter(pk=alice.pk).update(**change)

    assert Account.objects.filter(pk=alice.pk).update(posted_minor=-50) == 1


def test_the_database_takes_a_reference_once(accounts):
    alice, bob = accounts(100, 0)
    ledger.post([pay(alice, bob, 10, "r:1")])

    with pytest.raises(IntegrityError, match="journalentry_reference"), transaction.atomic():
        JournalEntry.objects.create(reference="r:1", currency="EUR")

    assert JournalEntry.objects.filter(reference="r:1").count() == 1


def in_threads(number, work):
    """Run `work(i)` in `number` threads that start together, each with a database connection of its own."""
    together = threading.Barrier(number)

    def one(index):
        try:
            together.wait(timeout=10)
            return work(index)
        finally:
            connection.close()

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(one, range(number)))


@pytest.mark.django_db(transaction=True)
def test_opposite_directions_at_once_neither_deadlock_nor_lose_money(accounts, violations):
    people = accounts(*[10_000] * 6)

    def pay_around(index):
        chance = random.Random(index)
        outcomes = []
        for batch in range(40):
            order = people if index % 2 else people[::-1]
            movements = [
                pay(order[i], order[(i + 1) % 6], chance.randint(1, 50), f"r:{index}:{batch}:{i}") for i in range(6)
            ]
            outcomes += ledger.post(movements)
        return outcomes

    outcomes = in_threads(4, pay_around)

    assert outcomes == [[""] * 240] * 4
    assert sum(balances(*people)) == 60_000
    assert JournalEntry.objects.filter(reference__startswith="r:").count() == 960
    assert violations() == []


@pytest.mark.django_db(transaction=True)
def test_eight_threads_with_one_reference_post_it_once(accounts, violations):
    alice, bob = accounts(1000, 0)

    outcomes = in_threads(8, lambda _: ledger.post([pay(alice, bob, 100, "r:1")])[0])

    assert sorted(outcomes) == ["", *["already_posted"] * 7]
    assert balances(alice, bob) == [900, 100]
    assert violations() == []


@pytest.mark.django_db(transaction=True)
def test_one_reference_on_different_accounts_at_once_posts_once(accounts, violations):
    """The locks do not meet, so the unique constraint decides: the loser's whole batch is undone, not half done."""
    people = accounts(*[1000] * 8)

    def attempt(index):
        try:
            return ledger.post([pay(people[index], people[index ^ 1], 100, f"r:{index // 2 % 2}")])[0]
        except IntegrityError:
            return "refused by the database"

    outcomes = in_threads(8, attempt)

    assert outcomes.count("") == 2
    assert set(outcomes) <= {"", "already_posted", "refused by the database"}
    assert sum(balances(*people)) == 8000
    assert JournalEntry.objects.filter(reference__startswith="r:").count() == 2
    assert violations() == []
