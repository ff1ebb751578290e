"""Books that are proved, and rows that are sealed."""

import psycopg
import pytest
from django.db import connection

from accounts.chains import CHAINS
from bankcore.messaging import audit, seals
from bankcore.messaging.seals import seal
from tests.accounts.chains_view import post, record
from transfers import books


@pytest.fixture
def two(accounts):
    """Alice and Bob, proved and sealed up to here."""
    alice, bob = accounts(1000, 500)
    seal(CHAINS)
    assert books.prove_increment().balanced
    return alice, bob


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(seals, "BLOCK_ROWS_MAX", 4)


@pytest.fixture
def sealed(accounts, small_blocks):
    """Alice and Bob with seven entries, seven events and five audit entries, all of it sealed in small blocks."""
    alice, bob = accounts(1000, 500)
    post(alice, bob, *range(5))
    record(*range(7))
    for number in range(5):
        audit.record(actor="ann", action="account.freeze", subject=number, reason="why", details={"a": 1})
    assert seal(CHAINS) == {
        "accounts_journalentry": 7,
        "accounts_journalline": 14,
        "messaging_event": 7,
        "messaging_auditentry": 5,
    }
    return alice, bob


@pytest.fixture
def other():
    """Another session on the same database."""
    with psycopg.connect(**connection.get_connection_params(), autocommit=True) as session:
        session.execute("SET lock_timeout = '2s'")
        yield session
