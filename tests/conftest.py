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
from django.contrib.auth.hashers import get_hashers
from django.core.management.commands import flush
from django.db import connection

from accounts import books as ledger_books
from accounts import ledger
from accounts.models import Account
from bankcore import rate_limits
from bankcore.identifiers import new_id
from bankcore.messaging import backpressure, breaker, outbox, shares
from transfers import books as transfer_books
from transfers.models import Transfer

# Of these tables: those that have held rows, with those that refer to them, and whether a trigger refuses TRUNCATE.
_USED = """
WITH RECURSIVE used(id) AS (
    SELECT oid FROM pg_class WHERE oid = ANY(%s::regclass[]) AND pg_relation_size(oid) > 0
    UNION SELECT conrelid FROM pg_constraint JOIN used ON contype = 'f' AND confrelid = used.id
)
SELECT id::regclass::text, EXISTS (SELECT FROM pg_trigger WHERE tgrelid = id AND NOT tgisinternal AND tgtype & 32 <> 0)
  FROM used
"""
# What migrations leave there and no test changes.
_KEPT = {"auth_permission", "django_content_type"}


@pytest.fixture(scope="session", autouse=True)
def emptied_between_tests() -> Iterator[None]:
    """Let Django's flush empty the tables: their triggers refuse TRUNCATE, as they should everywhere else.

    Most tests fill a few of the tables, and to empty all of them takes longer than most tests.
    """

    def sql_flush(style: Any, tables: Any, **options: Any) -> list[str]:
        with connection.cursor() as cursor:
            cursor.execute(_USED, ([f'"{table}"' for table in tables if table not in _KEPT],))
            used = dict(cursor.fetchall())
        guarded = [table for table, is_guarded in used.items() if is_guarded]
        return [
            *(f"ALTER TABLE {table} DISABLE TRIGGER USER" for table in guarded),
            *([f"TRUNCATE {', '.join(used)}"] if used else []),
            *(f"ALTER TABLE {table} ENABLE TRIGGER USER" for table in guarded),
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection.ops, "sql_flush", sql_flush)
        # It would make the content types and permissions anew, which are still there.
        patch.setattr(flush, "emit_post_migrate_signal", lambda *args, **options: None)
        yield


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> None:
    """No test turns the power off: commits need not wait for the disk."""
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(f'ALTER DATABASE "{connection.settings_dict["NAME"]}" SET synchronous_commit = off')
        cursor.execute("SET synchronous_commit = off")


@pytest.fixture(scope="session", autouse=True)
def patient_and_quick() -> None:
    """Wait for Redis as long as it takes, and hash passwords in no time."""
    for module in (breaker, rate_limits, shares):
        module.REDIS_TIMEOUT_SECONDS = 60.0
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    get_hashers.cache_clear()


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


@pytest.fixture
def end_pauses(forget_breakers: Callable[[], None]) -> Callable[[], None]:
    """Let time pass for breakers: the pause of each open one is over, and so is the time of each trial call."""
    url = settings.REDIS_URL

    def end() -> None:
        client = redis.Redis.from_url(url)
        for key in client.scan_iter("{bankcore:breakers}:*"):
            client.hset(key, mapping={"open_until": 1, "probe_until": 1})
        for rules in breaker._locals.values():
            rules.open_until = rules.probe_until = 1

    return end
