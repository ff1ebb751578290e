"""Staff pages of who may come in: people, their groups, and the tokens of clients (a token is shown once)."""

from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from rest_framework_api_key import admin as library
from unfold.admin import ModelAdmin
from unfold.decorators import display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget

from accounts.access import CLIENT_NAME, CLIENT_NAME_RULE, SCOPES
from accounts.models import ApiToken
from bankcore.messaging import audit
from bankcore.pages import BoundedAdmin, moment, shown_once

# The library's own table of keys is not used here, and Django's pages are shown in the style of the others.
admin.site.unregister([library.APIKey, User, Group])


@admin.register(User)
class UserAdmin(DjangoUserAdmin, ModelAdmin):
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """What a person did stays theirs: they are made inactive, not deleted."""
        return False


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, ModelAdmin):
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER


class ApiTokenForm(forms.ModelForm):
    scopes = forms.MultipleChoiceField(
        choices=[(scope, f"{scope}: {meaning}") for scope, meaning in SCOPES.items()],
        required=False,
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
    )

    class Meta:
        model = ApiToken
        fields = ["name", "customer", "staff_user", "scopes", "expiry_date", "revoked"]

    def clean_name(self) -> str:
        name = str(self.cleaned_data["name"])
        # A token that got its name before there was a rule can still be revoked.
        if "name" in self.changed_data and not CLIENT_NAME.fullmatch(name):
            raise forms.ValidationError(CLIENT_NAME_RULE)
        return name


@admin.register(ApiToken)
class ApiTokenAdmin(BoundedAdmin):
    form = ApiTokenForm
    list_display = ["name", "prefix", "customer", "staff_user", "shown_scopes", "state", "when"]
    list_filter = ["revoked"]
    list_select_related = ["customer", "staff_user"]
    search_fields = ["prefix", "name", "customer"]
    search_help_text = "The whole prefix or name of a token, or the id of its customer."
    raw_id_fields = ["customer", "staff_user"]
    fields = ["name", "prefix", "customer", "staff_user", "scopes", "expiry_date", "revoked", "when"]

    def get_fields(self, request: HttpRequest, obj: ApiToken | None = None) -> list[str]:
        return self.fields if obj else ["name", "customer", "staff_user", "scopes", "expiry_date"]

    def get_readonly_fields(self, request: HttpRequest, obj: ApiToken | None = None) -> list[str]:
        # Revoking cannot be undone, and a token never changes whose it is.
        once_revoked = ["name", "revoked", "expiry_date"] if obj and obj.revoked else []
        return ["prefix", "when", *(["customer", "staff_user"] if obj else []), *once_revoked]

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Events name the token's client, so tokens are revoked and stay."""
        return False

    @transaction.atomic
    def save_model(self, request: HttpRequest, obj: ApiToken, form: Any, change: bool) -> None:
        if not change:
            # Kept on the request: it reaches the one page below, and no cookie, session or log.
            request.made_token = ApiToken.objects.assign_key(obj)  # type: ignore[attr-defined]
        super().save_model(request, obj, form, change)
        if change and not form.changed_data:
            return
        action = "token.issue"
        if change:
            action = "token.revoke" if obj.revoked and "revoked" in form.changed_data else "token.change"
        customer = str(obj.customer_id) if obj.customer_id else None
        details = {"client": obj.name, "scopes": obj.scopes, "customer": customer, "changed": form.changed_data}
        audit.record(actor=request.user.get_username(), action=action, subject=obj.prefix, details=details)

    def response_add(self, request: HttpRequest, obj: ApiToken, post_url_continue: str | None = None) -> HttpResponse:
        return shown_once(
            self,
            request,
            title="The new token",
            about=obj.name,
            notice="This is the only time the token is shown. Store it somewhere safe now.",
            secret=request.made_token,  # type: ignore[attr-defined]
            back=reverse("admin:accounts_apitoken_changelist"),
        )

    @display(description="scopes")
    def shown_scopes(self, token: ApiToken) -> str:
        return " ".join(token.scopes) or "-"

    @display(description="state", label={"usable": "success", "revoked": "danger", "expired": "warning"})
    def state(self, token: ApiToken) -> str:
        if token.revoked:
            return "revoked"
        return "expired" if token.has_expired else "usable"

    @display(description="made (UTC)")
    def when(self, token: ApiToken) -> str:
        return moment(token.created)
