"""Moments and days on the wire: RFC 3339 in, UTC with a `Z` out. Nothing is guessed: a moment names its offset."""

import re
from datetime import UTC, date, datetime

_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def parse_moment(text: str) -> datetime:
    """Read an RFC 3339 moment into UTC.

    Raises:
        ValueError: it is not one, or lies outside the calendar.
    """
    if not _MOMENT.fullmatch(text):
        raise ValueError("Give a moment such as 2030-01-31T12:00:00Z.")
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError("There is no such moment.") from error


def parse_day(text: str) -> date:
    if not _DAY.fullmatch(text):
        raise ValueError("Give a day such as 2030-01-31.")
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ValueError("There is no such day.") from error


def format_moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
