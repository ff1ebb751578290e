"""What every test can use: accounts with money in them, transfers with their event, a count of statements.

The databases are real. A test says `pytest.mark.django_db`, or `django_db(transaction=True)` where other connections
have to see what it wrote.
"""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import redis
from django.conf import settings
from django.db import connection

from accounts import books as ledger_books
from accounts import ledger
from accounts.models import Account
from bankcore.identifiers import new_id
from bankcore.messaging import backpressure, breaker, outbox
from transfers import books as transfer_books
from transfers.models import Transfer


@pytest.fixture(scope="session", autouse=True)
def emptied_between_tests() -> Iterator[None]:
    """Let Django's flush empty the tables: their triggers refuse TRUNCATE, as they should everywhere else."""
    flush = connection.ops.sql_flush

    def sql_flush(style: Any, tables: Any, **options: Any) -> list[str]:
        return [
            *(f'ALTER TABLE "{table}" DISABLE TRIGGER USER' for table in tables),
            *flush(style, tables, **options),
            *(f'ALTER TABLE "{table}" ENABLE TRIGGER USER' for table in tables),
        ]

    connection.ops.sql_flush = sql_flush
    yield
    connection.ops.sql_flush = flush


@pytest.fixture(scope="session", autouse=True)
def gate_without_reader() -> None:
    """Leave the gate of this process open: its reader would hold a connection to the database that tests empty."""
    backpressure.gate._start = lambda: None  # type: ignore[method-assign]
    backpressure.gate._began_at = float("inf")


@pytest.fixture
def accounts() -> Callable[..., list[Account]]:
    """Open accounts that hold these amounts: `alice, bob = accounts(100, 0, currency="EUR", limit_minor=50)`.

    The money comes from an account of the bank without a limit, through the ledger; status and holds are set last.
    """

    def make(
        *opening_minor: int, currency: str = "EUR", status: str = "open", held_minor: int = 0, **fields: Any
    ) -> list[Account]:
        bank, _ = Account.objects.get_or_create(
            name=f"Bank {currency}", currency=currency, customer=None, defaults={"limit_minor": None}
        )
        opened = Account.objects.bulk_create(Account(id=new_id(), currency=currency, **fields) for _ in opening_minor)
        outcomes = ledger.post(
            [
                ledger.Movement(f"opening:{account.pk}", bank.pk, account.pk, amount, currency)
                for account, amount in zip(opened, opening_minor, strict=True)
                if amount
            ]
        )
        assert set(outcomes) <= {ledger.POSTED}
        ids = [account.pk for account in opened]
        if status != "open" or held_minor:
            Account.objects.filter(pk__in=ids).update(status=status, held_minor=held_minor)
        found = Account.objects.in_bulk(ids)
        return [found[pk] for pk in ids]

    return make


@pytest.fixture
def make_transfer() -> Callable[..., Transfer]:
    """Insert a transfer in a status, with the event that asks for its next stage, as intake or the stage would."""

    def make(debit: Account, credit: Account, amount_minor: int = 100, status: str = "approved", **fields: Any) -> Any:
        transfer = Transfer.objects.create(
            client="test",
            debit_account=debit,
            credit_account=credit,
            amount_minor=amount_minor,
            currency=fields.pop("currency", debit.currency),
            status=status,
            **fields,
        )
        outbox.record([outbox.NewEvent(f"transfer.{status}", str(debit.pk), str(transfer.pk))])
        return transfer

    return make


@pytest.fixture
def violations() -> Callable[[], list[tuple[str, str]]]:
    """Run every check of the proof inside the test's own transaction; answers (check, culprit) pairs."""

    def run() -> list[tuple[str, str]]:
        found = []
        with connection.cursor() as cursor:
            for name, sql in {**ledger_books.CHECKS, **transfer_books.CHECKS}.items():
                cursor.execute(sql, ())
                found += [(name, row[0]) for row in cursor.fetchall()]
        return found

    return run


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every statement sent to PostgreSQL from here on, by Django's cursors and by plain ones."""
    sent: list[str] = []
    execute = psycopg.Cursor.execute

    def counted(cursor: Any, query: Any, *args: Any, **options: Any) -> Any:
        sent.append(query if isinstance(query, str) else bytes(query).decode())
        return execute(cursor, query, *args, **options)

    monkeypatch.setattr(psycopg.Cursor, "execute", counted)
    return sent


@pytest.fixture
def forget_breakers() -> Iterator[Callable[[], None]]:
    """Every breaker as if never used, before and after; call it to forget once more."""
    url = settings.REDIS_URL

    def forget() -> None:
        client = redis.Redis.from_url(url)
        for key in client.scan_iter("{bankcore:breakers}*"):
            client.delete(key)
        breaker._locals.clear()
        breaker._away_until = float("-inf")

    forget()
    yield forget
    forget()
