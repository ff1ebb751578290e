"""Who was told what: nothing that did not happen, everything that did, once each; and is the desk complete?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compose.gameday.evidence import Event, Evidence, Transfer
from compose.gameday.findings import Findings

# What a notification's title says, and what must have happened for it to be true.
_CLAIMS = {
    "was made": "transfer.posted",
    "You received": "transfer.posted",
    "was refused": "transfer.rejected",
    "was cancelled": "transfer.cancelled",
    "is being reviewed": "transfer.in_review",
    "is delayed": "transfer.parked",
}
_TOLD = frozenset(_CLAIMS.values())
_JUDGED_CHANNELS = frozenset({"in_app", "email"})


def judge_notifications(evidence: Evidence, findings: Findings) -> None:
    wanted = {key for event in evidence.events for key in _wanted(event, evidence)}
    found = Counter((note.event, note.recipient, note.channel) for note in evidence.notes)
    for event, recipient, channel in sorted(wanted - found.keys()):
        findings.add("notifications_missing", f"event {event} was not told to {recipient} by {channel}")
    events = {event.id: event for event in evidence.events}
    for note in evidence.notes:
        key = (note.event, note.recipient, note.channel)
        what = f"notification {note.id} ({note.title!r}) of {note.transfer}"
        event_of = events.get(note.event)
        if event_of is None or event_of.subject != note.transfer:
            findings.add("notifications_false", f"{what}: no such event")
        elif note.channel in _JUDGED_CHANNELS and key not in wanted:
            findings.add("notifications_false", f"{what}: nobody asked to be told this")
        elif not _is_true(note.title, note.transfer, evidence):
            findings.add("notifications_false", f"{what}: that did not happen")
        if found[key] > 1:
            findings.add("notifications_false", f"{what}: told {found[key]} times")
        if note.state != "delivered":
            findings.add("notifications_missing", f"{what}: is {note.state}")
    _judge_mails(evidence, findings)


def _wanted(event: Event, evidence: Evidence) -> Iterator[tuple[int, str, str]]:
    transfer = evidence.by_id.get(event.subject) if event.type in _TOLD else None
    if transfer is None:
        return
    for customer in concerned(event.type, transfer, evidence):
        for channel in evidence.wishes.get(customer, ()):
            if channel in _JUDGED_CHANNELS:
                yield event.id, customer, channel


def concerned(event_type: str, transfer: Transfer, evidence: Evidence) -> set[str]:
    sides = [transfer.debit_account, *([transfer.credit_account] if event_type == "transfer.posted" else [])]
    customers = [evidence.accounts[side].customer for side in sides if side in evidence.accounts]
    return {customer for customer in customers if customer is not None}


def _is_true(title: str, transfer_id: str, evidence: Evidence) -> bool:
    claimed = [happened for words, happened in _CLAIMS.items() if words in title]
    return bool(claimed) and all(evidence.had(transfer_id, happened) for happened in claimed)


def _judge_mails(evidence: Evidence, findings: Findings) -> None:
    """Every e-mail tells the truth and belongs to a notification; a repeat carries its first Message-ID and is one."""
    if evidence.mails is None:
        return
    notes = {f"<notification-{note.id}@bankcore.invalid>": note for note in evidence.notes if note.channel == "email"}
    sent = {mail.message_id for mail in evidence.mails}
    for mail in evidence.mails:
        note = notes.get(mail.message_id)
        what = f"e-mail {mail.message_id} to {mail.to} ({mail.title!r}) of {mail.transfer}"
        if note is None or note.transfer != mail.transfer:
            findings.add("notifications_false", f"{what}: belongs to no notification")
        elif not _is_true(mail.title, mail.transfer, evidence):
            findings.add("notifications_false", f"{what}: that did not happen")
    for message_id, note in notes.items():
        if note.state == "delivered" and message_id not in sent:
            findings.add("notifications_missing", f"notification {note.id} is delivered, but there is no e-mail")


def judge_desk(faults: Sequence[Mapping[str, Any]], evidence: Evidence, findings: Findings) -> None:
    """Everything that the faults poisoned is on the desk, with a cause.

    A fault names its messages as `poison`: the SHA-256 of each body in hex, once for every time that it was sent.
    """
    wanted = Counter(digest for fault in faults for digest in fault.get("poison", ()))
    found = Counter(letter.body_digest for letter in evidence.letters)
    for digest, times in wanted.items():
        for _ in range(times - found[digest]):
            findings.add("dead_letters_missing", f"a message with the body {digest[:16]} is not on the desk")
    for letter in evidence.letters:
        if not letter.cause.strip():
            findings.add("dead_letters_missing", f"dead letter {letter.id} has no cause")
