"""Change data as the tables' owner can: with the triggers off."""

from typing import Any

from django.db import connection

TABLES = (
    "accounts_account", "accounts_journalentry", "accounts_journalline", "transfers_transfer", "messaging_event",
    "messaging_auditentry", "messaging_seal",
)  # fmt: skip


def run(sql: str, *parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)


def tamper(sql: str, *parameters: Any) -> None:
    """Run one statement with every trigger of these tables off."""
    run("SET CONSTRAINTS ALL IMMEDIATE")
    for table in TABLES:
        run(f"ALTER TABLE {table} DISABLE TRIGGER USER")
    run(sql, *parameters)
    for table in TABLES:
        run(f"ALTER TABLE {table} ENABLE TRIGGER USER")
