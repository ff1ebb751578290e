"""How the parts of a dead letter are shown: what it holds, what it asked for, who has asked for what."""

from collections.abc import Sequence
from typing import Any

from bankcore.messaging import undelivered
from bankcore.messaging.models import DeadLetter, DeskRequest
from bankcore.messaging.rooms import NOTHING, Forecast
from bankcore.pages import Panel, moment, page_link

LETTERS_SHOWN_MAX = 200
BODY_SHOWN_BYTES_MAX = 4096
HEX_BYTES = 16


def dead_letters(subject: Any) -> Panel:
    """Every time work on a subject could not be done."""
    letters = DeadLetter.objects.filter(subject=str(subject)).defer("body", "detail")[:LETTERS_SHOWN_MAX]
    return Panel(
        title="Dead letters",
        headers=["When (UTC)", "Cause", "State", "Task", "Attempts"],
        rows=[
            [
                moment(letter.created_at),
                page_link("messaging_deadletter", letter.pk, letter.cause),
                letter.get_state_display(),
                letter.task,
                letter.attempts,
            ]
            for letter in letters
        ],
        empty="None: every attempt found its end.",
    )


def requests(letter: DeadLetter) -> Panel:
    """What was asked about a letter that takes two people."""
    asked = DeskRequest.objects.filter(letter=letter).select_related("requested_by", "decided_by")
    return Panel(
        title="Second person",
        headers=["Asked (UTC)", "To", "By", "Reason", "Decision", "By"],
        rows=[
            [
                moment(one.requested_at),
                one.get_action_display(),
                one.requested_by,
                one.reason or "-",
                one.get_decision_display() or "waiting",
                one.decided_by or "-",
            ]
            for one in asked[:LETTERS_SHOWN_MAX]
        ],
        empty="Nobody has asked for a second person.",
    )


def forecasts(foreseen: Sequence[Forecast]) -> Panel:
    return Panel(
        title="What a replay would come to now",
        headers=["Letter", "Would", "Reason", "Detail", "Takes"],
        rows=[
            [
                page_link("messaging_deadletter", one.letter),
                one.would.replace("_", " "),
                one.reason or "-",
                one.detail or "-",
                "-" if one.would == NOTHING else "two people" if one.second_person else "one person",
            ]
            for one in foreseen
        ],
        empty="There is nothing to replay.",
    )


def body_text(letter: DeadLetter) -> str:
    """Show the body as text if it is text, else as bytes in hexadecimal."""
    if letter.body is None:
        return ""
    body = bytes(letter.body)
    shown, more = body[:BODY_SHOWN_BYTES_MAX], len(body) - BODY_SHOWN_BYTES_MAX
    try:
        text = shown.decode("utf-8")
        if not text.replace("\n", "").replace("\t", "").isprintable():
            text = _hexdump(shown)
    except UnicodeDecodeError:
        text = _hexdump(shown)
    return f"{text}\n... and {more:,} bytes more" if more > 0 else text or "(empty)"


def asked_for(letter: DeadLetter) -> str:
    """Say what a message asked for, or why that cannot be told."""
    if letter.body is None:
        return ""
    reading = undelivered.read(letter.headers, bytes(letter.body))
    if reading.why_not:
        return f"Cannot be replayed. {reading.why_not}"
    ids = ", ".join(map(str, reading.ids[:5]))
    return f"{reading.task}: {len(reading.ids)} id(s): {ids}{', ...' if len(reading.ids) > 5 else ''}"


def _hexdump(body: bytes) -> str:
    lines = []
    for start in range(0, len(body), HEX_BYTES):
        piece = body[start : start + HEX_BYTES]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        lines.append(f"{start:08x}  {piece.hex(' '):<{HEX_BYTES * 3}} {text}")
    return "\n".join(lines)
