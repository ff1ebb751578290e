"""The proof of the books: SQL over the whole ledger and its seals that names everything that does not add up.

`increments` proves only what is new. Both write their result as a Proof, which is what the metrics tell.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.db import connection, transaction

from accounts.chains import CHAINS
from accounts.proofs import NAMED_MAX, Result, Violation, keep_proof, newest_proof, position_after
from bankcore.messaging import seal_checks
from bankcore.messaging.seal_checks import KeptHead

SIGNED = "CASE l.side WHEN 'C' THEN l.amount_minor ELSE -l.amount_minor END"

# How many lines do not follow from the line before: a hash join in parallel, where running sums need one long sort.
# Without any, no running sum is wrong, and PostgreSQL does not begin with them.
_STEPS_BROKEN = f"""
    SELECT count(*) FROM accounts_journalline l
      LEFT JOIN accounts_journalline p ON p.account_id = l.account_id AND p.number = l.number - 1
     WHERE l.balance_after_minor
           IS DISTINCT FROM CASE l.number WHEN 1 THEN 0 ELSE p.balance_after_minor END + {SIGNED}"""

# Each answers (subject, detail) rows; none is good. P3: money moves once. P4: the books balance.
CHECKS = {
    "entry_unbalanced": f"""
        SELECT e.id::text, format('%%s: sum %%s, %%s lines', e.reference, coalesce(sum({SIGNED}), 0), count(l.id))
          FROM accounts_journalentry e LEFT JOIN accounts_journalline l ON l.entry_id = e.id
         GROUP BY e.id HAVING coalesce(sum({SIGNED}), 0) <> 0 OR count(l.id) < 2""",
    "line_without_entry": """
        SELECT l.id::text, format('entry %%s is missing', l.entry_id)
          FROM accounts_journalline l LEFT JOIN accounts_journalentry e ON e.id = l.entry_id WHERE e.id IS NULL""",
    "line_without_account": """
        SELECT l.id::text, format('account %%s is missing', l.account_id)
          FROM accounts_journalline l LEFT JOIN accounts_account a ON a.id = l.account_id WHERE a.id IS NULL""",
    "line_in_other_currency": """
        SELECT l.id::text, format('entry in %%s, account in %%s', e.currency, a.currency)
          FROM accounts_journalline l JOIN accounts_journalentry e ON e.id = l.entry_id
          JOIN accounts_account a ON a.id = l.account_id WHERE a.currency <> e.currency""",
    "currency_unbalanced": """
        SELECT currency, format('all accounts add up to %%s', sum(posted_minor))
          FROM accounts_account GROUP BY currency HAVING sum(posted_minor) <> 0""",
    "balance_differs": f"""
        SELECT a.id::text, format('stored %%s, lines add up to %%s', a.posted_minor, coalesce(s.total, 0))
          FROM accounts_account a LEFT JOIN (
               SELECT l.account_id, sum({SIGNED}) AS total FROM accounts_journalline l GROUP BY 1) s
               ON s.account_id = a.id
         WHERE a.posted_minor <> coalesce(s.total, 0)""",
    "limit_passed": """
        SELECT a.id::text, format('posted %%s, held %%s, limit %%s', posted_minor, held_minor, limit_minor)
          FROM accounts_account a WHERE limit_minor IS NOT NULL AND posted_minor - held_minor < -limit_minor""",
    "line_numbers_broken": """
        SELECT a.id::text, format('%%s lines counted, %%s there, last number %%s', a.lines, count(l.id), max(l.number))
          FROM accounts_account a LEFT JOIN accounts_journalline l ON l.account_id = a.id
         GROUP BY a.id HAVING a.lines <> count(l.id) OR coalesce(max(l.number), 0) <> count(l.id)""",
    "running_balance_broken": f"""
        SELECT id::text,
               format('account %%s, line %%s says %%s, running sum is %%s', account_id, number, after, running)
          FROM (SELECT l.id, l.account_id, l.number, l.balance_after_minor AS after,
                       sum({SIGNED}) OVER (PARTITION BY l.account_id ORDER BY l.number) AS running
                  FROM accounts_journalline l) r
         WHERE after <> running AND ({_STEPS_BROKEN}) > 0""",
    "reference_twice": """
        SELECT reference, format('%%s entries', count(*)) FROM accounts_journalentry
         GROUP BY reference HAVING count(*) > 1""",
}

MEANINGS = {
    "entry_unbalanced": "Every journal entry has two lines or more, and they add up to zero.",
    "line_without_entry": "Every journal line belongs to an entry.",
    "line_without_account": "Every journal line belongs to an account.",
    "line_in_other_currency": "Every journal line is in the currency of its account.",
    "currency_unbalanced": "All accounts of a currency add up to zero.",
    "balance_differs": "Every balance is the sum of its account's lines.",
    "limit_passed": "No account has less than its limit allows.",
    "line_numbers_broken": "The lines of every account are numbered without a gap.",
    "running_balance_broken": "Every line says the balance that the lines before it come to.",
    "reference_twice": "No reference has two entries: money moves once.",
}

# What part of the whole is done: the name of the check, and a share of it between 0 and 1.
Progress = Callable[[str, float], None]
SEAL_CHECKS = tuple(f"seals of {chain.table}" for chain in CHAINS)


def silent(name: str, share: float) -> None:
    """Show no progress."""


def prove(
    checks: Mapping[str, str] | None = None,
    progress: Progress = silent,
    keep: bool = True,
    kept_heads: Iterable[KeptHead] = (),
) -> Result:
    """Run every check on one snapshot, record the result and return it. Takes no lock; seconds per million lines.

    `checks` are further name -> SQL pairs from floors above (transfers against journal); `kept_heads` are heads (chain,
    number, hex) that were noted outside the database. A result that is kept replaces what increments have found, except
    what they find while this one runs.
    """
    started = time.monotonic()
    counts = dict.fromkeys(seal_checks.CHECKS, 0)
    found: list[Violation] = []
    with _snapshot():
        seen, last_heads = newest_proof()
        for name, sql in {**CHECKS, **(checks or {})}.items():
            progress(name, 0)
            counts[name], named = _run(name, sql)
            found += named
        for finding in _check_seals(progress, [*last_heads, *kept_heads]):
            counts[finding.check] += 1
            if counts[finding.check] <= NAMED_MAX:
                found.append(Violation(*finding))
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM accounts_journalentry", ())
            entries = cursor.fetchone()[0]
        position = position_after(last_heads, counts)
    result = Result(entries, counts, found, time.monotonic() - started)
    if keep:
        keep_proof(result, position, since=seen)
    return result


@contextmanager
def _snapshot() -> Iterator[None]:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;"
            " SET LOCAL statement_timeout = 0; SET LOCAL work_mem = '128MB'; SET LOCAL jit = off"
        )
        yield


def _run(name: str, sql: str) -> tuple[int, list[Violation]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, ())
        rows: list[tuple[Any, ...]] = cursor.fetchmany(NAMED_MAX)
        return max(cursor.rowcount, len(rows)), [Violation(name, row[0], row[1]) for row in rows]


def _check_seals(progress: Progress, kept_heads: Iterable[KeptHead]) -> Iterator[seal_checks.Finding]:
    for name, chain in zip(SEAL_CHECKS, CHAINS, strict=True):
        progress(name, 0)
        yield from seal_checks.check_end(chain)
        last = seal_checks.last_number(chain)
        for first in range(1, last + 1, seal_checks.BLOCKS_AT_ONCE):
            end = min(first + seal_checks.BLOCKS_AT_ONCE - 1, last)
            yield from seal_checks.check_blocks(chain, first, end)
            progress(name, end / last)
    yield from seal_checks.check_heads(kept_heads)
