"""What a transfer costs when the books are long, against what it costs when they are short.

Two databases side by side, one with a long history and one with a short one, asked in turns: what disturbs the machine
disturbs both. The history is made by SQL in the form that posting leaves behind, with every entry balanced, every line
numbered and every balance right, so that the books proof finds nothing to object to.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from compose.bench_driver import Driver, Ledger, ProbeFailed, drivers, ledger_database

# Few, so that the short history too fills the first page of each account's listings.
ACCOUNTS = 1_000
OPENING_MINOR = 10**11
SHORT_LINES = 100_000
BATCH = 500
BATCHES = 8
READS = 60
HISTORY_TABLES = ("transfers_transfer", "accounts_journalentry", "accounts_journalline", "accounts_account")
READINGS = {
    "balance": "/api/v1/accounts/{account}/balance",
    "listing": "/api/v1/transfers?account={account}",
    "entries": "/api/v1/accounts/{account}/entries",
}

# Row i moves 1 from one account to another, never the same pair twice in a row; the accounts take turns.
_PLAN = """
CREATE TEMPORARY TABLE history AS
SELECT i, (lpad(to_hex(%(began_ms)s + i), 12, '0') || '70008' || lpad(to_hex(i), 15, '0'))::uuid AS id,
       (i %% n.accounts)::int AS debit,
       ((i %% n.accounts + 1 + (i / n.accounts) %% (n.accounts - 1)) %% n.accounts)::int AS credit
  FROM generate_series(0, %(transfers)s - 1) AS i, (SELECT %(accounts)s::bigint AS accounts) AS n;
CREATE TEMPORARY TABLE holder AS
SELECT (row_number() OVER (ORDER BY id) - 1)::int AS position, id, posted_minor, lines, currency
  FROM accounts_account WHERE id = ANY(%(ids)s::uuid[]);
CREATE INDEX ON holder (position);
ANALYZE history, holder;
"""
_TRANSFERS = """
INSERT INTO transfers_transfer (id, client, debit_account_id, credit_account_id, amount_minor, currency, status,
                                created_at, updated_at, posted_at)
SELECT h.id, 'history', d.id, c.id, 1, d.currency, 'posted', moment, moment, moment
  FROM history h JOIN holder d ON d.position = h.debit JOIN holder c ON c.position = h.credit,
       LATERAL (SELECT to_timestamp((%(began_ms)s + h.i) / 1000.0) AS moment) AS t
 ORDER BY h.i
"""
_ENTRIES = """
INSERT INTO accounts_journalentry (id, reference, currency, created_at)
SELECT %(first_entry)s + h.i, 'transfer:' || h.id, %(currency)s, to_timestamp((%(began_ms)s + h.i) / 1000.0)
  FROM history h ORDER BY h.i
"""
_LINES = """
INSERT INTO accounts_journalline (entry_id, account_id, number, side, amount_minor, balance_after_minor)
SELECT %(first_entry)s + l.i, a.id, a.lines + row_number() OVER own, l.side, 1, a.posted_minor + sum(l.change) OVER own
  FROM (SELECT i, debit AS position, 'D' AS side, -1 AS change FROM history
        UNION ALL SELECT i, credit, 'C', 1 FROM history) AS l JOIN holder a USING (position)
WINDOW own AS (PARTITION BY l.position ORDER BY l.i ROWS UNBOUNDED PRECEDING)
 ORDER BY l.i, l.side DESC
"""
_BALANCES = """
UPDATE accounts_account AS a SET posted_minor = n.balance_after_minor, lines = n.number
  FROM (SELECT DISTINCT ON (account_id) account_id, number, balance_after_minor
          FROM accounts_journalline ORDER BY account_id, number DESC) AS n
 WHERE a.id = n.account_id
"""


@contextmanager
def two_databases(stack: Mapping[str, Any], *, long_lines: int) -> Iterator[tuple[Driver, Driver]]:
    """Probes on a database with a short and on one with a long history. Needs to own the server's databases."""
    with ExitStack() as both:
        found = []
        for name, lines in (("short", SHORT_LINES), ("long", long_lines)):
            ledger = both.enter_context(
                ledger_database(stack, f"bankcore_bench_{name}", accounts=ACCOUNTS, opening_minor=OPENING_MINOR)
            )
            write_history(ledger, transfers=lines // 2)
            found.append(both.enter_context(drivers(ledger, 1))[0])
        short, long = found
        yield short, long


def write_history(ledger: Ledger, *, transfers: int) -> None:
    """Give the database so many posted transfers, with their journal. Triggers are off meanwhile: this is the past."""
    with psycopg.connect(ledger.url) as connection:
        _set_triggers(connection, "DISABLE")
        connection.execute("SET work_mem = '256MB'")
        first = connection.execute(
            "SELECT nextval('accounts_journalentry_id_seq'), (extract(epoch FROM now()) * 1000)::bigint - 86400000"
        ).fetchone()
        first_entry, now_ms = first or (1, 0)
        values = {
            "transfers": transfers, "accounts": len(ledger.seeded.accounts), "ids": ledger.seeded.accounts,
            "currency": ledger.seeded.currency, "first_entry": first_entry, "began_ms": now_ms - transfers,
        }  # fmt: skip
        cursor = psycopg.ClientCursor(connection)
        for statement in (_PLAN, _TRANSFERS, _ENTRIES, _LINES, _BALANCES):
            cursor.execute(statement, values)
        cursor.execute("SELECT setval('accounts_journalentry_id_seq', (SELECT max(id) FROM accounts_journalentry))")
        _set_triggers(connection, "ENABLE")
    with psycopg.connect(ledger.url, autocommit=True) as connection:
        for table in HISTORY_TABLES:
            connection.execute(sql.SQL("VACUUM ANALYZE {}").format(sql.Identifier(table)))


def _set_triggers(connection: psycopg.Connection, what: LiteralString) -> None:
    for table in HISTORY_TABLES:
        connection.execute(sql.SQL("ALTER TABLE {} " + what + " TRIGGER USER").format(sql.Identifier(table)))


def measure(short: Driver, long: Driver, *, turns: int) -> dict[str, float | None]:
    """How much more a piece of work costs with the long history: the median of each, long over short."""
    for driver in (short, long):
        # The first proof reads everything there is; what is timed is what each one after it has to read.
        driver.ask("prove")
        _post(driver)
    costs: dict[str, list[list[float]]] = {}
    for turn in range(turns):
        order = (short, long) if turn % 2 == 0 else (long, short)
        for driver in order:
            for name, cost in _costs(driver).items():
                costs.setdefault(name, [[], []])[0 if driver is short else 1].append(cost)
    ratios = {f"growth_{name}": _ratio(pair) for name, pair in costs.items()}
    return {**ratios, "growth_ratio": max(ratios.values())}


def _costs(driver: Driver) -> dict[str, float]:
    posting = _post(driver)
    found = {"posting": posting["p50_ms"]}
    proof = driver.ask("prove")
    if not proof["balanced"]:
        raise ProbeFailed("the books proof objects to the made-up history")
    found["proof"] = proof["seconds"]
    for name, path in READINGS.items():
        found[name] = driver.ask("read", path=path, times=READS)["p50_ms"]
    return found


def _post(driver: Driver) -> dict[str, Any]:
    driver.ask("prepare", batch=BATCH, hot=False, batches=BATCHES)
    return driver.ask("post")


def _ratio(pair: Sequence[Sequence[float]]) -> float:
    short, long = pair
    return statistics.median(long) / statistics.median(short)
