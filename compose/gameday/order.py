"""P7: transfers that debit one account are posted in the order they were accepted in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from compose.gameday.ends import Order
from compose.gameday.evidence import Evidence
from compose.gameday.findings import Findings

_EXEMPT = ("transfer.in_review", "transfer.parked")


def judge_order(orders: Mapping[str, Order], evidence: Evidence, findings: Findings) -> None:
    """Find every transfer that was posted before one whose acceptance had been answered before it was asked for.

    Only such pairs have an order that a client can know. Reviewed and parked transfers block nobody.
    """
    by_entry = {entry.id: entry.reference.removeprefix("transfer:") for entry in evidence.entries}
    debits: dict[str, list[Order]] = defaultdict(list)
    seen: set[str] = set()
    for line in evidence.lines:  # By account and number.
        transfer = evidence.by_id.get(by_entry.get(line.entry, ""))
        order = orders.get(transfer.reference) if transfer is not None else None
        if line.side != "D" or order is None or transfer is None or transfer.id in seen:
            continue
        seen.add(transfer.id)
        if not any(evidence.had(transfer.id, kind) for kind in _EXEMPT):
            debits[line.account].append(order)
    for account, posted in debits.items():
        _judge_account(account, posted, findings)


def _judge_account(account: str, posted: list[Order], findings: Findings) -> None:
    latest: Order | None = None
    for order in posted:
        ended = order.operation.ended
        if latest is not None and ended is not None and ended < latest.operation.began:
            findings.add(
                "out_of_order",
                f"{account}: {order.reference} was accepted before {latest.reference} was sent, and posted after it",
            )
        if latest is None or order.operation.began > latest.operation.began:
            latest = order
