"""Lists as pages by key, newest first: each costs the same however deep it lies, and new rows never shift it."""

import base64
from collections.abc import Sequence
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import Model, QuerySet
from rest_framework.pagination import BasePagination
from rest_framework.utils.urls import replace_query_param

from bankcore.errors import FieldError, Invalid
from bankcore.wire import json_response

PAGE_SIZE, PAGE_SIZE_MAX = 50, 200


class NewestFirst(BasePagination):
    """Pages of rows by a unique, growing key; `key` is the id unless the list counts by something else."""

    onward, back = "older", "newer"

    def __init__(self, key: str = "id") -> None:
        self.key = key
        self.url = ""
        self.next: str | None = None
        self.previous: str | None = None

    def paginate_queryset(self, queryset: Any, request: Any, view: Any = None) -> list[Any]:
        return self.paginate([queryset], request)

    def paginate(self, sources: Sequence[QuerySet[Any]], request: Any) -> list[Any]:
        """Merge several querysets of one model, each of which is read along its own index."""
        size = _page_size(request.GET.get("page_size", str(PAGE_SIZE)))
        towards, position = self._position(request.GET.get("cursor", ""), sources[0].model)
        self.url = request.build_absolute_uri()
        order = self.key if towards == "newer" else f"-{self.key}"
        bound = {} if position is None else {f"{self.key}__{'gt' if towards == 'newer' else 'lt'}": position}
        pages = [source.filter(**bound).order_by(order)[: size + 1] for source in sources]
        merged = pages[0] if len(pages) == 1 else pages[0].union(*pages[1:]).order_by(order)[: size + 1]
        rows = list(merged)
        more, rows = len(rows) > size, rows[:size]
        if towards == self.back:
            rows.reverse()
        if rows and (more or towards == self.back):
            self.next = _cursor(self.onward, getattr(rows[-1], self.key))
        if rows and position is not None and (more or towards == self.onward):
            self.previous = _cursor(self.back, getattr(rows[0], self.key))
        return rows

    def _position(self, cursor: str, model: type[Model]) -> tuple[str, Any]:
        if not cursor:
            return self.onward, None
        try:
            towards, _, position = base64.urlsafe_b64decode(cursor.encode("ascii")).decode("ascii").partition(":")
            key: Any = model._meta.get_field(self.key)
            if towards not in ("older", "newer"):
                raise ValueError
            return towards, key.to_python(position)
        except (ValueError, ValidationError) as error:
            raise Invalid(errors=[FieldError("cursor", "invalid", "Use a link from a page as it stands.")]) from error

    def links(self) -> dict[str, str | None]:
        return {name: cursor and replace_query_param(self.url, "cursor", cursor)
                for name, cursor in (("next", self.next), ("previous", self.previous))}  # fmt: skip

    def get_paginated_response(self, data: Any) -> Any:
        return json_response({"results": data, **self.links()})


class OldestFirst(NewestFirst):
    """The same for what is read like a story, from its beginning."""

    onward, back = "newer", "older"


def _cursor(towards: str, position: Any) -> str:
    return base64.urlsafe_b64encode(f"{towards}:{position}".encode()).decode("ascii")


def _page_size(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= PAGE_SIZE_MAX:
        return int(text)
    raise Invalid(errors=[FieldError("page_size", "invalid", f"Give 1 to {PAGE_SIZE_MAX}.")])
