"""Has each accepted order exactly one end, the one asked for? Judges what is lost, stuck, duplicated or unexpected."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from compose.gameday.evidence import Entry, Evidence, Transfer
from compose.gameday.findings import Findings
from compose.gameday.history import Operation, Record

_ASKED = ("debit_account", "credit_account", "amount_minor", "currency")
# The checker's own table, on purpose: it must not believe the one of the code under judgement.
_FOLLOWS = {
    "": {"accepted", "scheduled"},
    "scheduled": {"accepted", "in_review", "approved", "rejected", "cancelled", "parked"},
    "accepted": {"in_review", "approved", "rejected", "cancelled", "parked"},
    "in_review": {"approved", "rejected", "cancelled"},
    "approved": {"posted", "rejected", "cancelled", "parked"},
    "parked": {"accepted", "approved", "rejected", "cancelled"},
}
_ENDS = frozenset({"posted", "rejected", "cancelled"})


@dataclass(frozen=True)
class Order:
    """One transfer that a client asked for: alone, or as a row of a batch."""

    reference: str
    body: dict[str, Any]
    operation: Operation
    place: int | None = None

    @property
    def accepted(self) -> bool:
        return self.operation.accepted and self.place not in self._refused_rows()

    @property
    def refused(self) -> bool:
        return self.operation.outcome == "fail" or self.place in self._refused_rows()

    @property
    def transfer_id(self) -> str | None:
        """The id in the answer; rows of a batch are known by their reference alone."""
        return self.operation.answer.get("id") if self.place is None and self.operation.accepted else None

    def _refused_rows(self) -> set[int | None]:
        if self.place is None:
            return set()
        refused = self.operation.answer.get("refused") or []
        return {int(row["field"].split(".")[1]) for row in refused}


def orders_of(record: Record) -> dict[str, Order]:
    """Every transfer that the clients asked for, by its reference."""
    return {order.reference: order for operation in record.operations.values() for order in _orders(operation)}


def _orders(operation: Operation) -> Iterator[Order]:
    if operation.kind == "transfer" and operation.body["reference"] == operation.name:
        yield Order(operation.name, operation.body, operation)
    elif operation.kind == "batch":
        for place, row in enumerate(operation.body["transfers"]):
            yield Order(row["reference"], row, operation, place)


@dataclass
class Ends:
    """The check itself. `explained` are statuses and reasons that a fault of this run accounts for."""

    record: Record
    evidence: Evidence
    orders: dict[str, Order]
    explained: Collection[str]
    findings: Findings
    _cancelling: dict[str, list[Operation]] = field(init=False)

    def __post_init__(self) -> None:
        self._cancelling = defaultdict(list)
        for operation in self.record.operations.values():
            if operation.kind == "cancel":
                self._cancelling[operation.path.split("/")[-2]].append(operation)
        self._lowest, self._highest = self._bounds()

    def judge(self) -> None:
        for order in self.orders.values():
            self._judge_order(order, self.evidence.by_reference.get(order.reference, []))
        for reference, copies in self.evidence.by_reference.items():
            if reference not in self.orders:
                for copy in copies:
                    self._unexpected(copy, "no client asked for it")
        self._judge_batches()
        self._judge_entries()
        for event in self.evidence.events:
            if not event.published and event.due:
                self.findings.add("stuck", f"event {event.id} {event.type} of {event.subject} was never published")

    def _judge_order(self, order: Order, copies: list[Transfer]) -> None:
        if not copies:
            if order.accepted:
                self.findings.add("lost", f"{order.reference}: accepted, but there is no such transfer")
            return
        if len(copies) > 1:
            self.findings.add("duplicated", f"{order.reference}: {len(copies)} transfers")
        if order.transfer_id and order.transfer_id not in {copy.id for copy in copies}:
            self.findings.add("lost", f"{order.reference}: {order.transfer_id} was promised, {copies[0].id} is there")
        for copy in copies:
            if order.refused:
                self._unexpected(copy, f"it was refused with {order.operation.status}")
            if differing := [name for name in _ASKED if getattr(copy, name) != order.body[name]]:
                self._unexpected(copy, f"{', '.join(differing)} differ from what was asked for")
            self._judge_end(order, copy)
            self._judge_path(copy)

    def _judge_end(self, order: Order, transfer: Transfer) -> None:
        entries = len(self.evidence.entries_of.get(f"transfer:{transfer.id}", ()))
        if transfer.status == "posted":
            self._judge_posted(order, transfer, entries)
        elif entries:
            self._unexpected(transfer, f"{transfer.status}, with {entries} journal entries")
        if transfer.status == "rejected" and not self._is_explained(order, transfer):
            self._unexpected(transfer, f"rejected as {transfer.reason}, which nothing in the run explains")
        if transfer.status == "cancelled" and not self._cancelling[transfer.id]:
            self._unexpected(transfer, "cancelled, though nobody asked for that")
        if transfer.status not in _ENDS and not self._is_waiting_rightly(transfer):
            self.findings.add("stuck", f"{transfer.reference} ({transfer.id}) is {transfer.status} {transfer.reason}")
        if transfer.status != "cancelled" and any(o.accepted for o in self._cancelling[transfer.id]):
            self._unexpected(transfer, f"its cancellation was confirmed, yet it is {transfer.status}")

    def _judge_posted(self, order: Order, transfer: Transfer, entries: int) -> None:
        if not entries:
            self.findings.add("lost", f"{order.reference} ({transfer.id}) is posted without a journal entry")
        if entries > 1:
            self.findings.add("duplicated", f"{order.reference} ({transfer.id}) has {entries} journal entries")
        if transfer.amount_minor > self._highest.get(transfer.debit_account, transfer.amount_minor):
            self._unexpected(transfer, "posted, though the account can never have held that much")
        looked_at = self.evidence.had(transfer.id, "transfer.in_review")
        if transfer.amount_minor >= (self.record.review_amount_minor or 2**63) and not looked_at:
            self._unexpected(transfer, "posted without the review that its amount asks for")

    def _is_explained(self, order: Order, transfer: Transfer) -> bool:
        if transfer.reason in self.explained:
            return True
        if transfer.reason == "insufficient_funds":
            return self._lowest.get(transfer.debit_account, 0) < 0
        if transfer.reason == "expired" and order.body.get("expires_at"):
            return transfer.updated_at >= datetime.fromisoformat(order.body["expires_at"])
        return False

    def _is_waiting_rightly(self, transfer: Transfer) -> bool:
        if transfer.status == "in_review":
            return transfer.amount_minor >= (self.record.review_amount_minor or 2**63) or "in_review" in self.explained
        if transfer.status == "parked":
            on_desk = any(letter.subject == transfer.id and letter.state == "open" for letter in self.evidence.letters)
            if not on_desk:
                self.findings.add("dead_letters_missing", f"{transfer.id} is parked, but not on the desk")
            return "parked" in self.explained
        return False

    def _judge_path(self, transfer: Transfer) -> None:
        """Follow the transfer's events from its acceptance to where it is."""
        at = ""
        for event in self.evidence.history_of[transfer.id]:
            step = event.type.removeprefix("transfer.")
            if step not in _FOLLOWS and step not in _ENDS:
                continue
            if step not in _FOLLOWS.get(at, ()):
                self._unexpected(transfer, f"went from {at or 'nothing'} to {step}")
            at = step
        if at != transfer.status and (at, transfer.status) not in {("accepted", "scheduled"), ("", "scheduled")}:
            self._unexpected(transfer, f"is {transfer.status}, its last event says {at or 'nothing'}")

    def _judge_batches(self) -> None:
        """An atomic batch is there as a whole or not at all, also when nobody knows which."""
        for operation in self.record.operations.values():
            if operation.kind == "batch" and operation.body["atomic"] and operation.unknown:
                references = [row["reference"] for row in operation.body["transfers"]]
                there = sum(reference in self.evidence.by_reference for reference in references)
                if there not in (0, len(references)):
                    self.findings.add("lost", f"{operation.name}: {there} of {len(references)} rows of an atomic batch")

    def _judge_entries(self) -> None:
        for entry in self.evidence.entries:
            kind, _, subject = entry.reference.partition(":")
            if kind == "opening" and subject in self.record.opening_minor:
                continue
            transfer = self.evidence.by_id.get(subject) if kind == "transfer" else None
            if transfer is None:
                self.findings.add("unexpected", f"journal entry {entry.id} {entry.reference} belongs to nothing known")
            elif not self._is_as_asked(entry, transfer):
                self._unexpected(transfer, f"journal entry {entry.id} differs from what was asked for")

    def _is_as_asked(self, entry: Entry, transfer: Transfer) -> bool:
        order = self.orders.get(transfer.reference)
        if order is None:
            return True  # It is unexpected as a whole already.
        moved = sorted((line.side, line.account, line.amount_minor) for line in self.evidence.lines_of[entry.id])
        debit, credit, amount, currency = (order.body[name] for name in _ASKED)
        return entry.currency == currency and moved == [("C", credit, amount), ("D", debit, amount)]

    def _bounds(self) -> tuple[dict[str, int], dict[str, int]]:
        """The least and the most that each account can ever have held, whatever was posted and in which order."""
        lowest, highest = dict(self.record.opening_minor), dict(self.record.opening_minor)
        for order in self.orders.values():
            debit, credit, amount = (
                order.body["debit_account"],
                order.body["credit_account"],
                order.body["amount_minor"],
            )
            # An account that cannot pay does not lower what others may hold; it is counted all the same, to be safe.
            if debit in lowest:
                lowest[debit] -= amount
            if credit in highest:
                highest[credit] += amount
        return lowest, highest

    def _unexpected(self, transfer: Transfer, why: str) -> None:
        self.findings.add("unexpected", f"{transfer.reference} ({transfer.id}): {why}")
