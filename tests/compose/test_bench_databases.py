"""The databases that a benchmark makes for itself: gone afterwards, whoever is still in them."""

import time

import psycopg
import pytest
from django.db import connection

from compose.bench_databases import scratch_database

# Autovacuum comes by every ten seconds or less in private servers; what it finds here keeps it busy for long.
VACUUM_SECONDS_MAX = 60
DEAD_ROWS = """
CREATE TABLE worn (number int) WITH (
    autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 100,
    autovacuum_vacuum_cost_limit = 1);
INSERT INTO worn SELECT generate_series(1, 100000);
DELETE FROM worn;
"""
VACUUMED = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND backend_type = 'autovacuum worker'"
EXISTS = "SELECT count(*) FROM pg_database WHERE datname = %s"


def _count(database_url: str, query: str, name: str) -> int:
    with psycopg.connect(database_url, autocommit=True) as own:
        return own.execute(query, (name,)).fetchone()[0]


@pytest.fixture
def database_url(django_db_setup: None) -> str:
    known = connection.settings_dict
    return f"postgresql://{known['USER']}:{known['PASSWORD']}@{known['HOST']}:{known['PORT']}/{known['NAME']}"


def test_a_database_goes_with_the_sessions_that_were_left_on_it(database_url: str) -> None:
    with scratch_database(database_url, "bankcore_test_left") as scratch:
        left = psycopg.connect(scratch)
        left.execute("SELECT 1")

    assert _count(database_url, EXISTS, "bankcore_test_left") == 0
    left.close()


def test_a_database_goes_while_autovacuum_is_at_work_in_it(database_url: str) -> None:
    """Ending it is a superuser's right, which the owner of a database does not have."""
    name = "bankcore_test_worn"
    with scratch_database(database_url, name) as scratch:
        with psycopg.connect(scratch, autocommit=True) as own:
            own.execute(DEAD_ROWS)
        until = time.monotonic() + VACUUM_SECONDS_MAX
        while not _count(database_url, VACUUMED, name):
            assert time.monotonic() < until, "autovacuum did not come"
            time.sleep(0.05)

    assert _count(database_url, EXISTS, name) == 0
