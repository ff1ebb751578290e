"""A plain psycopg cursor on Django's connection: server-side binding, binary arrays and prepared statements.

Django's own cursor binds on the client, which makes a batch of a thousand rows a very long text.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from django.db import connection

from bankcore.columns import pack_all


@contextmanager
def plain_cursor() -> Iterator[psycopg.Cursor[Any]]:
    """Yield a cursor inside the current transaction; psycopg's errors come out as Django's."""
    connection.ensure_connection()
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        yield cursor


def fetch_all(sql: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> list[tuple[Any, ...]]:
    """Run one prepared statement and return its rows."""
    with plain_cursor() as cursor:
        return cursor.execute(sql, pack_all(params), prepare=True, binary=True).fetchall()


def execute(sql: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> int:
    """Run one prepared statement and return how many rows it touched."""
    with plain_cursor() as cursor:
        return cursor.execute(sql, pack_all(params), prepare=True).rowcount


def open_session(name: str) -> psycopg.Connection[Any]:
    """Open a session apart from Django's, in autocommit mode, for a lock that lasts as long as the session."""
    parameters = connection.get_connection_params()
    for unwanted in ("cursor_factory", "context", "pool", "prepare_threshold", "server_side_binding"):
        parameters.pop(unwanted, None)
    return psycopg.connect(**parameters | {"application_name": name}, autocommit=True)
