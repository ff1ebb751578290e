"""The review queue: what waits for a person, the facts, and two buttons that call the verb."""

from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import action, display
from unfold.enums import ActionVariant
from unfold.forms import BaseDialogForm
from unfold.widgets import UnfoldAdminTextareaWidget

from bankcore import selection
from bankcore.errors import BankError
from bankcore.messaging.admin import timeline
from bankcore.pages import Panel, ReadOnlyAdmin, amount, moment, page_link, preformatted
from transfers.admin.transfer_pages import STATUS_COLOURS
from transfers.models import Review
from transfers.reviews import decide
from transfers.states import Status


def _note_field() -> forms.CharField:
    return forms.CharField(
        label="Note", max_length=500, required=False, strip=True, widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        help_text="Why: kept with the decision.",
    )  # fmt: skip


class DecisionForm(BaseDialogForm):
    note = _note_field()


class SelectedForm(forms.Form):
    note = _note_field()


class QueueFilter(admin.SimpleListFilter):
    """Waiting is what the page opens with."""

    title = "queue"
    parameter_name = "queue"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("decided", "Decided"), ("all", "All")]

    def choices(self, changelist: Any) -> Any:
        yield {
            "selected": self.value() is None,
            "query_string": changelist.get_query_string(remove=[self.parameter_name]),
            "display": "Waiting",
        }
        yield from list(super().choices(changelist))[1:]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Review]") -> "QuerySet[Review]":
        if self.value() == "all":
            return queryset.order_by("decision", "opened_at")
        if self.value() == "decided":
            return queryset.exclude(decision="").order_by("-decided_at")
        return queryset.filter(decision="", transfer__status=Status.IN_REVIEW)


