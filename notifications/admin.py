"""Staff pages of what people were told, and of who wants to be told."""

from django.contrib import admin
from django.utils.safestring import SafeString
from unfold.decorators import display

from bankcore.pages import BoundedAdmin, ReadOnlyAdmin, moment, page_link, preformatted
from notifications.models import Notification, Subscription


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
