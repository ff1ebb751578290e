"""Staff pages of what people were told, and of who wants to be told."""

from typing import Any

from django import forms
from django.contrib import admin
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.safestring import SafeString
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminIntegerFieldWidget

from bankcore import selection
from bankcore.messaging import audit
from bankcore.pages import BoundedAdmin, Panel, PanelAdmin, ReadOnlyAdmin, moment, page_link, preformatted, shown_once
from notifications.endpoints import KEEP_OLD_SECONDS, KEEP_OLD_SECONDS_MAX, rotate_secret
from notifications.models import Notification, Subscription, WebhookDelivery, WebhookEndpoint

DELIVERIES_SHOWN_MAX = 20


ABOUT_ROTATION = (
    "Calls are signed with the new secret from now on, and with the old one as well for as many hours as you give, so "
    "that the endpoint can turn to the new one meanwhile. 0 ends the old one at once: for one that has leaked."
)


class NewSecretForm(forms.Form):
    hours = forms.IntegerField(
        label="Hours that the old one stays valid", min_value=0, max_value=KEEP_OLD_SECONDS_MAX // 3600,
        initial=KEEP_OLD_SECONDS // 3600, widget=UnfoldAdminIntegerFieldWidget,
    )  # fmt: skip


@admin.register(Subscription)
class SubscriptionAdmin(BoundedAdmin):
    list_display = ["id", "customer", "channel", "address", "when"]
    list_filter = ["channel"]
    search_fields = ["id", "customer"]
    search_help_text = "A subscription's number, or the whole id of a customer."
    fields = ["customer", "channel", "address"]

    @display(description="since (UTC)")
    def when(self, subscription: Subscription) -> str:
        return moment(subscription.created_at)


@admin.register(Notification)
class NotificationAdmin(ReadOnlyAdmin):
    list_display = ["id", "state_label", "channel", "recipient", "title", "attempts", "when", "delivered"]
    list_filter = ["state", "channel"]
    search_fields = ["id", "recipient", "event"]
    search_help_text = "The number of a notification or an event, or the whole id of a customer."
    fieldsets = [
        (None, {"fields": ["state_label", "channel", "recipient", "address", "shown_event", "shown_transfer"]}),
        ("What was said", {"fields": ["title", "text"]}),
        ("Delivery", {"fields": ["attempts", "when", "delivered", "shown_failure"]}),
    ]

    @display(description="state", label={"pending": "info", "delivered": "success", "failed": "danger"})
    def state_label(self, notification: Notification) -> str:
        return notification.state

    @display(description="event")
    def shown_event(self, notification: Notification) -> SafeString | str:
        return page_link("messaging_event", notification.event)

    @display(description="transfer")
    def shown_transfer(self, notification: Notification) -> SafeString | str:
        return page_link("transfers_transfer", notification.transfer)

    @display(description="failure")
    def shown_failure(self, notification: Notification) -> SafeString | str:
        return preformatted(notification.failure)

    @display(description="created (UTC)")
    def when(self, notification: Notification) -> str:
        return moment(notification.created_at)

    @display(description="delivered (UTC)")
    def delivered(self, notification: Notification) -> str:
        return moment(notification.delivered_at)


