"""Judges the demo from the outside: what the clients were promised against what became of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import psycopg

from compose.demo_sender import Record

ENDED = frozenset({"posted", "rejected", "cancelled"})
WAITING_WITH_AN_OWNER = frozenset({"in_review"})

_TRANSFERS = """
SELECT t.id::text, t.reference, t.status, t.status_reason, count(e.id)
  FROM transfers_transfer t
  LEFT JOIN accounts_journalentry e ON e.reference = 'transfer:' || t.id
 WHERE t.reference LIKE %s
 GROUP BY t.id
"""
_BALANCES = "SELECT id::text, posted_minor FROM accounts_account WHERE id = ANY(%s::uuid[])"


@dataclass(frozen=True)
class Found:
    """One transfer of this run as the database has it, and how many journal entries it has."""

    id: str
    reference: str
    status: str
    reason: str
    entries: int


@dataclass
class Verdict:
    """Lost: promised and not brought to an end. Duplicated: there, or posted, more often than was asked for."""

    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    wrong_balances: list[str] = field(default_factory=list)


def judge(record: Record, found: Iterable[Found]) -> Verdict:
    """Compare the clients' record with the transfers that exist."""
    verdict = Verdict()
    by_reference: dict[str, list[Found]] = defaultdict(list)
    for one in found:
        by_reference[one.reference].append(one)
    for reference in record.accepted:
        _judge_promised(verdict, reference, record.ids.get(reference), by_reference.pop(reference, []))
    # What is left was never accepted as far as any client knows: an effect that nobody asked for.
    verdict.duplicated += [f"{reference}: exists, but was not accepted" for reference in by_reference]
    return verdict


def _judge_promised(verdict: Verdict, reference: str, promised_id: str | None, copies: Sequence[Found]) -> None:
    if not copies or (promised_id is not None and promised_id not in {copy.id for copy in copies}):
        verdict.lost.append(f"{reference}: accepted, but unknown")
        return
    if len(copies) > 1:
        verdict.duplicated.append(f"{reference}: exists {len(copies)} times")
    for copy in copies:
        verdict.statuses[copy.status] += 1
        if copy.reason:
            verdict.reasons[f"{copy.status}: {copy.reason}"] += 1
        if copy.status not in ENDED | WAITING_WITH_AN_OWNER:
            verdict.lost.append(f"{reference}: still {copy.status}")
        if copy.entries > (1 if copy.status == "posted" else 0):
            verdict.duplicated.append(f"{reference}: {copy.status} with {copy.entries} journal entries")
        if copy.status == "posted" and copy.entries == 0:
            verdict.lost.append(f"{reference}: posted without a journal entry")


def expected_balances(
    record: Record, opening_minor: int, accounts: Sequence[str], posted: Iterable[str]
) -> dict[str, int]:
    """What each account must hold, computed from what the clients sent and the references that were posted."""
    balances = dict.fromkeys(accounts, opening_minor)
    for reference in posted:
        planned = record.accepted[reference]
        balances[planned.debit_account] -= planned.amount_minor
        balances[planned.credit_account] += planned.amount_minor
    return balances


def examine(record: Record, database_url: str, *, run: str, accounts: Sequence[str], opening_minor: int) -> Verdict:
    """Read what became of this run's transfers and accounts, and judge it."""
    with psycopg.connect(database_url, options="-c default_transaction_read_only=on") as database:
        found = [Found(*row) for row in database.execute(_TRANSFERS, (f"{run}-%",))]
        actual: dict[str, int] = dict(database.execute(_BALANCES, (list(accounts),)).fetchall())
    verdict = judge(record, found)
    # One movement per promised transfer, however often it was found: a second posting then shows in the balances.
    posted = {one.reference for one in found if one.status == "posted" and one.reference in record.accepted}
    for account, balance in expected_balances(record, opening_minor, accounts, posted).items():
        if actual.get(account) != balance:
            verdict.wrong_balances.append(f"account {account}: {actual.get(account)}, should be {balance}")
    return verdict
