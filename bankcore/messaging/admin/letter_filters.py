"""What the list of dead letters is filtered by; it opens with what is open."""

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.db.models import Count, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from bankcore.messaging.models import DeadLetter

CAUSES_SHOWN_MAX = 12
CAUSES_LOOKED_AT_MAX = 2_000


class StateFilter(admin.SimpleListFilter):
    """Open is what the page opens with."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("replayed", "Replayed"), ("discarded", "Discarded"), ("all", "All")]

    def choices(self, changelist: Any) -> Any:
        yield {
            "selected": self.value() in (None, "open"),
            "query_string": changelist.get_query_string(remove=[self.parameter_name]),
            "display": "Open",
        }
        yield from list(super().choices(changelist))[1:]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[DeadLetter]") -> "QuerySet[DeadLetter]":
        if self.value() == "all":
            return queryset
        return queryset.filter(state=self.value() if self.value() in DeadLetter.State.values else "open")


class CauseFilter(admin.SimpleListFilter):
    """The most frequent causes of the letters that came last."""

    title = "cause"
    parameter_name = "cause"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        latest = DeadLetter.objects.filter(state="open").order_by("-pk")[:CAUSES_LOOKED_AT_MAX]
        causes = DeadLetter.objects.filter(pk__in=latest.values("pk")).order_by().values_list("cause")
        counted = causes.annotate(number=Count("pk")).order_by("-number", "cause")[:CAUSES_SHOWN_MAX]
        return [(cause, f"{cause[:60]} ({number:,})") for cause, number in counted]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[DeadLetter]") -> "QuerySet[DeadLetter]":
        return queryset.filter(cause=self.value()) if self.value() else queryset


class KindFilter(admin.SimpleListFilter):
    title = "kind"
    parameter_name = "kind"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("parked", "Parked work"), ("message", "Messages")]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[DeadLetter]") -> "QuerySet[DeadLetter]":
        wanted = {"parked": True, "message": False}.get(self.value() or "")
        return queryset if wanted is None else queryset.filter(body__isnull=wanted)


class AgeFilter(admin.SimpleListFilter):
    title = "age"
    parameter_name = "age"
    spans = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("hour", "Older than an hour"), ("day", "Older than a day"), ("week", "Older than a week")]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[DeadLetter]") -> "QuerySet[DeadLetter]":
        span = self.spans.get(self.value() or "")
        return queryset.filter(created_at__lt=timezone.now() - span) if span else queryset
