"""Staff pages of customers and their accounts. Balances are shown, never edited; freezing goes through its verb."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.safestring import SafeString
from unfold.decorators import action, display
from unfold.forms import BaseDialogForm

from accounts.freezing import freeze_account, unfreeze_account
from accounts.models import Account, Customer, JournalLine
from bankcore import selection
from bankcore.messaging.admin import audit_trail, timeline
from bankcore.pages import Panel, PanelAdmin, ReadOnlyAdmin, amount, list_link, moment, page_link

RECENT_LINES = 20
ACCOUNTS_SHOWN_MAX = 100


@admin.register(Customer)
class CustomerAdmin(PanelAdmin):
    list_display = ["name", "id", "email", "when"]
    search_fields = ["id"]
    search_help_text = "The whole id of a customer."
    fields = ["id", "name", "email", "when"]
    readonly_fields = ["id", "when"]

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def panels(self, obj: Customer) -> list[Panel]:
        accounts = Account.objects.filter(customer=obj)[:ACCOUNTS_SHOWN_MAX]
        return [
            Panel(
                title="Accounts",
                headers=["Account", "Name", "Balance", "Status"],
                rows=[
                    [
                        page_link("accounts_account", account.pk),
                        account.name or "-",
                        amount(account.posted_minor, account.currency),
                        account.get_status_display(),
                    ]
                    for account in accounts
                ],
                empty="No accounts yet.",
            )
        ]

    @display(description="since (UTC)")
    def when(self, customer: Customer) -> str:
        return moment(customer.created_at)


class HolderFilter(admin.SimpleListFilter):
    title = "holder"
    parameter_name = "holder"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("bank", "The bank"), ("customer", "Customers")]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Account]") -> "QuerySet[Account]":
        wanted = {"bank": Q(customer=None), "customer": Q(customer__isnull=False)}.get(self.value() or "")
        return queryset.filter(wanted) if wanted else queryset


@admin.register(Account)
class AccountAdmin(ReadOnlyAdmin):
    list_display = ["id", "name", "holder", "balance", "held", "status_label", "when"]
    list_filter = ["status", HolderFilter]
    list_select_related = ["customer"]
    search_fields = ["id", "customer"]
    search_help_text = "The whole id of an account or of its customer."
    fieldsets = [
        (None, {"fields": ["id", "name", "holder", "currency", "status_label", "when"]}),
        ("Money", {"fields": ["balance", "held", "available", "limit", "lines", "transfers"]}),
    ]
    actions = ["freeze_selected", "unfreeze_selected"]
    actions_detail = ["freeze", "unfreeze"]

    def panels(self, obj: Account) -> list[Panel]:
        lines = JournalLine.objects.filter(account=obj).select_related("entry").order_by("-number")[:RECENT_LINES]
        recent = Panel(
            title="Recent journal lines",
            headers=["No.", "When (UTC)", "Entry", "Side", "Amount", "Balance after"],
            rows=[
                [
                    line.number,
                    moment(line.entry.created_at),
                    page_link("accounts_journalentry", line.entry_id, line.entry.reference),
                    line.get_side_display(),
                    amount(line.amount_minor, obj.currency),
                    amount(line.balance_after_minor, obj.currency),
                ]
                for line in lines
            ],
            empty="No money has moved on this account.",
        )
        return [recent, timeline(obj.pk), audit_trail(obj.pk)]

    @display(description="holder")
    def holder(self, account: Account) -> SafeString | str:
        if account.customer is None:
            return "The bank"
        return page_link("accounts_customer", account.customer_id, account.customer.name)

    @display(description="status", label={"open": "success", "frozen": "warning", "closed": "danger"})
    def status_label(self, account: Account) -> str:
        return account.status

    @display(description="balance")
    def balance(self, account: Account) -> SafeString | str:
        return amount(account.posted_minor, account.currency)

    @display(description="held")
    def held(self, account: Account) -> SafeString | str:
        return amount(account.held_minor, account.currency)

    @display(description="left after holds")
    def available(self, account: Account) -> SafeString | str:
        return amount(account.posted_minor - account.held_minor, account.currency)

    @display(description="may go below zero by")
    def limit(self, account: Account) -> SafeString | str:
        if account.limit_minor is None:
            return "any amount"
        return amount(account.limit_minor, account.currency)

    @display(description="transfers")
    def transfers(self, account: Account) -> SafeString | str:
        return list_link("transfers_transfer", f"q={account.pk}", "Transfers from and to this account")

    @display(description="opened (UTC)")
    def when(self, account: Account) -> str:
        return moment(account.created_at)

    def has_freeze_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("accounts.change_account")

    @admin.action(description="Freeze the selected accounts", permissions=["freeze"])
    def freeze_selected(self, request: HttpRequest, queryset: "QuerySet[Account]") -> None:
        self._turn_selected(request, queryset, freeze_account, "frozen")

    @admin.action(description="Unfreeze the selected accounts", permissions=["freeze"])
    def unfreeze_selected(self, request: HttpRequest, queryset: "QuerySet[Account]") -> None:
        self._turn_selected(request, queryset, unfreeze_account, "opened again")

    @action(
        description="Freeze", icon="ac_unit", url_path="freeze", permissions=["freeze"],
        dialog={
            "title": "Freeze this account?", "form_class": BaseDialogForm, "form_submit_text": "Freeze",
            "description": "Transfers from and to it are refused until it is unfrozen.",
        },
    )  # fmt: skip
    def freeze(self, request: HttpRequest, form: BaseDialogForm, object_id: str) -> HttpResponse:
        self._turn(request, [UUID(object_id)], freeze_account, "frozen")
        return _reload(object_id)

    @action(
        description="Unfreeze", icon="lock_open", url_path="unfreeze", permissions=["freeze"],
        dialog={
            "title": "Unfreeze this account?", "form_class": BaseDialogForm, "form_submit_text": "Unfreeze",
            "description": "It pays and is paid again from now on.",
        },
    )  # fmt: skip
    def unfreeze(self, request: HttpRequest, form: BaseDialogForm, object_id: str) -> HttpResponse:
        self._turn(request, [UUID(object_id)], unfreeze_account, "opened again")
        return _reload(object_id)

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Offer only what the account's status allows."""
        account = self.get_object(request, str(object_id))
        wanted = {"open": "freeze", "frozen": "unfreeze"}.get(account.status if account else "")
        actions = super().get_actions_detail(request, object_id)
        return [a for a in actions if wanted and a.action_name == f"accounts_account_{wanted}"]

    def _turn_selected(
        self, request: HttpRequest, queryset: "QuerySet[Account]", verb: Callable[..., bool], outcome: str
    ) -> None:
        if ids := selection.selected(self, request, queryset.values_list("pk", flat=True)):
            self._turn(request, ids, verb, outcome)

    def _turn(self, request: HttpRequest, ids: list[UUID], verb: Callable[..., bool], outcome: str) -> None:
        # In id order, like everyone who locks accounts.
        turned = sum(verb(account_id, actor=request.user.get_username()) for account_id in sorted(ids))
        if turned:
            self.message_user(request, f"{turned} account(s) {outcome}.", messages.SUCCESS)
        if left := len(ids) - turned:
            self.message_user(
                request, f"{left} account(s) left as they were: not in the status for it.", messages.WARNING
            )


def _reload(object_id: str) -> HttpResponse:
    return HttpResponse(headers={"HX-Redirect": reverse("admin:accounts_account_change", args=[object_id])})
