"""Identifiers: UUIDs of version 7 (RFC 9562), which sort by the time they were made and so stay close in an index."""

from datetime import datetime
from uuid import UUID

from uuid_utils.compat import uuid7

__all__ = ["new_id", "oldest_id_at", "parse_id"]


def new_id() -> UUID:
    return uuid7()


def oldest_id_at(moment: datetime) -> UUID:
    """Make the smallest id that a row created at `moment` (UTC, to the millisecond) can have."""
    return UUID(int=int(moment.timestamp() * 1000) << 80)


def parse_id(text: str) -> UUID | None:
    """Read an id exactly as it was handed out; another spelling of the same number is another, unknown string."""
    try:
        parsed = UUID(text)
    except (ValueError, AttributeError, TypeError):
        return None
    return parsed if str(parsed) == text else None
