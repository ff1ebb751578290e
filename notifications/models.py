"""Who wants to be told, and what each was told."""

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from bankcore.identifiers import new_id


class Channel(models.TextChoices):
    IN_APP = "in_app"
    EMAIL = "email"


class Subscription(models.Model):
    """A customer's wish to be told, on one channel, how transfers from or to their accounts ended."""

    id = models.BigAutoField(primary_key=True)
    # No foreign key: this app does not know the accounts app.
    customer = models.UUIDField(help_text="The customer's id, as the list of customers shows it.")
    channel = models.CharField(max_length=8, choices=Channel)
    address = models.CharField(
        max_length=254, blank=True, default="", help_text="The e-mail address; empty for in-app."
    )
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["customer", "channel"], name="subscription_once")]

    def __str__(self) -> str:
        return f"{self.customer} by {self.channel}"


class Notification(models.Model):
    """One message to one recipient on one channel about one event; the unique constraint keeps it to one."""

    class State(models.TextChoices):
        PENDING = "pending"
        DELIVERED = "delivered"
        FAILED = "failed"

    id = models.BigAutoField(primary_key=True)
    event = models.BigIntegerField()
    recipient = models.UUIDField()
    channel = models.CharField(max_length=8, choices=Channel)
    address = models.CharField(max_length=254, blank=True, default="")
    transfer = models.UUIDField()
    title = models.CharField(max_length=140)
    text = models.TextField()
    state = models.CharField(max_length=9, choices=State)
    attempts = models.SmallIntegerField(default=0, db_default=0)
    failure = models.TextField(blank=True, default="", db_default="")
    created_at = models.DateTimeField(db_default=Now())
    delivered_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["recipient", "id"], name="notification_recipient"),
            models.Index(fields=["id"], condition=Q(state="pending"), name="notification_pending"),
        ]
        constraints = [models.UniqueConstraint(fields=["event", "recipient", "channel"], name="notification_once")]

    def __str__(self) -> str:
        return self.title


class SweepPosition(models.Model):
    """Up to which event it is known that whoever wanted to be told was told; one row (notifications/sweep.py)."""

    id = models.SmallIntegerField(primary_key=True)
    event = models.BigIntegerField()

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(id=1), name="sweepposition_one_row")]

    def __str__(self) -> str:
        return f"event {self.event}"


class WebhookEndpoint(models.Model):
    """An address of a customer's own program that is told of transfer events. Without a customer: of everybody's."""

    class State(models.TextChoices):
        ACTIVE = "active"
        DISABLED = "disabled"
        DELETED = "deleted"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    customer = models.UUIDField(null=True, blank=True)
    url = models.CharField(max_length=500)
    event_types = ArrayField(models.CharField(max_length=64))
    ordered = models.BooleanField(
        default=True, help_text="One at a time and in order for each account; else all at once."
    )
    # Signing needs it as it is: it cannot be hashed. No page and no call shows it again.
    secret = models.CharField(max_length=100)
    previous_secret = models.CharField(max_length=100, blank=True, default="", db_default="")
    previous_until = models.DateTimeField(null=True, blank=True, help_text="Until then both secrets sign.")
    state = models.CharField(max_length=8, choices=State, default=State.ACTIVE, db_default=State.ACTIVE)
    created_by = models.CharField(max_length=150)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["customer"], condition=Q(state="active"), name="webhookendpoint_active")]
        constraints = [
            models.CheckConstraint(
                condition=Q(previous_secret="", previous_until=None)
                | (~Q(previous_secret="") & Q(previous_until__isnull=False)),
                name="webhookendpoint_previous_secret",
            )
        ]

    def __str__(self) -> str:
        return self.url


class WebhookDelivery(models.Model):
    """One event for one endpoint; the unique constraint keeps it to one. `lane` is what it keeps its order in."""

    class State(models.TextChoices):
        PENDING = "pending"
        DELIVERED = "delivered"
        FAILED = "failed"

    id = models.BigAutoField(primary_key=True)
    endpoint = models.ForeignKey(WebhookEndpoint, on_delete=models.PROTECT, related_name="deliveries")
    event = models.BigIntegerField()
    type = models.CharField(max_length=64)
    transfer = models.UUIDField()
    lane = models.UUIDField(null=True, help_text="The debit account; empty: no order.")
    state = models.CharField(max_length=9, choices=State, default=State.PENDING, db_default=State.PENDING)
    attempts = models.SmallIntegerField(default=0, db_default=0)
    status_code = models.SmallIntegerField(null=True)
    failure = models.CharField(max_length=500, blank=True, default="", db_default="")
    claimed_until = models.DateTimeField(null=True, help_text="A worker has it in hand until then.")
    created_at = models.DateTimeField(db_default=Now())
    delivered_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "webhook deliveries"
        indexes = [
            models.Index(fields=["endpoint", "id"], name="webhookdelivery_endpoint"),
            models.Index(
                fields=["endpoint", "lane", "event"], condition=Q(state="pending"), name="webhookdelivery_order"
            ),
            models.Index(fields=["id"], condition=Q(state="pending"), name="webhookdelivery_pending"),
            models.Index(
                fields=["endpoint"],
                condition=Q(state="pending", claimed_until__isnull=False),
                name="webhookdelivery_in_hand",
            ),
        ]
        constraints = [models.UniqueConstraint(fields=["event", "endpoint"], name="webhookdelivery_once")]

    def __str__(self) -> str:
        return f"{self.type} to {self.endpoint_id}"
