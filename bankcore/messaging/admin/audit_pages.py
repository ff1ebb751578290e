"""Staff pages of the audit log: who did what to what, and why."""

from typing import Any

from django.contrib import admin
from django.utils.safestring import SafeString
from unfold.decorators import display

from bankcore.messaging.models import AuditEntry
from bankcore.pages import Panel, ReadOnlyAdmin, moment, one_line_json, page_link, pretty_json

TRAIL_MAX = 100


def audit_trail(subject: Any) -> Panel:
    """What people did to a subject, oldest first."""
    entries = list(AuditEntry.objects.filter(subject=str(subject))[:TRAIL_MAX])
    return Panel(
        title="Audit",
        headers=["When (UTC)", "Action", "By", "Reason", "Details"],
        rows=[
            [
                moment(entry.at),
                page_link("messaging_auditentry", entry.pk, entry.action),
                entry.actor,
                entry.reason or "-",
                one_line_json(entry.details),
            ]
            for entry in reversed(entries)
        ],
        empty="Nobody has acted on this.",
    )


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnlyAdmin):
    list_display = ["id", "when", "actor", "action", "subject", "reason"]
    search_fields = ["id", "subject", "actor", "action"]
    search_help_text = "An entry's number, the whole id of a subject, a person's name, or an action."
    fields = ["id", "when", "actor", "action", "subject", "reason", "shown_details", "request_id"]

    @display(description="when (UTC)")
    def when(self, entry: AuditEntry) -> str:
        return moment(entry.at)

    @display(description="details")
    def shown_details(self, entry: AuditEntry) -> SafeString | str:
        return pretty_json(entry.details)
