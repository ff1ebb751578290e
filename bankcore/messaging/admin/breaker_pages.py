"""The page of all breakers: how each stands, since when, what went wrong last, and staff's switch."""

from typing import Any

import redis
from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from unfold.widgets import UnfoldAdminTextInputWidget

from bankcore.messaging import breaker
from bankcore.messaging.models import BreakerSwitch
from bankcore.messaging.switches import switch
from bankcore.pages import ReadOnlyAdmin, moment

SHOWN_MAX = 100


class SwitchForm(forms.Form):
    name = forms.CharField(max_length=100, widget=forms.HiddenInput)
    mode = forms.ChoiceField(choices=[(mode, mode) for mode in breaker.MODES if mode], required=False)
    reason = forms.CharField(
        max_length=500, widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "Why? It is kept in the audit log."})
    )


@admin.register(BreakerSwitch)
class BreakerAdmin(ReadOnlyAdmin):
    list_display = ["name", "mode", "reason", "set_by", "when"]
    fields = ["name", "mode", "reason", "set_by", "when"]

    def when(self, held: BreakerSwitch) -> str:
        return moment(held.set_at)

    def get_urls(self) -> list[Any]:
        return [
            path("switch/", self.admin_site.admin_view(self.switch_view), name="messaging_breakerswitch_switch"),
            *super().get_urls(),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        held = BreakerSwitch.objects.in_bulk()
        context = {
            **self.admin_site.each_context(request),
            "title": "Breakers",
            "opts": self.opts,
            "breakers": self._shown(request, held),
            "may_switch": self._may_switch(request),
            "form": SwitchForm(),
            "media": self.media,
        }
        return TemplateResponse(request, "pages/breakers.html", context)

    def _shown(self, request: HttpRequest, held: dict[str, BreakerSwitch]) -> list[dict[str, Any]]:
        try:
            known = breaker.conditions([*settings.BREAKERS, *held])
        except (redis.RedisError, OSError):
            self.message_user(
                request, "Redis does not answer: each worker decides alone, by what it sees itself.", messages.WARNING
            )
            known = [breaker.Condition(name, "unknown") for name in sorted({*settings.BREAKERS, *held})]
        search = request.GET.get("q", "").strip()
        if not search:
            # Endpoints are many: those that work are found by their name.
            known = [c for c in known if c.name in settings.BREAKERS or c.effective != "closed" or c.forced]
        return [
            {
                "condition": condition,
                "since": moment(condition.since),
                "open_until": moment(condition.open_until) if condition.state == "open" else "-",
                "error_at": moment(condition.error_at),
                "held": held.get(condition.name),
            }
            for condition in [c for c in known if search in c.name][:SHOWN_MAX]
        ]

    def _may_switch(self, request: HttpRequest) -> bool:
        return request.user.has_perm("messaging.change_breakerswitch")

    def switch_view(self, request: HttpRequest) -> HttpResponse:
        """Take one switch from the page's form."""
        if request.method != "POST" or not self._may_switch(request):
            raise PermissionDenied
        form = SwitchForm(request.POST)
        if form.is_valid():
            name, mode = form.cleaned_data["name"], form.cleaned_data["mode"]
            switch(name, mode, actor=request.user.get_username(), reason=form.cleaned_data["reason"])
            said = f"is held {mode}" if mode else "decides by itself again"
            self.message_user(request, f"Breaker {name} {said}.", messages.SUCCESS)
        else:
            self.message_user(request, "Say why: the reason is kept in the audit log.", messages.ERROR)
        return HttpResponseRedirect(reverse("admin:messaging_breakerswitch_changelist"))
