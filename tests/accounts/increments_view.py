"""Postings, tampering, and what the incremental proof finds of it."""

from accounts import ledger
from accounts.chains import CHAINS
from accounts.models import JournalLine
from bankcore.messaging.seals import seal
from tests.accounts.tampering import tamper
from transfers import books


def post(debit, credit, reference="r:1", amount=100):
    assert ledger.post([ledger.Movement(reference, debit.pk, credit.pk, amount, "EUR")]) == [ledger.POSTED]


def found():
    """Seal what is there, prove the increment, and answer what is named."""
    seal(CHAINS)
    return sorted((violation.check, violation.subject) for violation in books.prove_increment().violations)


def add_line(entry_id, account, side, amount, after, number):
    tamper(
        "INSERT INTO accounts_journalline (entry_id, account_id, number, side, amount_minor, balance_after_minor)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        entry_id, account, number, side, amount, after,
    )  # fmt: skip
    return JournalLine.objects.order_by("-id").values_list("pk", flat=True).first()


def set_account(account, **columns):
    for column, value in columns.items():
        tamper(f"UPDATE accounts_account SET {column} = %s WHERE id = %s", value, account.pk)
