"""Who was told by webhook: every event that an endpoint asked for, nothing else, and the same each time it is told."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any
from urllib.parse import urlsplit

from compose.gameday.evidence import Delivery, Endpoint, Event, Evidence
from compose.gameday.findings import Findings
from compose.gameday.receiver import Arrival
from compose.gameday.told import concerned

_TOOK = range(200, 300)


def judge_webhooks(evidence: Evidence, findings: Findings) -> None:
    """Hold deliveries and arrivals against the events.

    At least once is what is promised: a call may come again, under the same `webhook-id` and with the same body.
    Two events of one account that are dispatched in the same moment may come the wrong way round, and nobody outside
    can tell such a pair from another: order is not judged here.
    """
    came: dict[tuple[str, str], list[Arrival]] = defaultdict(list)
    for arrival in evidence.arrivals:
        came[arrival.endpoint, arrival.id].append(arrival)
    rows: dict[str, dict[int, Delivery]] = defaultdict(dict)
    for delivery in evidence.deliveries:
        rows[delivery.endpoint][delivery.event] = delivery
    for endpoint in evidence.endpoints:
        wanted = {event.id: event for event in evidence.events if _wants(endpoint, event, evidence)}
        path = urlsplit(endpoint.url).path
        _judge_endpoint(path, wanted, rows[endpoint.id], came, findings)
        for event in wanted.values():
            _judge_calls(path, event, came.pop((path, f"evt_{event.id}"), []), evidence, findings)
    for (path, name), calls in came.items():
        findings.add("notifications_false", f"webhook {name} to {path}: nobody asked to be told this ({len(calls)} x)")


def _wants(endpoint: Endpoint, event: Event, evidence: Evidence) -> bool:
    transfer = evidence.by_id.get(event.subject) if event.type in endpoint.event_types else None
    return transfer is not None and endpoint.customer in concerned(event.type, transfer, evidence)


def _judge_endpoint(
    path: str,
    wanted: dict[int, Event],
    rows: dict[int, Delivery],
    came: dict[tuple[str, str], list[Arrival]],
    findings: Findings,
) -> None:
    for event_id in sorted(rows.keys() - wanted.keys()):
        findings.add("notifications_false", f"webhook delivery of event {event_id} to {path}: nobody asked for it")
    for event_id in sorted(wanted):
        row = rows.get(event_id)
        calls = came.get((path, f"evt_{event_id}"), [])
        if row is None:
            findings.add("notifications_missing", f"event {event_id} has no webhook delivery to {path}")
        elif row.state != "delivered":
            findings.add("notifications_missing", f"webhook delivery of event {event_id} to {path} is {row.state}")
        elif not any(call.answer in _TOOK for call in calls):
            findings.add("notifications_missing", f"event {event_id} is delivered, but {path} never took it")


def _judge_calls(path: str, event: Event, calls: list[Arrival], evidence: Evidence, findings: Findings) -> None:
    what = f"webhook evt_{event.id} to {path}"
    if not all(call.signed for call in calls):
        findings.add("notifications_false", f"{what}: is not signed")
    if len({call.body for call in calls}) > 1:
        findings.add("notifications_false", f"{what}: said another thing when it was repeated")
    for call in calls[:1]:
        if not _is_true(call, event, evidence):
            findings.add("notifications_false", f"{what}: that did not happen: {call.body[:300]}")


def _is_true(call: Arrival, event: Event, evidence: Evidence) -> bool:
    try:
        told: dict[str, Any] = json.loads(call.body)
        data = told["data"]
        transfer = evidence.by_id[event.subject]
        facts = {name: data[name] for name in ("debit_account", "credit_account", "amount_minor", "currency")}
        return bool(
            told["id"] == call.id
            and told["type"] == event.type
            and data["transfer"] == transfer.id
            and data["reference"] == transfer.reference
            and data["status"] == event.type.partition(".")[2]
            and facts == {name: getattr(transfer, name) for name in facts}
        )
    except (ValueError, KeyError, TypeError):
        return False
