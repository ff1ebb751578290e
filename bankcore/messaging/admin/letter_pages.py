"""Staff pages of dead letters."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from unfold.decorators import display

from bankcore.messaging.admin.event_pages import TIMELINE_MAX, timeline
from bankcore.messaging.models import DeadLetter
from bankcore.pages import Panel, ReadOnlyAdmin, moment, page_link, preformatted, pretty_json

BODY_SHOWN_BYTES_MAX = 4096


def dead_letters(subject: Any) -> Panel:
    """Every time work on a subject could not be done."""
    letters = DeadLetter.objects.filter(subject=str(subject)).defer("body", "detail")[:TIMELINE_MAX]
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


class OpenFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return list(DeadLetter.State.choices)

    def queryset(self, request: HttpRequest, queryset: "QuerySet[DeadLetter]") -> "QuerySet[DeadLetter]":
        return queryset.filter(state=self.value()) if self.value() in DeadLetter.State.values else queryset


@admin.register(DeadLetter)
class DeadLetterAdmin(ReadOnlyAdmin):
    list_display = ["id", "state_label", "cause", "task", "queue", "subject", "attempts", "when"]
    list_filter = [OpenFilter]
    list_select_related = ["resolved_by"]
    search_fields = ["id", "subject"]
    search_help_text = "A dead letter's number, or the whole id of a transfer."
    fieldsets = [
        (None, {"fields": ["state_label", "cause", "task", "queue", "subject", "attempts", "when"]}),
        ("What went wrong", {"fields": ["shown_detail"]}),
        ("The message", {"fields": ["shown_headers", "shown_body", "body_digest"]}),
        ("Resolution", {"fields": ["resolved", "resolved_by", "resolution"]}),
    ]

    def get_queryset(self, request: HttpRequest) -> "QuerySet[DeadLetter]":
        letters = super().get_queryset(request)
        # A list of pages full of tracebacks and bodies is not read for its first column.
        return letters if request.resolver_match and "object_id" in request.resolver_match.kwargs else letters.defer(
            "detail", "body", "headers"
        )  # fmt: skip

    def panels(self, obj: DeadLetter) -> list[Panel]:
        return [timeline(obj.subject)] if obj.subject else []

    @display(description="state", label={"open": "danger", "replayed": "success", "discarded": "info"})
    def state_label(self, letter: DeadLetter) -> str:
        return letter.state

    @display(description="created (UTC)")
    def when(self, letter: DeadLetter) -> str:
        return moment(letter.created_at)

    @display(description="resolved (UTC)")
    def resolved(self, letter: DeadLetter) -> str:
        return moment(letter.resolved_at)

    @display(description="traceback")
    def shown_detail(self, letter: DeadLetter) -> SafeString | str:
        return preformatted(letter.detail)

    @display(description="headers")
    def shown_headers(self, letter: DeadLetter) -> SafeString | str:
        return pretty_json(letter.headers)

    @display(description="body")
    def shown_body(self, letter: DeadLetter) -> SafeString | str:
        body = bytes(letter.body or b"")
        text = body[:BODY_SHOWN_BYTES_MAX].decode("utf-8", errors="backslashreplace")
        more = len(body) - BODY_SHOWN_BYTES_MAX
        return preformatted(f"{text}\n... and {more:,} bytes more" if more > 0 else text)
