"""What became of it: everything the verdict reads from the database (read-only) and from the mail folder."""

from __future__ import annotations

import email
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from email import policy
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from compose.gameday.receiver import Arrival, read_arrivals

_MAIL_SEPARATOR = re.compile(r"^-{79}$", re.MULTILINE)


class Transfer(NamedTuple):
    id: str
    reference: str
    debit_account: str
    credit_account: str
    amount_minor: int
    currency: str
    status: str
    reason: str
    updated_at: datetime


class Line(NamedTuple):
    entry: int
    account: str
    number: int
    side: str
    amount_minor: int
    balance_after_minor: int

    @property
    def signed_minor(self) -> int:
        return self.amount_minor if self.side == "C" else -self.amount_minor


class Entry(NamedTuple):
    id: int
    reference: str
    currency: str


class Event(NamedTuple):
    id: int
    type: str
    subject: str
    published: bool
    due: bool
    attempt: int


class Letter(NamedTuple):
    id: int
    state: str
    subject: str
    cause: str
    body_digest: str


class Note(NamedTuple):
    """A notification as the bank has written it down."""

    id: int
    event: int
    recipient: str
    channel: str
    transfer: str
    title: str
    state: str


class Account(NamedTuple):
    id: str
    customer: str | None
    currency: str
    posted_minor: int
    held_minor: int
    limit_minor: int | None
    lines: int


class Endpoint(NamedTuple):
    """Where a customer wants to be told by webhook."""

    id: str
    customer: str | None
    url: str
    event_types: list[str]


class Delivery(NamedTuple):
    """One event for one endpoint, as the bank has written it down."""

    id: int
    endpoint: str
    event: int
    state: str


class Mail(NamedTuple):
    message_id: str
    to: str
    title: str
    transfer: str


@dataclass
class Evidence:
    """One snapshot of the bank."""

    transfers: list[Transfer]
    entries: list[Entry]
    lines: list[Line]
    events: list[Event]
    letters: list[Letter]
    notes: list[Note]
    accounts: dict[str, Account]
    # (customer, channel) of everybody who wants to be told.
    wishes: dict[str, set[str]]
    # None: nobody said where they are.
    mails: list[Mail] | None = None
    endpoints: list[Endpoint] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    # Every call that reached an endpoint, in the order of arrival.
    arrivals: list[Arrival] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.by_reference: dict[str, list[Transfer]] = defaultdict(list)
        for transfer in self.transfers:
            self.by_reference[transfer.reference].append(transfer)
        self.by_id = {transfer.id: transfer for transfer in self.transfers}
        self.entries_of: dict[str, list[Entry]] = defaultdict(list)
        for entry in self.entries:
            self.entries_of[entry.reference].append(entry)
        self.lines_of: dict[int, list[Line]] = defaultdict(list)
        for line in self.lines:
            self.lines_of[line.entry].append(line)
        self.history_of: dict[str, list[Event]] = defaultdict(list)
        for event in self.events:
            self.history_of[event.subject].append(event)

    def had(self, transfer_id: str, event_type: str) -> bool:
        return any(event.type == event_type for event in self.history_of[transfer_id])


_TRANSFERS = """
SELECT id::text, reference, debit_account_id::text, credit_account_id::text, amount_minor, currency, status,
       status_reason, updated_at
  FROM transfers_transfer ORDER BY id
"""
_ENTRIES = "SELECT id, reference, currency FROM accounts_journalentry ORDER BY id"
_LINES = """
SELECT entry_id, account_id::text, number, side, amount_minor, balance_after_minor
  FROM accounts_journalline ORDER BY account_id, number, id
"""
_EVENTS = """
SELECT id, type, subject, published_at IS NOT NULL, due_at <= statement_timestamp(), attempt
  FROM messaging_event ORDER BY id
"""
_LETTERS = "SELECT id, state, subject, cause, body_digest FROM messaging_deadletter ORDER BY id"
_NOTES = """
SELECT id, event, recipient::text, channel, transfer::text, title, state FROM notifications_notification ORDER BY id
"""
_ACCOUNTS = """
SELECT id::text, customer_id::text, currency, posted_minor, held_minor, limit_minor, lines FROM accounts_account
"""
_ENDPOINTS = """
SELECT id::text, customer::text, url, event_types FROM notifications_webhookendpoint WHERE state = 'active' ORDER BY id
"""
_DELIVERIES = """
SELECT id, endpoint_id::text, event, state FROM notifications_webhookdelivery ORDER BY id
"""
_WISHES = "SELECT customer::text, channel FROM notifications_subscription"


def gather(database_url: str, mail: Path | None = None, webhooks: Path | None = None) -> Evidence:
    """Read one snapshot of the database, changing nothing, and all e-mails and webhooks that have been sent."""
    with psycopg.connect(database_url, options="-c default_transaction_read_only=on") as database:
        database.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        wishes: dict[str, set[str]] = defaultdict(set)
        for customer, channel in database.execute(_WISHES):
            wishes[customer].add(channel)
        return Evidence(
            transfers=_rows(database, _TRANSFERS, Transfer),
            entries=_rows(database, _ENTRIES, Entry),
            lines=_rows(database, _LINES, Line),
            events=_rows(database, _EVENTS, Event),
            letters=_rows(database, _LETTERS, Letter),
            notes=_rows(database, _NOTES, Note),
            accounts={account.id: account for account in _rows(database, _ACCOUNTS, Account)},
            wishes=wishes,
            mails=list(read_mails(mail)) if mail else None,
            endpoints=_rows(database, _ENDPOINTS, Endpoint),
            deliveries=_rows(database, _DELIVERIES, Delivery),
            arrivals=read_arrivals(webhooks) if webhooks else [],
        )


def _rows(database: psycopg.Connection[Any], sql: str, shape: Any) -> list[Any]:
    return [shape._make(row) for row in database.execute(sql)]


def read_mails(folder: Path) -> Iterator[Mail]:
    """Read what Django's file backend wrote; a message that its writer did not finish is left out."""
    for path in sorted(folder.glob("*.log")):
        for text in _MAIL_SEPARATOR.split(path.read_text(errors="replace"))[:-1]:
            message = email.message_from_string(text.lstrip("\n"), policy=policy.default)
            body = message.get_body()
            content = body.get_content() if body is not None else ""
            named = re.search(r"^Transfer: (\S+)", content, re.MULTILINE)
            yield Mail(
                message_id=str(message["Message-ID"]),
                to=str(message["To"]),
                title=" ".join(str(message["Subject"]).split()),
                transfer=named.group(1) if named else "",
            )
