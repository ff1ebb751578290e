"""The proof of the books: SQL over the whole ledger that names everything that does not add up."""

from collections.abc import Callable
from typing import Any, NamedTuple

from django.db import connection, transaction

from accounts.models import Proof

NAMED_MAX = 100


class Violation(NamedTuple):
    """One thing that does not add up: which check says so, about what, and how."""

    check: str
    subject: str
    detail: str


class Result(NamedTuple):
    """A proof: how many entries were looked at, and per check how many violations and the first hundred by name."""

    entries: int
    counts: dict[str, int]
    violations: list[Violation]

    @property
    def balanced(self) -> bool:
        return not any(self.counts.values())


_SIGNED = "CASE l.side WHEN 'C' THEN l.amount_minor ELSE -l.amount_minor END"

# Each answers (subject, detail) rows; none is good. P3: money moves once. P4: the books balance.
CHECKS = {
    "entry_unbalanced": f"""
        SELECT e.id::text, format('%%s: sum %%s, %%s lines', e.reference, coalesce(sum({_SIGNED}), 0), count(l.id))
          FROM accounts_journalentry e LEFT JOIN accounts_journalline l ON l.entry_id = e.id
         GROUP BY e.id HAVING coalesce(sum({_SIGNED}), 0) <> 0 OR count(l.id) < 2""",
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
               SELECT l.account_id, sum({_SIGNED}) AS total FROM accounts_journalline l GROUP BY 1) s
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
                       sum({_SIGNED}) OVER (PARTITION BY l.account_id ORDER BY l.number) AS running
                  FROM accounts_journalline l) r
         WHERE after <> running""",
    "reference_twice": """
        SELECT reference, format('%%s entries', count(*)) FROM accounts_journalentry
         GROUP BY reference HAVING count(*) > 1""",
}


@transaction.atomic
def prove(
    checks: dict[str, str] | None = None, progress: Callable[[str], None] = lambda name: None, keep: bool = True
) -> Result:
    """Run every check on one snapshot, record the result and return it. Takes no lock; seconds per million lines.

    `checks` are further name -> SQL pairs from floors above (transfers against journal).
    """
    counts: dict[str, int] = {}
    found: list[Violation] = []
    with connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SET LOCAL statement_timeout = 0")
        for name, sql in {**CHECKS, **(checks or {})}.items():
            progress(name)
            cursor.execute(sql, ())
            rows: list[tuple[Any, ...]] = cursor.fetchmany(NAMED_MAX)
            counts[name] = max(cursor.rowcount, len(rows))
            found += [Violation(name, row[0], row[1]) for row in rows]
        cursor.execute("SELECT count(*) FROM accounts_journalentry", ())
        entries = cursor.fetchone()[0]
    if keep:
        Proof.objects.create(entries=entries, violations=counts)
    return Result(entries, counts, found)
