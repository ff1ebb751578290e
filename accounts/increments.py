"""The proof of what is new: at a cost that depends on how much is new, and not on how much there is.

It rests on what was proved before. If every balance, line number and running balance was right up to some id, then they
are right afterwards if each new line follows from the line before it on its account, each new entry adds up to zero,
and each account that has new lines stores what its newest line says. "Up to some id" means blocks of the seals: no line
can still appear below their end. What nobody touches is looked at in turn, some of it each time.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from django.db import connection, transaction

from accounts.books import SIGNED
from accounts.chains import CHAINS, ENTRIES, LINES
from accounts.models import Proof
from accounts.proofs import PROOF_LOCK, Result, Violation, heads_of, named_by, write_proof
from bankcore.database import fetch_all
from bankcore.messaging import seal_checks, seals
from bankcore.messaging.seal_checks import KeptHead

log = logging.getLogger(__name__)

STEP_IDS_MAX = 50_000
SECONDS_MAX = 20.0
SWEPT_ROWS = 1000
SWEPT_BLOCKS = 10


class NewCheck(NamedTuple):
    """SQL that answers (check, subject, detail) for the rows of `table` with %(after)s < id <= %(upto)s."""

    table: str
    sql: str


class Sweep(NamedTuple):
    """SQL that answers (check, subject, detail) for the rows of `table` in WITH swept(id)."""

    table: str
    sql: str


# In all of these, what is wrong (w) is asked first: finding words for each row that is right cost more than the rest.

# For accounts in `looked_at(id)`: does each store what its newest line says?
_ACCOUNTS = """
    SELECT c.rule, a.id::text, c.detail
      FROM looked_at JOIN accounts_account a USING (id)
      LEFT JOIN LATERAL (SELECT l.number, l.balance_after_minor FROM accounts_journalline l
                          WHERE l.account_id = a.id ORDER BY l.number DESC LIMIT 1) n ON true
     CROSS JOIN LATERAL (SELECT
           a.posted_minor <> coalesce(n.balance_after_minor, 0) AS differs,
           a.lines <> coalesce(n.number, 0) AS miscounted,
           a.posted_minor - a.held_minor < -a.limit_minor AS passed) AS w
     CROSS JOIN LATERAL (VALUES
           ('balance_differs', w.differs,
            format('stored %%s, the newest line says %%s', a.posted_minor, coalesce(n.balance_after_minor, 0))),
           ('line_numbers_broken', w.miscounted,
            format('%%s lines counted, last number %%s', a.lines, coalesce(n.number, 0))),
           ('limit_passed', w.passed,
            format('posted %%s, held %%s, limit %%s', a.posted_minor, a.held_minor, a.limit_minor))
           ) AS c(rule, wrong, detail)
     WHERE (w.differs OR w.miscounted OR w.passed) AND c.wrong"""

NEW_CHECKS: tuple[NewCheck, ...] = (
    NewCheck(
        ENTRIES.table,
        """
    SELECT c.rule, c.subject, c.detail
      FROM accounts_journalentry e
     CROSS JOIN LATERAL (SELECT
           NOT EXISTS (SELECT FROM accounts_journalline l WHERE l.entry_id = e.id) AS empty,
           EXISTS (SELECT FROM accounts_journalentry o WHERE o.reference = e.reference AND o.id <> e.id) AS twice) AS w
     CROSS JOIN LATERAL (VALUES
           ('entry_unbalanced', e.id::text, format('%%s: no lines', e.reference), w.empty),
           ('reference_twice', e.reference, 'more than one entry', w.twice)
           ) AS c(rule, subject, detail, wrong)
     WHERE e.id > %(after)s AND e.id <= %(upto)s AND (w.empty OR w.twice) AND c.wrong""",
    ),
    NewCheck(
        LINES.table,
        f"""
    SELECT 'entry_unbalanced', n.entry_id::text, format('sum %%s, %%s lines', s.total, s.lines)
      FROM (SELECT DISTINCT entry_id FROM accounts_journalline WHERE id > %(after)s AND id <= %(upto)s) n
     CROSS JOIN LATERAL (SELECT sum({SIGNED}) AS total, count(*) AS lines
                           FROM accounts_journalline l WHERE l.entry_id = n.entry_id) s
     WHERE s.total <> 0 OR s.lines < 2""",
    ),
    NewCheck(
        LINES.table,
        f"""
    SELECT c.rule, c.subject, c.detail
      FROM accounts_journalline l
      LEFT JOIN accounts_journalentry e ON e.id = l.entry_id
      LEFT JOIN accounts_account a ON a.id = l.account_id
      LEFT JOIN accounts_journalline p ON p.account_id = l.account_id AND p.number = l.number - 1
     CROSS JOIN LATERAL (SELECT
           e.id IS NULL AS no_entry, a.id IS NULL AS no_account, e.currency <> a.currency AS other_currency,
           l.number <> 1 AND p.id IS NULL AS gap,
           (l.number = 1 OR p.id IS NOT NULL)
           AND l.balance_after_minor <> coalesce(p.balance_after_minor, 0) + {SIGNED} AS jump) AS w
     CROSS JOIN LATERAL (VALUES
           ('line_without_entry', l.id::text, format('entry %%s is missing', l.entry_id), w.no_entry),
           ('line_without_account', l.id::text, format('account %%s is missing', l.account_id), w.no_account),
           ('line_in_other_currency', l.id::text,
            format('entry in %%s, account in %%s', e.currency, a.currency), w.other_currency),
           ('line_numbers_broken', l.account_id::text,
            format('there is no line %%s before line %%s', l.number - 1, l.number), w.gap),
           ('running_balance_broken', l.id::text,
            format('account %%s, line %%s says %%s, the line before and this one make %%s', l.account_id, l.number,
                   l.balance_after_minor, coalesce(p.balance_after_minor, 0) + {SIGNED}), w.jump)
           ) AS c(rule, subject, detail, wrong)
     WHERE l.id > %(after)s AND l.id <= %(upto)s
       AND (w.no_entry OR w.no_account OR w.other_currency OR w.gap OR w.jump) AND c.wrong""",
    ),
    NewCheck(
        LINES.table,
        f"""
    WITH looked_at(id) AS MATERIALIZED (
        SELECT DISTINCT account_id FROM accounts_journalline WHERE id > %(after)s AND id <= %(upto)s)
    {_ACCOUNTS}""",
    ),
)
SWEEPS: tuple[Sweep, ...] = (Sweep("accounts_account", f", looked_at AS (SELECT id FROM swept){_ACCOUNTS}"),)
NAMES = frozenset(
    {
        "entry_unbalanced", "reference_twice", "line_without_entry", "line_without_account", "line_in_other_currency",
        "line_numbers_broken", "running_balance_broken", "balance_differs", "limit_passed", *seal_checks.CHECKS,
    }
)  # fmt: skip


@transaction.atomic
def prove_new(
    new_checks: Sequence[NewCheck] = (), sweeps: Sequence[Sweep] = (), names: Iterable[str] = ()
) -> Result | None:
    """Prove what has been sealed since the last proof, and the next part of what has not been touched; keep the result.

    What earlier proofs named stays in it until a full proof does not find it. Goes on for up to SECONDS_MAX and leaves
    the rest to the next call. Takes no lock that posting could wait for. None: another increment is running.
    """
    started = time.monotonic()
    if not fetch_all("SELECT pg_try_advisory_xact_lock(%s)", (PROOF_LOCK,))[0][0]:
        return None
    with connection.cursor() as cursor:
        # Whatever the planner believes of tables that grow: lookups in indexes, and ranges of the primary key.
        cursor.execute(
            "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off;"
            " SET LOCAL jit = off"
        )
    last = Proof.objects.first()
    position: dict[str, Any] = last.position if last else {}
    heads = seals.heads()

    found, proved, entries = _prove_ranges([*NEW_CHECKS, *new_checks], position.get("proved", {}), heads, started)
    swept: dict[str, Any] = {}
    for sweep in [*SWEEPS, *sweeps]:
        more, swept[sweep.table] = _sweep(sweep, position.get("swept", {}).get(sweep.table))
        found += more
    rolled, blocks = seal_checks.roll(CHAINS, position.get("blocks", {}), SWEPT_BLOCKS)
    last_heads = heads_of(last) if last else []
    gone = list(seal_checks.check_heads(last_heads))
    found += [Violation(*finding) for finding in (*rolled, *gone)]

    kept = last_heads if gone else [KeptHead(chain, head.number, head.hex) for chain, head in heads.items()]
    result = _result(found, {*NAMES, *names}, entries, time.monotonic() - started)
    if last:
        result = result.with_earlier(last.violations, named_by(last))
    write_proof(Proof.Kind.INCREMENT, result, {"proved": proved, "swept": swept, "blocks": blocks, "heads": kept})
    return result


def _prove_ranges(
    checks: Sequence[NewCheck], since: Mapping[str, int], heads: Mapping[str, seals.Head], started: float
) -> tuple[list[Violation], dict[str, int], int]:
    """Run the checks over each table's range, STEP_IDS_MAX ids at a time; a table that time runs out for waits."""
    found: list[Violation] = []
    proved = dict(since)
    entries = 0
    for table, head in heads.items():
        mine = [check.sql for check in checks if check.table == table]
        after = since.get(table, seals.BEFORE_EVERY_ID)
        while mine and after < head.last_id and time.monotonic() - started < SECONDS_MAX:
            # The range begins at a row: ids below the first one are no work.
            first = _first_id(table, after)
            upto = min(first + STEP_IDS_MAX, head.last_id)
            with connection.cursor() as cursor:
                for sql in mine:
                    cursor.execute(sql, {"after": after, "upto": upto})
                    found += [Violation(*row) for row in cursor.fetchall()]
                if table == ENTRIES.table:
                    sql = "SELECT count(*) FROM accounts_journalentry WHERE id > %s AND id <= %s"
                    cursor.execute(sql, (after, upto))
                    entries += cursor.fetchone()[0]
            proved[table] = after = upto
    return found, proved, entries


