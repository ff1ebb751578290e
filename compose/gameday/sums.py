"""Do the books balance? The checker's own sums, the clients' own sums, and what `prove_books` says, all three."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping

from compose.gameday.ends import Order
from compose.gameday.evidence import Evidence, Line
from compose.gameday.findings import Findings
from compose.gameday.history import Record
from compose.instance import REPOSITORY

PROOF_SECONDS_MAX = 600


def judge_books(record: Record, orders: Mapping[str, Order], evidence: Evidence, findings: Findings) -> None:
    _judge_entries(evidence, findings)
    _judge_accounts(evidence, findings)
    _judge_expected(record, orders, evidence, findings)


def _judge_entries(evidence: Evidence, findings: Findings) -> None:
    for entry in evidence.entries:
        lines = evidence.lines_of[entry.id]
        currencies = {evidence.accounts[line.account].currency for line in lines if line.account in evidence.accounts}
        if sum(line.signed_minor for line in lines) != 0 or len(lines) < 2 or currencies != {entry.currency}:
            findings.add("books", f"journal entry {entry.id} {entry.reference} does not balance in {entry.currency}")


def _judge_accounts(evidence: Evidence, findings: Findings) -> None:
    lines_of: dict[str, list[Line]] = defaultdict(list)
    totals: dict[str, int] = defaultdict(int)
    for line in evidence.lines:
        lines_of[line.account].append(line)
    for account in evidence.accounts.values():
        balance = 0
        totals[account.currency] += account.posted_minor
        for number, line in enumerate(lines_of[account.id], start=1):
            balance += line.signed_minor
            if line.number != number or line.balance_after_minor != balance:
                findings.add("books", f"account {account.id}: line {line.number} breaks the running balance")
            if account.limit_minor is not None and balance < -account.limit_minor:
                findings.add("books", f"account {account.id}: line {line.number} passed the limit")
        if balance != account.posted_minor or len(lines_of[account.id]) != account.lines:
            findings.add("books", f"account {account.id}: {account.posted_minor} stored, {balance} by its lines")
    for currency, total in totals.items():
        if total:
            findings.add("books", f"all accounts in {currency} add up to {total}")


def _judge_expected(record: Record, orders: Mapping[str, Order], evidence: Evidence, findings: Findings) -> None:
    """What each account must hold by what the clients sent and what they are told was posted: once each."""
    expected = dict(record.opening_minor)
    for reference, order in orders.items():
        if any(copy.status == "posted" for copy in evidence.by_reference.get(reference, ())):
            for side, sign in (("debit_account", -1), ("credit_account", 1)):
                if order.body[side] in expected:
                    expected[order.body[side]] += sign * order.body["amount_minor"]
    for account_id, balance in expected.items():
        account = evidence.accounts.get(account_id)
        if account is None or account.posted_minor != balance:
            found = account.posted_minor if account else "nothing"
            findings.add("books", f"account {account_id}: holds {found}, its orders add up to {balance}")


def prove(database_url: str, findings: Findings) -> None:
    """Let the bank prove its books itself: what it finds must be no less than what was found here."""
    done = subprocess.run(
        [sys.executable, "manage.py", "prove_books", "--json"],
        cwd=REPOSITORY,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "bankcore.settings", "DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        check=False,
        timeout=PROOF_SECONDS_MAX,
    )
    try:
        violations = json.loads(done.stdout)["violations"]
    except (ValueError, KeyError):
        findings.add("books", f"prove_books failed: {done.stderr.strip()[-500:]}")
        return
    for violation in violations:
        findings.add("books", f"prove_books: {violation}")
    if done.returncode and not violations:
        findings.add("books", f"prove_books ended with {done.returncode} and named nothing")
