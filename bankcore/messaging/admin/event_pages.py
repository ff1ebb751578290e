"""Staff pages of the event log: to be looked at, as an event never changes."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from unfold.decorators import display

from bankcore.messaging import outbox
from bankcore.messaging.models import Event
from bankcore.pages import Panel, ReadOnlyAdmin, moment, one_line_json, page_link, pretty_json

# A subject has about ten events; a traceback of a page must not follow from one that went wild.
TIMELINE_MAX = 200


def timeline(subject: Any) -> Panel:
    """What happened to a subject, oldest first."""
    events = list(Event.objects.filter(subject=str(subject)).order_by("-id")[:TIMELINE_MAX])
    return Panel(
        title="Timeline",
        headers=["When (UTC)", "Event", "By", "Data", "Published", "Attempt"],
        rows=[
            [
                moment(event.created_at),
                page_link("messaging_event", event.pk, event.type),
                event.actor or "-",
                one_line_json(event.data),
                moment(event.published_at),
                outbox.counted(event.attempt),
            ]
            for event in reversed(events)
        ],
        empty="Nothing has been recorded yet.",
    )


class OwedFilter(admin.SimpleListFilter):
    title = "delivery"
    parameter_name = "delivery"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("owed", "Owed to the broker")]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Event]") -> "QuerySet[Event]":
        return queryset & Event.objects.owed() if self.value() == "owed" else queryset


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
    list_display = ["id", "type", "subject", "when", "actor", "attempts", "published"]
    list_filter = [OwedFilter]
    search_fields = ["id", "subject"]
    search_help_text = "An event's number, or the whole id of its subject."
    fields = [
        "id", "type", "subject", "partition_key", "shown_data", "actor", "request_id", "when", "due", "attempts",
        "published",
    ]  # fmt: skip

    def panels(self, obj: Event) -> list[Panel]:
        return [timeline(obj.subject)]

    @display(description="created (UTC)")
    def when(self, event: Event) -> str:
        return moment(event.created_at)

    @display(description="due (UTC)")
    def due(self, event: Event) -> str:
        return moment(event.due_at)

    @display(description="attempt")
    def attempts(self, event: Event) -> int:
        return outbox.counted(event.attempt)

    @display(description="published (UTC)")
    def published(self, event: Event) -> str:
        return moment(event.published_at)

    @display(description="data")
    def shown_data(self, event: Event) -> SafeString | str:
        return pretty_json(event.data)
