"""Were the answers right? One key has one answer, a no has a reason, and "not now" says so in a machine's words."""

from __future__ import annotations

from collections import defaultdict

from compose.gameday.evidence import Evidence
from compose.gameday.findings import Findings
from compose.gameday.history import Operation, Record
from compose.gameday.workload import OTHER_BODY

_ENDS = frozenset({"posted", "rejected", "cancelled"})


def judge_answers(record: Record, evidence: Evidence, findings: Findings) -> None:
    for name, what in record.complaints:
        findings.add("bad_answers", f"{name}: {what}")
    for operation in record.operations.values():
        if operation.unknown:
            continue
        if operation.status not in operation.expected:
            found = f"{operation.status} {operation.answer}"
            findings.add("bad_answers", f"{operation.name} ({operation.purpose}) got {found}")
        elif operation.name.endswith(OTHER_BODY) and operation.answer.get("code") != "idempotency_key_reused":
            findings.add("bad_answers", f"{operation.name}: another body under its key got {operation.answer}")
        elif operation.kind in ("look", "cancel") and operation.status == 200:
            _judge_seen(operation, evidence, findings)
    _judge_keys(record, findings)


def _judge_seen(operation: Operation, evidence: Evidence, findings: Findings) -> None:
    """An end that a client has seen is the end."""
    transfer_id = operation.path.split("/")[4]
    transfer, seen = evidence.by_id.get(transfer_id), operation.answer.get("status")
    if seen in _ENDS and (transfer is None or transfer.status != seen):
        now = transfer.status if transfer else "gone"
        findings.add("bad_answers", f"{operation.name}: {transfer_id} was shown as {seen} and is {now}")


def _judge_keys(record: Record, findings: Findings) -> None:
    answers: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for operation in record.operations.values():
        if operation.key and operation.accepted:
            answers[operation.key].update(operation.answers)
    for key, different in answers.items():
        if len(different) > 1:
            findings.add("bad_answers", f"{key}: {len(different)} different answers under one key")
