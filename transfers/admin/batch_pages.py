"""Staff pages of batches, with how their transfers stand."""

from django.contrib import admin
from django.db.models import Count, QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from unfold.decorators import display

from bankcore.pages import Panel, ReadOnlyAdmin, list_link, moment, pretty_json
from transfers.models import Batch, Transfer
from transfers.states import Status

REFUSED_SHOWN_MAX = 100


@admin.register(Batch)
class BatchAdmin(ReadOnlyAdmin):
    list_display = ["id", "client", "atomic", "accepted", "when"]
    search_fields = ["id", "client"]
    search_help_text = "The whole id of a batch, or a client."
    fields = ["id", "client", "idempotency_key", "atomic", "accepted", "transfers", "when", "shown_refused"]

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Batch]":
        return super().get_queryset(request).defer("fingerprint")

    def panels(self, obj: Batch) -> list[Panel]:
        counts = Transfer.objects.filter(batch=obj).order_by().values_list("status").annotate(Count("pk"))
        return [
            Panel(
                title="Transfers by status",
                headers=["Status", "Transfers"],
                rows=[[Status(status).label, f"{number:,}"] for status, number in sorted(counts)],
                empty="No transfer was accepted.",
            )
        ]

    @display(description="transfers")
    def transfers(self, batch: Batch) -> SafeString:
        return list_link("transfers_transfer", f"q={batch.pk}", "Transfers of this batch")

    @display(description="refused rows")
    def shown_refused(self, batch: Batch) -> SafeString | str:
        return pretty_json(batch.refused[:REFUSED_SHOWN_MAX])

    @display(description="received (UTC)")
    def when(self, batch: Batch) -> str:
        return moment(batch.created_at)
