"""Staff pages of the dead-letter desk: what waits, what a replay would come to, and buttons that call the verbs."""

from collections.abc import Callable, Sequence
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db import OperationalError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import action, display
from unfold.enums import ActionVariant
from unfold.forms import BaseDialogForm
from unfold.widgets import UnfoldAdminTextareaWidget

from bankcore import selection
from bankcore.identifiers import parse_id
from bankcore.messaging import desk
from bankcore.messaging.admin.audit_pages import audit_trail
from bankcore.messaging.admin.event_pages import timeline
from bankcore.messaging.admin.letter_facts import asked_for, body_text, forecasts, requests
from bankcore.messaging.admin.letter_filters import AgeFilter, CauseFilter, KindFilter, StateFilter
from bankcore.messaging.forecasts import foresee
from bankcore.messaging.models import DeadLetter
from bankcore.messaging.rooms import NOTHING, page_of
from bankcore.pages import Panel, ReadOnlyAdmin, moment, page_link, preformatted, pretty_json

HOPELESS = (
    "There is nothing to replay: every one of these would be refused, for the reason beside it. "
    "Discard what is given up; what is resolved already needs nothing."
)


def _reason_field() -> forms.CharField:
    return forms.CharField(
        label="Reason", min_length=3, max_length=140, strip=True, widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        help_text="Kept with the letter and in the audit log; the customer does not see it.",
    )  # fmt: skip


class ReplayForm(BaseDialogForm):
    """Shows what would happen before it is asked for."""

    form_before_template = "pages/forecast.html"

    def get_before_template_context(self, request: HttpRequest, object_id: int | str | None = None) -> dict[str, Any]:
        panel, hopeless = _foreseen([int(object_id or 0)])
        return {"panel": panel, "why_not": "A replay would be refused now, and change nothing." if hopeless else ""}


class DiscardForm(BaseDialogForm):
    reason = _reason_field()


class SelectedDiscardForm(forms.Form):
    reason = _reason_field()