@admin.register(Review)
class ReviewAdmin(ReadOnlyAdmin):
    list_display = ["transfer_id", "state", "shown_reasons", "shown_amount", "opened", "decided_by", "decided"]
    list_filter = [QueueFilter]
    list_select_related = ["transfer", "decided_by"]
    search_fields = ["transfer"]
    search_help_text = "The whole id of a transfer."
    fieldsets = [
        (None, {"fields": ["state", "shown_reasons", "opened", "shown_transfer", "status_label"]}),
        (
            "The transfer",
            {"fields": ["shown_amount", "debit", "credit", "reference", "client", "initiator", "accepted"]},
        ),
        ("Decision", {"fields": ["decision_label", "decided_by", "decided", "shown_note"]}),
    ]
    actions = ["approve_selected", "decline_selected"]
    actions_detail = ["approve", "decline"]

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Review]":
        return super().get_queryset(request).select_related("transfer__initiator", "decided_by")

    def panels(self, obj: Review) -> list[Panel]:
        return [timeline(obj.pk)]

    def has_decide_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("transfers.change_review")

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Offer the buttons only while there is something to decide."""
        review = self.get_object(request, str(object_id))
        waiting = review is not None and not review.decision and review.transfer.status == Status.IN_REVIEW
        return super().get_actions_detail(request, object_id) if waiting else []

    @action(
        description="Approve", icon="check", url_path="approve", permissions=["decide"],
        variant=ActionVariant.SUCCESS,
        dialog={
            "title": "Approve this transfer?", "form_class": DecisionForm, "form_submit_text": "Approve",
            "description": "It is posted, or rejected if the account does not cover it. This cannot be undone here.",
        },
    )  # fmt: skip
    def approve(self, request: HttpRequest, form: DecisionForm, object_id: str) -> HttpResponse:
        return self._decide_one(request, form, object_id, Review.Decision.APPROVE)

    @action(
        description="Decline", icon="block", url_path="decline", permissions=["decide"],
        variant=ActionVariant.DANGER,
        dialog={
            "title": "Decline this transfer?", "form_class": DecisionForm, "form_submit_text": "Decline",
            "description": "It is rejected as review_declined, for good.",
        },
    )  # fmt: skip
    def decline(self, request: HttpRequest, form: DecisionForm, object_id: str) -> HttpResponse:
        return self._decide_one(request, form, object_id, Review.Decision.DECLINE)

    def _decide_one(
        self, request: HttpRequest, form: DecisionForm, object_id: str, decision: Review.Decision
    ) -> HttpResponse:
        self._decide(request, [UUID(object_id)], decision, form.cleaned_data["note"])
        return HttpResponse(headers={"HX-Redirect": reverse("admin:transfers_review_change", args=[object_id])})

    @admin.action(description="Approve the selected transfers", permissions=["decide"])
    def approve_selected(self, request: HttpRequest, queryset: "QuerySet[Review]") -> HttpResponse | None:
        return self._decide_selected(request, queryset, Review.Decision.APPROVE)

    @admin.action(description="Decline the selected transfers", permissions=["decide"])
    def decline_selected(self, request: HttpRequest, queryset: "QuerySet[Review]") -> HttpResponse | None:
        return self._decide_selected(request, queryset, Review.Decision.DECLINE)

    def _decide_selected(
        self, request: HttpRequest, queryset: "QuerySet[Review]", decision: Review.Decision
    ) -> HttpResponse | None:
        """Show what was selected and ask once more; decide when the answer comes back."""
        reviews, form = selection.selected(self, request, queryset), selection.answer(SelectedForm, request)
        if not reviews:
            return None
        if form.is_valid():
            self._decide(request, [review.pk for review in reviews], decision, form.cleaned_data["note"])
            return None
        panel = Panel(
            title="Selected",
            headers=["Transfer", "Amount", "Reasons"],
            rows=[[self.shown_transfer(r), self.shown_amount(r), self.shown_reasons(r)] for r in reviews],
            empty="Nothing is selected.",
        )
        what = f"{decision.label} {len(reviews)} transfer(s)"
        keys = [review.pk for review in reviews]
        question = selection.Question(f"{decision}_selected", f"{what}?", keys, panel, form, button=what)
        return selection.ask(self, request, question)

    def _decide(self, request: HttpRequest, ids: list[UUID], decision: Review.Decision, note: str) -> None:
        """Decide each in a transaction of its own: one that is refused does not hold up the others."""
        decided = 0
        for transfer_id in ids:
            try:
                decide(transfer_id, staff=request.user, decision=decision, note=note)  # type: ignore[arg-type]
                decided += 1
            except BankError as error:
                link = page_link("transfers_review", transfer_id)
                self.message_user(request, format_html("{}: {}", link, error.detail), messages.ERROR)
        if decided:
            word = "approved" if decision == Review.Decision.APPROVE else "declined"
            self.message_user(request, f"{decided} transfer(s) {word}.", messages.SUCCESS)

    @display(
        description="state", label={"waiting": "warning", "approve": "success", "decline": "danger", "void": "info"}
    )
    def state(self, review: Review) -> str:
        return review.decision or ("waiting" if review.transfer.status == Status.IN_REVIEW else "void")

    @display(description="decision")
    def decision_label(self, review: Review) -> str:
        return review.get_decision_display() or "-"

    @display(description="reasons")
    def shown_reasons(self, review: Review) -> str:
        return ", ".join(map(str, review.reasons)) or "-"

    @display(description="amount")
    def shown_amount(self, review: Review) -> SafeString | str:
        return amount(review.transfer.amount_minor, review.transfer.currency)

    @display(description="opened (UTC)")
    def opened(self, review: Review) -> str:
        return moment(review.opened_at)

    @display(description="decided (UTC)")
    def decided(self, review: Review) -> str:
        return moment(review.decided_at)

    @display(description="note")
    def shown_note(self, review: Review) -> SafeString | str:
        return preformatted(review.note)

    @display(description="transfer")
    def shown_transfer(self, review: Review) -> SafeString | str:
        return page_link("transfers_transfer", review.pk)

    @display(description="transfer's status", label=STATUS_COLOURS)
    def status_label(self, review: Review) -> str:
        return review.transfer.status

    @display(description="debit account")
    def debit(self, review: Review) -> SafeString | str:
        return page_link("accounts_account", review.transfer.debit_account_id)

    @display(description="credit account")
    def credit(self, review: Review) -> SafeString | str:
        return page_link("accounts_account", review.transfer.credit_account_id)

    @display(description="reference")
    def reference(self, review: Review) -> str:
        return review.transfer.reference or "-"

    @display(description="client")
    def client(self, review: Review) -> str:
        return review.transfer.client

    @display(description="initiator")
    def initiator(self, review: Review) -> str:
        return str(review.transfer.initiator or "-")

    @display(description="accepted (UTC)")
    def accepted(self, review: Review) -> str:
        return moment(review.transfer.created_at)
