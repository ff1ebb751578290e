"""Databases that a benchmark makes for itself on the server it was given, and drops when it has ended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

CONNECT_TIMEOUT_SECONDS = 10

# What libpq's own programs read; a password on a command line could be seen by every user of the machine.
_ENVIRONMENT = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}

_END_SESSIONS = sql.SQL("""
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE datname = {name} AND usename = current_user AND backend_type = 'client backend'
""")


@contextmanager
def scratch_database(database_url: str, name: str) -> Iterator[str]:
    """A new, empty database beside the given one, as a connection string; dropped at the end, also after a failure."""
    _replace(database_url, name)
    try:
        yield make_conninfo(database_url, dbname=name)
    finally:
        _drop(database_url, name)


def client_environment(database_url: str) -> dict[str, str]:
    """The environment for a PostgreSQL client program that is to connect to this database."""
    parts = conninfo_to_dict(database_url)
    return os.environ | {variable: str(parts[key]) for key, variable in _ENVIRONMENT.items() if parts.get(key)}


def _replace(database_url: str, name: str) -> None:
    _drop(database_url, name)
    _execute(database_url, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def _drop(database_url: str, name: str) -> None:
    """Drop the database, with our own sessions on it. Others' are waited for, for five seconds.

    Not by FORCE: that asks for the right to end every process there, and autovacuum's is a superuser's. The plain
    statement sends autovacuum away by itself.
    """
    _execute(database_url, _END_SESSIONS.format(name=sql.Literal(name)))
    _execute(database_url, sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))


def _execute(database_url: str, statement: sql.Composed) -> None:
    with psycopg.connect(database_url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_SECONDS) as connection:
        connection.execute(statement)