@admin.register(DeadLetter)
class DeadLetterAdmin(ReadOnlyAdmin):
    list_display = ["id", "state_label", "cause", "task", "queue", "about", "attempts", "when"]
    list_filter = [StateFilter, KindFilter, AgeFilter, CauseFilter]
    list_select_related = ["resolved_by"]
    search_fields = ["id", "subject"]
    search_help_text = "A dead letter's number, or the whole id of a transfer."
    actions = ["replay_selected", "dry_run_selected", "discard_selected"]
    actions_detail = ["replay", "dry_run", "discard", "approve_replay", "approve_discard", "withdraw"]

    def get_queryset(self, request: HttpRequest) -> "QuerySet[DeadLetter]":
        letters = super().get_queryset(request)
        # A list of pages full of tracebacks and bodies is not read for its first column.
        return letters if request.resolver_match and "object_id" in request.resolver_match.kwargs else letters.defer(
            "detail", "body", "headers"
        )  # fmt: skip

    def get_fieldsets(self, request: HttpRequest, obj: DeadLetter | None = None) -> list[Any]:
        message = ("The message", {"fields": ["asked", "shown_headers", "shown_body", "body_digest"]})
        resolution = ("Resolution", {"fields": ["resolved", "resolved_by", "resolution"]})
        return [
            (None, {"fields": ["state_label", "cause", "task", "queue", "about", "attempts", "when"]}),
            ("What went wrong", {"fields": ["shown_detail"]}),
            *([message] if obj is not None and obj.body is not None else []),
            *([resolution] if obj is not None and obj.state != DeadLetter.State.OPEN else []),
        ]

    def panels(self, obj: DeadLetter) -> list[Panel]:
        panels = [requests(obj), audit_trail(obj.pk)]
        return [timeline(obj.subject), *panels] if obj.subject else panels

    def has_resolve_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("messaging.change_deadletter")

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Offer what can be done now: nothing with a resolved letter, approval only of what somebody else asked for."""
        letter = self.get_object(request, str(object_id))
        if letter is None or letter.state != DeadLetter.State.OPEN:
            return []
        wanted = {"replay", "dry_run", "discard"}
        if (pending := desk.pending_request(letter)) is not None:
            others = pending.requested_by_id != request.user.pk
            wanted = {"dry_run", "withdraw", *([f"approve_{pending.action}"] if others else [])}
        actions = super().get_actions_detail(request, object_id)
        return [one for one in actions if one.action_name.removeprefix("messaging_deadletter_") in wanted]

    @action(
        description="Replay", icon="replay", url_path="replay", permissions=["resolve"], variant=ActionVariant.SUCCESS,
        dialog={
            "title": "Replay this letter?", "form_class": ReplayForm, "form_submit_text": "Replay",
            "description": "The work goes on where it stopped. Much money takes a second person.",
        },
    )  # fmt: skip
    def replay(self, request: HttpRequest, form: ReplayForm, object_id: str) -> HttpResponse:
        return self._do(request, object_id, lambda key, actor: desk.replay(key, actor=actor))

    @action(description="Dry run", icon="visibility", url_path="dry-run", permissions=["resolve"])
    def dry_run(self, request: HttpRequest, object_id: str) -> HttpResponse:
        for row in _foreseen([int(object_id)])[0].rows:
            said = f"A replay would now {row[1]}. {'' if row[2] == '-' else row[2]} {'' if row[3] == '-' else row[3]}"
            takes = "" if row[4] == "-" else f" It takes {row[4]}."
            self.message_user(request, f"{said.strip()}{takes}", messages.INFO)
        return redirect("admin:messaging_deadletter_change", object_id)

    @action(
        description="Discard", icon="delete_sweep", url_path="discard", permissions=["resolve"],
        variant=ActionVariant.DANGER,
        dialog={
            "title": "Discard this letter?", "form_class": DiscardForm, "form_submit_text": "Discard",
            "description": "A parked transfer is rejected as discarded_by_staff, for good. The letter is kept.",
        },
    )  # fmt: skip
    def discard(self, request: HttpRequest, form: DiscardForm, object_id: str) -> HttpResponse:
        reason = form.cleaned_data["reason"]
        return self._do(request, object_id, lambda key, actor: desk.discard(key, reason=reason, actor=actor))

    @action(
        description="Approve the replay", icon="done_all", url_path="approve-replay", permissions=["resolve"],
        variant=ActionVariant.SUCCESS,
        dialog={"title": "Approve this replay, as the second person?", "form_class": ReplayForm,
                "form_submit_text": "Approve the replay"},
    )  # fmt: skip
    def approve_replay(self, request: HttpRequest, form: ReplayForm, object_id: str) -> HttpResponse:
        return self._do(request, object_id, lambda key, actor: desk.approve(key, action="replay", actor=actor))

    @action(
        description="Approve the discard", icon="done_all", url_path="approve-discard", permissions=["resolve"],
        variant=ActionVariant.DANGER,
        dialog={"title": "Approve this discard, as the second person?", "form_class": BaseDialogForm,
                "description": "A parked transfer is rejected as discarded_by_staff, for good.",
                "form_submit_text": "Approve the discard"},
    )  # fmt: skip
    def approve_discard(self, request: HttpRequest, form: BaseDialogForm, object_id: str) -> HttpResponse:
        return self._do(request, object_id, lambda key, actor: desk.approve(key, action="discard", actor=actor))

    @action(
        description="Withdraw the request", icon="undo", url_path="withdraw", permissions=["resolve"],
        dialog={"title": "Take the request back, or turn it down?", "form_class": BaseDialogForm,
                "form_submit_text": "Withdraw"},
    )  # fmt: skip
    def withdraw(self, request: HttpRequest, form: BaseDialogForm, object_id: str) -> HttpResponse:
        return self._do(request, object_id, _withdrawn)

    def _do(
        self, request: HttpRequest, object_id: str, verb: Callable[[int, desk.Actor], desk.Outcome]
    ) -> HttpResponse:
        self._tell(request, [desk.attempt(lambda: verb(int(object_id), desk.actor_of(request.user)), int(object_id))])
        address = reverse("admin:messaging_deadletter_change", args=[object_id])
        return HttpResponse(headers={"HX-Redirect": address})

    @admin.action(description="Replay the selected letters", permissions=["resolve"])
    def replay_selected(self, request: HttpRequest, queryset: "QuerySet[DeadLetter]") -> HttpResponse | None:
        keys, form = self._keys(request, queryset), selection.answer(forms.Form, request)
        if keys and form.is_valid():
            self._tell(request, desk.replay_each(keys, actor=desk.actor_of(request.user)))
            return None
        return self._ask(request, keys, "replay_selected", "Replay", form)

    @admin.action(description="Dry run of the selected letters", permissions=["resolve"])
    def dry_run_selected(self, request: HttpRequest, queryset: "QuerySet[DeadLetter]") -> HttpResponse | None:
        return self._ask(request, self._keys(request, queryset), "replay_selected", "Replay", forms.Form())

    @admin.action(description="Discard the selected letters", permissions=["resolve"])
    def discard_selected(self, request: HttpRequest, queryset: "QuerySet[DeadLetter]") -> HttpResponse | None:
        keys, form = self._keys(request, queryset), selection.answer(SelectedDiscardForm, request)
        if keys and form.is_valid():
            reason, actor = form.cleaned_data["reason"], desk.actor_of(request.user)
            outcomes = [desk.attempt(lambda k=k: desk.discard(k, reason=reason, actor=actor), k) for k in keys]
            self._tell(request, outcomes)
            return None
        return self._ask(request, keys, "discard_selected", "Discard", form)

    def _keys(self, request: HttpRequest, queryset: "QuerySet[DeadLetter]") -> list[int]:
        return selection.selected(self, request, queryset.order_by("pk").values_list("pk", flat=True))

    def _ask(
        self, request: HttpRequest, keys: list[int], name: str, word: str, form: forms.Form
    ) -> HttpResponse | None:
        """Show what would come of it and ask once more; without a button where a replay would change nothing."""
        if not keys:
            return None
        panel, hopeless = _foreseen(keys)
        button = "" if hopeless and name == "replay_selected" else f"{word} {len(keys)} letter(s)"
        title = f"{word} {len(keys)} letter(s)?"
        question = selection.Question(name, title, keys, panel, form, button, why_not=HOPELESS)
        return selection.ask(self, request, question)

    def _tell(self, request: HttpRequest, outcomes: Sequence[desk.Outcome]) -> None:
        done: dict[str, int] = {}
        for one in outcomes:
            if one.outcome == "refused":
                link = page_link("messaging_deadletter", one.letter, f"Letter {one.letter}")
                self.message_user(request, format_html("{}: {}", link, one.detail), messages.ERROR)
            else:
                done[one.outcome] = done.get(one.outcome, 0) + 1
        for outcome, number in done.items():
            level = messages.WARNING if outcome == "awaiting_approval" else messages.SUCCESS
            self.message_user(request, f"{number} letter(s) {_SAID[outcome]}.", level)

    @display(description="state", label={"open": "danger", "replayed": "success", "discarded": "info"})
    def state_label(self, letter: DeadLetter) -> str:
        return letter.state

    @display(description="about")
    def about(self, letter: DeadLetter) -> SafeString | str:
        page = page_of(letter)
        # What was recorded as its id may be none.
        return (
            page_link(page, letter.subject)
            if page and (parse_id(letter.subject) or letter.subject.isdecimal())
            else letter.subject or "-"
        )

    @display(description="created (UTC)")
    def when(self, letter: DeadLetter) -> str:
        return moment(letter.created_at)

    @display(description="resolved (UTC)")
    def resolved(self, letter: DeadLetter) -> str:
        return moment(letter.resolved_at)

    @display(description="traceback, or why it cannot be read")
    def shown_detail(self, letter: DeadLetter) -> SafeString | str:
        return preformatted(letter.detail)

    @display(description="asked for")
    def asked(self, letter: DeadLetter) -> str:
        return asked_for(letter) or "-"

    @display(description="headers")
    def shown_headers(self, letter: DeadLetter) -> SafeString | str:
        return pretty_json(letter.headers)

    @display(description="body")
    def shown_body(self, letter: DeadLetter) -> SafeString | str:
        return preformatted(body_text(letter))


_SAID = {
    "replayed": "replayed",
    "discarded": "discarded",
    "withdrawn": "free again: the request is withdrawn",
    "awaiting_approval": "wait for a second person, who has to approve",
}


def _withdrawn(key: int, actor: desk.Actor) -> desk.Outcome:
    desk.withdraw(key, actor=actor)
    return desk.Outcome(key, "withdrawn")


def _foreseen(keys: Sequence[int]) -> tuple[Panel, bool]:
    """Show what a replay of each would come to now, and tell whether every one of them would be refused."""
    try:
        foreseen = foresee(keys)
    except OperationalError:
        busy = "The accounts are busy at the moment, so nothing can be foreseen. Try again."
        return Panel(title="What a replay would come to now", headers=[], rows=[], empty=busy), False
    return forecasts(foreseen), all(one.would == NOTHING for one in foreseen)
