"""The verdict on a run: what the clients were told against HTTP, read-only SQL and the mail folder."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compose.gameday import history
from compose.gameday.answers import judge_answers
from compose.gameday.ends import Ends, Order, orders_of
from compose.gameday.evidence import Evidence, gather
from compose.gameday.findings import Findings
from compose.gameday.history import Record
from compose.gameday.hooks import judge_webhooks
from compose.gameday.order import judge_order
from compose.gameday.receiver import FILE
from compose.gameday.sums import judge_books, prove
from compose.gameday.told import judge_desk, judge_notifications

BALANCED, VIOLATED = "balanced", "violated"
LOOKED_UP_MAX = 100
HTTP_SECONDS_MAX = 10


@dataclass
class Verdict:
    """How many of each there are; all but `accepted` are to be zero. `details` names the first of each kind."""

    accepted: int = 0
    lost: int = 0
    duplicated: int = 0
    out_of_order: int = 0
    stuck: int = 0
    unexpected: int = 0
    bad_answers: int = 0
    notifications_missing: int = 0
    notifications_false: int = 0
    dead_letters_missing: int = 0
    unknown: int = 0
    # Calls that reached a webhook endpoint, repeats included.
    webhooks: int = 0
    books: str = BALANCED
    details: dict[str, list[str]] = field(default_factory=dict)

    def problems(self, named_max: int) -> list[str]:
        """The first of each kind of damage, a line for each."""
        return [f"{kind}: {text}" for kind, named in self.details.items() for text in named[:named_max]]

    @property
    def clean(self) -> bool:
        return self.books == BALANCED and not any(self.damage.values())

    @property
    def damage(self) -> dict[str, int]:
        """Everything that must be zero. An order without a definite answer (`unknown`) is no damage by itself."""
        known = ("accepted", "unknown", "webhooks")
        return {n: value for n, value in asdict(self).items() if isinstance(value, int) and n not in known}


def judge(
    folder: Path,
    api_urls: Sequence[str],
    database_url: str,
    mail: Path | None,
    faults: Sequence[Mapping[str, Any]] = (),
) -> Verdict:
    """Judge a run that has come to rest: the load is stopped and the backlog drained.

    `folder` holds the histories that `clients.Load` wrote. A fault may say what it accounts for:
    "explains": statuses and reasons that it may leave behind, such as ["parked"] or ["in_review", "risk_denied"];
    "poison": the SHA-256 (hex) of each message body that it sent and that belongs on the desk, once per message.
    """
    record, evidence = history.read(folder), gather(database_url, mail, folder / FILE)
    findings = weigh(record, evidence, faults)
    if api_urls:
        _look(folder, api_urls, orders_of(record), evidence, findings)
    prove(database_url, findings)
    verdict = conclude(record, findings)
    verdict.webhooks = len(evidence.arrivals)
    return verdict


def weigh(record: Record, evidence: Evidence, faults: Sequence[Mapping[str, Any]] = ()) -> Findings:
    """Hold the record against the evidence; no server is asked anything."""
    findings, orders = Findings(), orders_of(record)
    explained = {what for fault in faults for what in fault.get("explains", ())}
    Ends(record, evidence, orders, explained, findings).judge()
    judge_order(orders, evidence, findings)
    judge_answers(record, evidence, findings)
    judge_notifications(evidence, findings)
    judge_webhooks(evidence, findings)
    judge_desk(faults, evidence, findings)
    judge_books(record, orders, evidence, findings)
    return findings


def conclude(record: Record, findings: Findings) -> Verdict:
    orders = orders_of(record).values()
    verdict = Verdict(
        accepted=sum(order.accepted for order in orders),
        unknown=sum(operation.unknown for operation in record.operations.values()),
        books=VIOLATED if findings.counts["books"] else BALANCED,
        details=dict(findings.named),
    )
    for kind in verdict.damage:
        setattr(verdict, kind, findings.counts[kind])
    return verdict


def _look(
    folder: Path, api_urls: Sequence[str], orders: Mapping[str, Order], evidence: Evidence, findings: Findings
) -> None:
    """Ask the API about some accepted transfers, spread over the run: what it shows is what the database has."""
    plan = folder / "plan.json"
    if not plan.exists():
        return
    token = json.loads(plan.read_text())["token"]
    known = [order for order in orders.values() if order.transfer_id]
    for place, order in enumerate(known[:: max(1, len(known) // LOOKED_UP_MAX)]):
        shown = _get(f"{api_urls[place % len(api_urls)]}/api/v1/transfers/{order.transfer_id}", token)
        transfer = evidence.by_id.get(order.transfer_id or "")
        if transfer is not None and shown.get("status") != transfer.status:
            findings.add("bad_answers", f"GET {order.transfer_id} shows {shown}, the database has {transfer.status}")
        elif transfer is None:
            findings.add("bad_answers", f"GET {order.transfer_id} shows {shown}, the database has nothing")


def _get(url: str, token: str) -> dict[str, Any]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})  # noqa: S310  Our own address.
    try:
        with urllib.request.urlopen(request, timeout=HTTP_SECONDS_MAX) as answer:  # noqa: S310
            found: dict[str, Any] = json.loads(answer.read())
            return found
    except urllib.error.HTTPError as error:
        return {"status": f"HTTP {error.code}"}
    except OSError as error:
        return {"status": f"no answer: {error}"}