@admin.register(WebhookEndpoint)
class WebhookEndpointAdmin(PanelAdmin):
    """Staff switch an endpoint off and on; customers register and remove theirs by the API."""

    list_display = ["url", "state_label", "shown_types", "customer", "created_by", "when"]
    list_filter = ["state"]
    search_fields = ["id", "customer"]
    search_help_text = "The whole id of an endpoint or a customer."
    fields = ["url", "customer", "shown_types", "ordered", "state", "old_secret", "created_by", "when"]
    readonly_fields = ["url", "customer", "shown_types", "ordered", "old_secret", "created_by", "when"]

    actions_detail = ["new_secret"]

    def panels(self, obj: WebhookEndpoint) -> list[Panel]:
        return [_latest_deliveries(obj)]

    def has_rotate_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("notifications.change_webhookendpoint")

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Offer nothing on the page of an endpoint that was removed."""
        endpoint = self.get_object(request, str(object_id))
        gone = endpoint is None or endpoint.state == WebhookEndpoint.State.DELETED
        return [] if gone else super().get_actions_detail(request, object_id)

    @action(description="New secret", icon="key", url_path="new-secret", permissions=["rotate"])
    def new_secret(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask for how long the old one stays, then show the new one, once."""
        endpoint = self.get_object(request, object_id)
        if endpoint is None or endpoint.state == WebhookEndpoint.State.DELETED:
            raise Http404
        form, back = (
            selection.answer(NewSecretForm, request),
            reverse("admin:notifications_webhookendpoint_change", args=[object_id]),
        )
        if not form.is_valid():
            asked = Panel(title=endpoint.url, headers=[], rows=[], empty=ABOUT_ROTATION)
            question = selection.Question(
                "new_secret", "Make a new secret?", (), asked, form, button="Make a new secret"
            )
            return selection.ask(self, request, question, back=back)
        keep_old_seconds = form.cleaned_data["hours"] * 3600
        rotate_secret(endpoint, actor=request.user.get_username(), keep_old_seconds=keep_old_seconds)
        notice = "This is the only time the secret is shown. Hand it to whoever runs the endpoint, on a safe way."
        return shown_once(
            self, request, title="The new secret", about=endpoint.url, notice=notice, secret=endpoint.secret, back=back
        )

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: Any) -> None:
        with transaction.atomic():
            WebhookEndpoint.objects.filter(pk=obj.pk).update(state=obj.state)
            who = request.user.get_username()
            audit.record(actor=who, action="webhook.state", subject=obj.pk, details={"state": str(obj.state)})

    def formfield_for_choice_field(self, db_field: Any, request: Any, **options: Any) -> Any:
        options["choices"] = [(s.value, s.label) for s in WebhookEndpoint.State if s != WebhookEndpoint.State.DELETED]
        return super().formfield_for_choice_field(db_field, request, **options)

    @display(description="state", label={"active": "success", "disabled": "warning", "deleted": "info"})
    def state_label(self, endpoint: WebhookEndpoint) -> str:
        return endpoint.state

    @display(description="old secret signs until (UTC)")
    def old_secret(self, endpoint: WebhookEndpoint) -> str:
        until = endpoint.previous_until
        return moment(until) if until and until > timezone.now() else "-"

    @display(description="is told of")
    def shown_types(self, endpoint: WebhookEndpoint) -> str:
        return ", ".join(endpoint.event_types)

    @display(description="since (UTC)")
    def when(self, endpoint: WebhookEndpoint) -> str:
        return moment(endpoint.created_at)


@admin.register(WebhookDelivery)
class WebhookDeliveryAdmin(ReadOnlyAdmin):
    list_display = ["id", "state_label", "type", "shown_endpoint", "attempts", "status_code", "when", "delivered"]
    list_filter = ["state"]
    search_fields = ["id", "event", "endpoint"]
    search_help_text = "The number of a delivery or an event."
    fields = [
        "state_label", "type", "shown_endpoint", "shown_event", "shown_transfer", "attempts", "status_code", "failure",
        "when", "delivered",
    ]  # fmt: skip

    @display(description="state", label={"pending": "info", "delivered": "success", "failed": "danger"})
    def state_label(self, delivery: WebhookDelivery) -> str:
        return delivery.state

    @display(description="endpoint")
    def shown_endpoint(self, delivery: WebhookDelivery) -> SafeString | str:
        return page_link("notifications_webhookendpoint", delivery.endpoint_id)

    @display(description="event")
    def shown_event(self, delivery: WebhookDelivery) -> SafeString | str:
        return page_link("messaging_event", delivery.event)

    @display(description="transfer")
    def shown_transfer(self, delivery: WebhookDelivery) -> SafeString | str:
        return page_link("transfers_transfer", delivery.transfer)

    @display(description="created (UTC)")
    def when(self, delivery: WebhookDelivery) -> str:
        return moment(delivery.created_at)

    @display(description="delivered (UTC)")
    def delivered(self, delivery: WebhookDelivery) -> str:
        return moment(delivery.delivered_at)


def _latest_deliveries(endpoint: WebhookEndpoint) -> Panel:
    """What an endpoint was told last, and how it took it."""
    latest = WebhookDelivery.objects.filter(endpoint=endpoint).order_by("-pk")[:DELIVERIES_SHOWN_MAX]
    return Panel(
        title="Latest deliveries",
        headers=["Created (UTC)", "Delivery", "State", "Attempts", "Answer", "Failure"],
        rows=[
            [
                moment(one.created_at),
                page_link("notifications_webhookdelivery", one.pk, f"{one.pk}: {one.type}"),
                one.get_state_display(),
                one.attempts,
                one.status_code or "-",
                one.failure or "-",
            ]
            for one in latest
        ],
        empty="Nothing yet: no event that it asked for has happened since it was registered.",
    )
