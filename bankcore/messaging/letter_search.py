"""Find dead letters: by what they are, what went wrong, what they are about, and their age."""

from collections.abc import Mapping
from typing import Any

from django.db.models import QuerySet

from bankcore.messaging.models import DeadLetter

_LOOKUPS = {
    "state": "state",
    "task": "task",
    "queue": "queue",
    "subject": "subject",
    # Causes end in what the error said: their beginning is what several have in common.
    "cause": "cause__startswith",
    "created_from": "created_at__gte",
    "created_to": "created_at__lt",
}


def find_letters(filters: Mapping[str, Any]) -> "QuerySet[DeadLetter]":
    """Select letters that fit every filter given, newest first; the large columns are read only when asked for."""
    wanted = {_LOOKUPS[name]: value for name, value in filters.items() if value not in (None, "")}
    return DeadLetter.objects.filter(**wanted).select_related("resolved_by").defer("headers", "body", "detail")


def open_letters(filters: Mapping[str, Any], limit: int) -> list[int]:
    """The numbers of the open letters that fit, those that came first at the front; at most `limit`."""
    letters = find_letters({**filters, "state": DeadLetter.State.OPEN}).order_by("pk")
    return list(letters.values_list("pk", flat=True)[:limit])
