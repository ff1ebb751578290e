"""A plain psycopg cursor on Django's connection: server-side binding, binary arrays and, for who asks, kept plans.

Django's own cursor binds on the client, which makes a batch of a thousand rows a very long text.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from django.conf import settings
from django.db import InterfaceError, OperationalError, connection

from bankcore.columns import pack_all

# Read-only after a failover (25006), sessions and transactions that were timed out while a process was frozen (25P03,
# 25P04), and the classes for connection, rollback, resources, operator intervention and system errors: psycopg and
# Django sort some of them elsewhere than under OperationalError.
_AWAY_SQLSTATES = ("25006", "25P03", "25P04", "08", "40", "53", "57", "58")
# Among OperationalErrors all the same, and never better by waiting: triggers, functions and savepoints that do what
# they must not, and what is too much for one statement.
_AT_FAULT_SQLSTATES = ("27", "2F", "38", "39", "3B", "54")


def is_away(error: Exception) -> bool:
    """Tell a database that is away, failing over, or asks to try again from one that refuses what it was asked."""
    sqlstate = getattr(error.__cause__, "sqlstate", None) or getattr(error, "sqlstate", None) or ""
    if sqlstate.startswith(_AT_FAULT_SQLSTATES):
        return False
    return isinstance(error, (OperationalError, InterfaceError, psycopg.OperationalError)) or sqlstate.startswith(
        _AWAY_SQLSTATES
    )


@contextmanager
def plain_cursor() -> Iterator[psycopg.Cursor[Any]]:
    """Yield a cursor inside the current transaction; psycopg's errors come out as Django's."""
    connection.ensure_connection()
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        yield cursor


def fetch_all(
    sql: str, params: Sequence[Any] | Mapping[str, Any] = (), *, keep_plan: bool = False
) -> list[tuple[Any, ...]]:
    """Run one statement and return its rows.

    With `keep_plan` it is prepared once for each connection. That is for statements that run for a few rows many times
    a second: there planning costs as much as the work. Others are better off with a plan for the rows they have and for
    the tables as they are; a plan that is kept knows of a table that has grown once its statistics do.
    """
    keep_plan = keep_plan and settings.DATABASE_PREPARE
    with plain_cursor() as cursor:
        # Django's None: psycopg prepares nothing and remembers nothing. With any number it would keep the last hundred
        # texts of the connection to count them, and with Django's client-side binding the values are part of a text.
        cursor.connection.prepare_threshold = 0 if keep_plan else None
        try:
            return cursor.execute(sql, pack_all(params), prepare=keep_plan, binary=True).fetchall()
        finally:
            cursor.connection.prepare_threshold = None


def execute(sql: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> int:
    """Run one statement and return how many rows it touched."""
    with plain_cursor() as cursor:
        return cursor.execute(sql, pack_all(params), prepare=False).rowcount


def open_session(name: str) -> psycopg.Connection[Any]:
    """Open a session apart from Django's, in autocommit mode, for a lock that lasts as long as the session."""
    parameters = connection.get_connection_params()
    for unwanted in ("cursor_factory", "context", "pool", "prepare_threshold", "server_side_binding"):
        parameters.pop(unwanted, None)
    return psycopg.connect(**parameters | {"application_name": name}, autocommit=True)
