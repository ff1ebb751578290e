"""Who wants to be told, and what each was told."""

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now


class Channel(models.TextChoices):
    IN_APP = "in_app"
    EMAIL = "email"


class Subscription(models.Model):
    """A customer's wish to be told, on one channel, how transfers from or to their accounts ended."""

    id = models.BigAutoField(primary_key=True)
    customer = models.UUIDField(help_text="The customer's id; this app does not know the accounts app.")
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
