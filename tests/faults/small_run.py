"""A small run by hand: what two clients wrote down and what the bank made of it, with nothing wrong."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compose.gameday.evidence import (
    Account,
    Delivery,
    Endpoint,
    Entry,
    Event,
    Evidence,
    Letter,
    Line,
    Mail,
    Note,
    Transfer,
)
from compose.gameday.history import History, read
from compose.gameday.receiver import TOLD, Arrival
from compose.gameday.verdict import Verdict, conclude, weigh

ALICE, BOB, POOR = "alice", "bob", "poor"
OPENING = {ALICE: 1_000_000, BOB: 1_000_000, POOR: 100}
REVIEW_AMOUNT_MINOR = 50_000
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class SmallRun:
    """Orders are written to a history file and booked at once; a test damages either side before it asks."""

    folder: Path
    transfers: list[Transfer] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    mails: list[Mail] = field(default_factory=list)
    endpoints: list[Endpoint] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    balances: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.history = History(self.folder / "history-load.jsonl")
        for account, opening in OPENING.items():
            self.history.write(
                "accounts",
                group="all",
                accounts=[account],
                opening_minor=opening,
                review_amount_minor=REVIEW_AMOUNT_MINOR,
            )
            self.move(f"opening:{account}", "funding", account, opening)

    def body(self, reference: str, debit: str = ALICE, amount_minor: int = 10, credit: str = "") -> dict[str, Any]:
        return {
            "debit_account": debit,
            "credit_account": credit or (POOR if debit == BOB else BOB),
            "amount_minor": amount_minor,
            "currency": "EUR",
            "reference": reference,
        }

    def ask(self, name: str, body: dict[str, Any], *, expected: tuple[int, ...] = (202,), key: str = "") -> None:
        self.history.write(
            "invoke", op=name, kind="transfer", purpose="plain", path="/api/v1/transfers", key=key or name,
            body=body, expected=list(expected),
        )  # fmt: skip

    def answer(self, name: str, status: int = 202, answer: dict[str, Any] | None = None, digest: str = "d") -> None:
        outcome = "ok" if status < 300 else "fail"
        self.history.write(
            outcome, op=name, status=status, digest=digest, answer={"id": f"id-{name}"} if answer is None else answer
        )

    def order(self, name: str, status: str = "posted", reason: str = "", **body: Any) -> dict[str, Any]:
        """Order, accept and bring to its end one transfer."""
        asked = self.body(name, **body)
        self.ask(name, asked)
        self.answer(name)
        self.book(asked, status, reason)
        return asked

    def book(self, body: dict[str, Any], status: str = "posted", reason: str = "", copy: str = "") -> None:
        transfer_id = f"id-{body['reference']}{copy}"
        asked = [body[name] for name in ("debit_account", "credit_account", "amount_minor", "currency")]
        self.transfers.append(Transfer(transfer_id, body["reference"], *asked, status, reason, NOW))
        steps = {
            "posted": ["accepted", "approved", "posted"],
            "rejected": ["accepted", "approved", "rejected"],
            "approved": ["accepted", "approved"],
        }.get(status, ["accepted", status] if status != "accepted" else ["accepted"])
        for step in steps:
            self.tell(f"transfer.{step}", transfer_id)
        if status == "posted":
            self.move(f"transfer:{transfer_id}", *asked[:3])

    def tell(self, kind: str, transfer_id: str) -> None:
        self.events.append(Event(len(self.events) + 1, kind, transfer_id, published=True, due=True, attempt=0))

    def move(self, reference: str, debit: str, credit: str, amount_minor: int) -> None:
        entry = Entry(len(self.entries) + 1, reference, "EUR")
        self.entries.append(entry)
        for side, account, signed in (("D", debit, -amount_minor), ("C", credit, amount_minor)):
            self.balances[account] = self.balances.get(account, 0) + signed
            self.counts[account] = self.counts.get(account, 0) + 1
            line = Line(entry.id, account, self.counts[account], side, amount_minor, self.balances[account])
            self.lines.append(line)

    def told(self, event: Event, recipient: str, title: str, **changes: Any) -> None:
        note = Note(len(self.notes) + 1, event.id, recipient, "email", event.subject, title, "delivered")
        self.notes.append(note._replace(**changes))
        self.mails.append(Mail(f"<notification-{note.id}@bankcore.invalid>", "a@example.com", title, note.transfer))

    def evidence(self) -> Evidence:
        accounts = {
            account: Account(
                account, f"customer-{account}", "EUR", balance, 0, None if account == "funding" else 0,
                self.counts[account],
            )
            for account, balance in self.balances.items()
        }  # fmt: skip
        lines = sorted(self.lines, key=lambda line: (line.account, line.number))
        return Evidence(
            self.transfers, self.entries, lines, self.events, self.letters, self.notes, accounts,
            wishes={f"customer-{ALICE}": {"email"}}, mails=self.mails,
            endpoints=self.endpoints, deliveries=self.deliveries, arrivals=self.arrivals,
        )  # fmt: skip

    def tell_alice(self) -> None:
        """Tell Alice, who wants e-mail, of everything that happened to her transfers."""
        titles = {"posted": "was made", "rejected": "was refused", "in_review": "is being reviewed",
                  "cancelled": "was cancelled", "parked": "is delayed"}  # fmt: skip
        by_id = {transfer.id: transfer for transfer in self.transfers}
        for event in self.events:
            kind, transfer = event.type.removeprefix("transfer."), by_id[event.subject]
            paying = transfer.debit_account == ALICE
            if kind in titles and (paying or (kind == "posted" and transfer.credit_account == ALICE)):
                self.told(
                    event,
                    f"customer-{ALICE}",
                    f"Your transfer of EUR 0.10 {titles[kind]}." if paying else "You received EUR 0.10.",
                )

    def hook(self, account: str) -> None:
        """Tell an account's customer by webhook of everything that happened to its transfers, once each."""
        endpoint = Endpoint(f"endpoint-{account}", f"customer-{account}", f"http://127.0.0.1/{account}", list(TOLD))
        self.endpoints.append(endpoint)
        by_id = {transfer.id: transfer for transfer in self.transfers}
        for event in self.events:
            transfer = by_id[event.subject]
            sides = [transfer.debit_account, *([transfer.credit_account] if event.type == "transfer.posted" else [])]
            if event.type in TOLD and account in sides:
                self.deliveries.append(Delivery(len(self.deliveries) + 1, endpoint.id, event.id, "delivered"))
                self.arrivals.append(Arrival(f"/{account}", f"evt_{event.id}", True, told(event, transfer), 204))

    def verdict(self) -> Verdict:
        record = read(self.folder)
        return conclude(record, weigh(record, self.evidence(), self.faults))


def told(event: Event, transfer: Transfer) -> str:
    """What a webhook says of an event."""
    data = {
        "transfer": transfer.id,
        "status": event.type.partition(".")[2],
        "reference": transfer.reference,
        "debit_account": transfer.debit_account,
        "credit_account": transfer.credit_account,
        "amount_minor": transfer.amount_minor,
        "currency": transfer.currency,
    }
    return json.dumps({"id": f"evt_{event.id}", "type": event.type, "data": data})
