"""Staff pages of transfers: everything known about one on one page, and nothing to edit."""

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.safestring import SafeString
from unfold.decorators import display

from accounts.admin.journal import entry_lines
from accounts.models import JournalEntry
from bankcore.identifiers import oldest_id_at
from bankcore.messaging.admin import audit_trail, dead_letters, timeline
from bankcore.pages import Panel, ReadOnlyAdmin, amount, moment, page_link, pretty_json
from transfers.models import Review, Transfer
from transfers.states import OPEN_STATES

REVERSALS_SHOWN_MAX = 100
STATUS_COLOURS = {
    "posted": "success",
    "accepted": "info",
    "approved": "info",
    "scheduled": "info",
    "in_review": "warning",
    "rejected": "danger",
    "parked": "danger",
    "cancelled": "primary",
}


class AcceptedFilter(admin.SimpleListFilter):
    """By age, through the id: ids are UUIDv7, so the primary key's index knows the time."""

    title = "accepted"
    parameter_name = "accepted"
    spans = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("hour", "In the last hour"), ("day", "In the last 24 hours"), ("week", "In the last 7 days")]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Transfer]") -> "QuerySet[Transfer]":
        span = self.spans.get(self.value() or "")
        return queryset.filter(pk__gte=oldest_id_at(timezone.now() - span)) if span else queryset


@admin.register(Transfer)
class TransferAdmin(ReadOnlyAdmin):
    list_display = ["id", "status_label", "status_reason", "shown_amount", "debit", "credit", "when"]
    list_filter = ["status", AcceptedFilter]
    search_fields = ["id", "debit_account", "credit_account", "batch"]
    search_help_text = "The whole id of a transfer, an account or a batch."
    fieldsets = [
        (None, {"fields": ["id", "status_label", "status_reason", "shown_amount", "debit", "credit", "reference"]}),
        ("Times (UTC)", {"fields": ["when", "updated", "posted", "execute_on", "expires"]}),
        (
            "Where it came from",
            {
                "fields": [
                    "client",
                    "initiator",
                    "external_id",
                    "idempotency_key",
                    "request_id",
                    "shown_batch",
                    "shown_metadata",
                ]
            },
        ),
        ("Reversal", {"fields": ["shown_reversal_of", "reversed_amount"]}),
    ]

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Transfer]":
        rows = super().get_queryset(request)
        status = request.GET.get("status__exact")
        # Few of all transfers, and no index on those knows their status.
        return rows.filter(open__status=status) if status in OPEN_STATES else rows

    def panels(self, obj: Transfer) -> list[Panel]:
        entry = JournalEntry.objects.filter(reference=f"transfer:{obj.pk}").first()
        panels = [timeline(obj.pk), entry_lines(entry), _review(obj), dead_letters(obj.pk), audit_trail(obj.pk)]
        return [*panels, _reversals(obj)] if obj.reversed_minor else panels

    @display(description="status", label=STATUS_COLOURS)
    def status_label(self, transfer: Transfer) -> str:
        return transfer.status

    @display(description="amount")
    def shown_amount(self, transfer: Transfer) -> SafeString | str:
        return amount(transfer.amount_minor, transfer.currency)

    @display(description="reversed so far")
    def reversed_amount(self, transfer: Transfer) -> SafeString | str:
        return amount(transfer.reversed_minor, transfer.currency)

    @display(description="debit account")
    def debit(self, transfer: Transfer) -> SafeString | str:
        return page_link("accounts_account", transfer.debit_account_id)

    @display(description="credit account")
    def credit(self, transfer: Transfer) -> SafeString | str:
        return page_link("accounts_account", transfer.credit_account_id)

    @display(description="batch")
    def shown_batch(self, transfer: Transfer) -> SafeString | str:
        return page_link("transfers_batch", transfer.batch_id)

    @display(description="reversal of")
    def shown_reversal_of(self, transfer: Transfer) -> SafeString | str:
        return page_link("transfers_transfer", transfer.reversal_of_id)

    @display(description="metadata")
    def shown_metadata(self, transfer: Transfer) -> SafeString | str:
        return pretty_json(transfer.metadata)

    @display(description="accepted (UTC)")
    def when(self, transfer: Transfer) -> str:
        return moment(transfer.created_at)

    @display(description="updated")
    def updated(self, transfer: Transfer) -> str:
        return moment(transfer.updated_at)

    @display(description="posted")
    def posted(self, transfer: Transfer) -> str:
        return moment(transfer.posted_at)

    @display(description="expires")
    def expires(self, transfer: Transfer) -> str:
        return moment(transfer.expires_at)


def _review(transfer: Transfer) -> Panel:
    reviews = Review.objects.filter(pk=transfer.pk).select_related("decided_by")
    return Panel(
        title="Review",
        headers=["Opened (UTC)", "Reasons", "Decision", "By", "Note"],
        rows=[
            [
                page_link("transfers_review", review.pk, moment(review.opened_at)),
                ", ".join(map(str, review.reasons)),
                review.get_decision_display() or "waiting",
                review.decided_by or "-",
                review.note or "-",
            ]
            for review in reviews
        ],
        empty="No rule asked for a person's decision.",
    )


def _reversals(transfer: Transfer) -> Panel:
    # Found through the account that pays back: its index, unlike the link itself, is there for every transfer.
    reversals = Transfer.objects.filter(
        debit_account=transfer.credit_account_id, pk__gt=transfer.pk, reversal_of=transfer.pk
    )[:REVERSALS_SHOWN_MAX]
    return Panel(
        title="Reversals",
        headers=["Transfer", "Amount", "Status"],
        rows=[
            [page_link("transfers_transfer", r.pk), amount(r.amount_minor, r.currency), r.get_status_display()]
            for r in reversals
        ],
        empty="None.",
    )