def _first_id(table: str, after: int) -> int:
    rows = fetch_all(f"SELECT id FROM {table} WHERE id > %s ORDER BY id LIMIT 1", (after,))
    return int(rows[0][0]) if rows else after


def _sweep(sweep: Sweep, after: str | None) -> tuple[list[Violation], str | None]:
    """Look at the next SWEPT_ROWS rows in id order; at the end begin again."""
    where = "WHERE id > %(after)s" if after else ""
    part = f"SELECT id FROM {sweep.table} {where} ORDER BY id LIMIT {SWEPT_ROWS}"
    with connection.cursor() as cursor:
        cursor.execute(f"WITH swept AS MATERIALIZED ({part}) {sweep.sql}", {"after": after})
        found = [Violation(*row) for row in cursor.fetchall()]
        cursor.execute(f"SELECT id::text FROM ({part}) p OFFSET {SWEPT_ROWS - 1}", {"after": after})
        row = cursor.fetchone()
    return found, row[0] if row else None


def _result(found: Iterable[Violation], names: Iterable[str], entries: int, seconds: float) -> Result:
    distinct = {(violation.check, violation.subject): violation for violation in found}
    counts = dict.fromkeys(sorted(names), 0)
    for check, _ in distinct:
        counts[check] = counts.get(check, 0) + 1
    return Result(entries, counts, list(distinct.values()), seconds)
