"""Identifiers: UUIDs of version 7 (RFC 9562), which sort by the time they were made and so stay close in an index."""

import re
from datetime import datetime
from uuid import UUID

from uuid_utils.compat import uuid7

__all__ = ["is_id", "new_id", "oldest_id_at", "parse_id"]

_AS_HANDED_OUT = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def new_id() -> UUID:
    return uuid7()


def oldest_id_at(moment: datetime) -> UUID:
    """Make the smallest id that a row created at `moment` (UTC, to the millisecond) can have."""
    return UUID(int=int(moment.timestamp() * 1000) << 80)


def is_id(text: str) -> bool:
    """Tell whether this is spelled as ids are handed out; another spelling of the same number is another string."""
    return _AS_HANDED_OUT.fullmatch(text) is not None


def parse_id(text: str) -> UUID | None:
    """Read an id exactly as it was handed out."""
    return UUID(text) if isinstance(text, str) and is_id(text) else None
