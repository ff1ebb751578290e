"""Staff pages of the deny list."""

from typing import Any

from django.contrib import admin
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from unfold.decorators import display

from bankcore.messaging import audit
from bankcore.pages import BoundedAdmin, moment, page_link
from transfers.models import DeniedAccount


@admin.register(DeniedAccount)
class DeniedAccountAdmin(BoundedAdmin):
    list_display = ["account_id", "why", "created_by", "when"]
    list_select_related = ["created_by"]
    search_fields = ["account"]
    search_help_text = "The whole id of an account."
    raw_id_fields = ["account"]

    def get_fields(self, request: HttpRequest, obj: DeniedAccount | None = None) -> list[str]:
        return ["shown_account", "why", "created_by", "when"] if obj else ["account", "why"]

    def get_readonly_fields(self, request: HttpRequest, obj: DeniedAccount | None = None) -> list[str]:
        return ["shown_account", "created_by", "when"]

    @transaction.atomic
    def save_model(self, request: HttpRequest, obj: DeniedAccount, form: Any, change: bool) -> None:
        if not change:
            obj.created_by_id = request.user.pk
        super().save_model(request, obj, form, change)
        action = "account.deny_changed" if change else "account.deny"
        audit.record(actor=request.user.get_username(), action=action, subject=obj.account_id, reason=obj.why)

    @transaction.atomic
    def delete_model(self, request: HttpRequest, obj: DeniedAccount) -> None:
        subject, why = obj.account_id, obj.why
        super().delete_model(request, obj)
        actor = request.user.get_username()
        audit.record(actor=actor, action="account.allow", subject=subject, details={"was_denied_because": why})

    @transaction.atomic
    def delete_queryset(self, request: HttpRequest, queryset: "QuerySet[DeniedAccount]") -> None:
        for denied in queryset.select_for_update():
            self.delete_model(request, denied)

    @display(description="account")
    def shown_account(self, denied: DeniedAccount) -> SafeString | str:
        return page_link("accounts_account", denied.account_id)

    @display(description="since (UTC)")
    def when(self, denied: DeniedAccount) -> str:
        return moment(denied.created_at)
