"""Events (outbox, timeline and audit feed in one table), dead letters, and the audit log of what people did."""

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q
from django.db.models.expressions import RawSQL
from django.db.models.functions import Now


class EventQuerySet(models.QuerySet["Event"]):
    def owed(self) -> "EventQuerySet":
        """What the relay still owes the broker, due or not, without reading the whole history."""
        return self.filter(pk__in=RawSQL("SELECT id FROM messaging_owed", ()))


class Event(models.Model):
    """One fact, written in the transaction that made it true. What it says never changes; only its delivery does.

    `published_at IS NULL` is what the relay still owes the broker. A retry is the same row made due again.
    """

    id = models.BigAutoField(primary_key=True)
    type = models.CharField(max_length=64)
    partition_key = models.CharField(max_length=64, help_text="Events of one key are delivered in order.")
    subject = models.CharField(max_length=64, help_text="The id of what the event is about.")
    data = models.JSONField(default=dict, db_default={})
    request_id = models.CharField(max_length=64, blank=True, default="", db_default="")
    actor = models.CharField(max_length=150, blank=True, default="", db_default="")
    created_at = models.DateTimeField(db_default=Now())
    due_at = models.DateTimeField(db_default=Now())
    attempt = models.SmallIntegerField(default=0, db_default=0)
    published_at = models.DateTimeField(null=True, blank=True)

    objects = EventQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        indexes = [
            # No index holds what delivery changes (due_at, attempt, published_at), so marking touches none. What is
            # owed is found by Lot.
            models.Index(fields=["subject", "id"], name="event_subject"),
        ]

    def __str__(self) -> str:
        return f"{self.type} #{self.pk}"


class Lot(models.Model):
    """A range of events of which some may be owed to the broker, and from when on; see messaging/due.py.

    Triggers on messaging_event write it (migration 0008), the relay removes it, and nobody else does either.
    """

    id = models.BigAutoField(primary_key=True)
    first_event = models.BigIntegerField()
    last_event = models.BigIntegerField()
    due_at = models.DateTimeField()

    class Meta:
        ordering = ["id"]
        indexes = [models.Index(fields=["due_at"], name="lot_due")]

    def __str__(self) -> str:
        return f"events {self.first_event} to {self.last_event}"


class DeadLetter(models.Model):
    """Work that could not be done: a parked transfer (`subject` set) or a message nobody could handle (`body` set)."""

    class State(models.TextChoices):
        OPEN = "open"
        REPLAYED = "replayed"
        DISCARDED = "discarded"

    id = models.BigAutoField(primary_key=True)
    state = models.CharField(max_length=16, choices=State, default=State.OPEN, db_default=State.OPEN)
    task = models.CharField(max_length=128, blank=True, default="")
    queue = models.CharField(max_length=128, blank=True, default="")
    subject = models.CharField(max_length=64, blank=True, default="", db_index=True)
    cause = models.CharField(max_length=200, help_text="The kind of failure, short enough to count by.")
    detail = models.TextField(blank=True, default="", help_text="The traceback, or what the broker said.")
    attempts = models.IntegerField(default=0)
    headers = models.JSONField(default=dict)
    body = models.BinaryField(null=True, blank=True)
    body_digest = models.CharField(max_length=64, blank=True, default="", help_text="SHA-256 of the body, in hex.")
    created_at = models.DateTimeField(db_default=Now())
    resolved_at = models.DateTimeField(null=True, blank=True)
    resolved_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    resolution = models.CharField(max_length=500, blank=True, default="")

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["id"], condition=Q(state="open"), name="deadletter_open")]

    def __str__(self) -> str:
        return f"{self.cause} ({self.state})"


class DeskRequest(models.Model):
    """One person's wish to replay or discard a letter about much money; another person has to agree to it."""

    class Action(models.TextChoices):
        REPLAY = "replay"
        DISCARD = "discard"

    class Decision(models.TextChoices):
        APPROVED = "approved"
        WITHDRAWN = "withdrawn"
        VOID = "void", "Void: the letter was resolved another way"

    id = models.BigAutoField(primary_key=True)
    letter = models.ForeignKey(DeadLetter, on_delete=models.PROTECT, related_name="requests")
    action = models.CharField(max_length=8, choices=Action)
    reason = models.CharField(max_length=500, blank=True, default="", db_default="")
    requested_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    requested_at = models.DateTimeField(db_default=Now())
    decision = models.CharField(max_length=9, choices=Decision, blank=True, default="", db_default="")
    decided_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    decided_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["letter"], condition=Q(decision=""), name="deskrequest_one_at_a_time"),
            models.CheckConstraint(
                condition=~Q(decision="approved") | (Q(decided_by__isnull=False) & ~Q(decided_by=F("requested_by"))),
                name="deskrequest_second_person",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.action} of dead letter {self.letter_id}"


class AuditEntry(models.Model):
    """One thing that a person or a program of theirs did by hand. Append-only: a trigger says so."""

    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField(db_default=Now())
    actor = models.CharField(max_length=150, help_text="A user's name, an API client, or shell:<login>.")
    action = models.CharField(max_length=64, help_text="What was done, such as account.freeze.")
    subject = models.CharField(max_length=150, help_text="The id of what it was done to.")
    reason = models.CharField(max_length=500, blank=True, default="", db_default="")
    details = models.JSONField(default=dict, db_default={})
    request_id = models.CharField(max_length=64, blank=True, default="", db_default="")

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "audit entries"
        indexes = [
            models.Index(fields=["subject", "id"], name="auditentry_subject"),
            models.Index(fields=["actor", "id"], name="auditentry_actor"),
            models.Index(fields=["action", "id"], name="auditentry_action"),
        ]

    def __str__(self) -> str:
        return f"{self.action} by {self.actor}"


class BreakerSwitch(models.Model):
    """A breaker that staff holds open or closed. Without a row a breaker decides by itself."""

    class Mode(models.TextChoices):
        OPEN = "open", "held open"
        CLOSED = "closed", "held closed"

    name = models.CharField(primary_key=True, max_length=100)
    mode = models.CharField(max_length=6, choices=Mode)
    reason = models.CharField(max_length=500)
    set_by = models.CharField(max_length=150)
    set_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["name"]
        verbose_name = "breaker"

    def __str__(self) -> str:
        return f"{self.name} {self.mode}"


class Seal(models.Model):
    """A block of rows of one append-only table, hashed and chained to the block before: see `seals`.

    The block covers every id above `after_id` up to `last_id`. `leaves` names its rows: for each, in id order, how far
    its id is below `last_id` (4 bytes) and the first 8 bytes of its hash.
    """

    id = models.BigAutoField(primary_key=True)
    chain = models.CharField(max_length=64, help_text="The table.")
    number = models.BigIntegerField(help_text="Counts the chain's blocks from 1 without a gap.")
    form = models.SmallIntegerField(help_text="Which of the chain's byte forms the rows were hashed in.")
    after_id = models.BigIntegerField()
    last_id = models.BigIntegerField()
    row_count = models.IntegerField()
    digest = models.BinaryField(max_length=32, help_text="SHA-256 over the hashes of the rows, in id order.")
    leaves = models.BinaryField()
    head = models.BinaryField(max_length=32, help_text="SHA-256 over this block and the head before it.")
    sealed_at = models.DateTimeField()

    class Meta:
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["chain", "number"], name="seal_chain_number")]

    def __str__(self) -> str:
        return f"{self.chain} block {self.number}"


class SealMark(models.Model):
    """How far a chain has come: its last block, and up to which id every row is there or will never be.

    `sampled_id` is the newest id some time ago, `holders` who was writing then; once they are gone, it is settled.
    """

    chain = models.CharField(primary_key=True, max_length=64)
    number = models.BigIntegerField(default=0, db_default=0)
    head = models.BinaryField(max_length=32)
    settled_id = models.BigIntegerField(default=0, db_default=0)
    settled_at = models.DateTimeField(null=True)
    sampled_id = models.BigIntegerField(default=0, db_default=0)
    sampled_at = models.DateTimeField(null=True)
    holders = ArrayField(models.TextField(), default=list)
    sealed_through = models.DateTimeField(null=True, help_text="Every row that was committed by then is in a block.")

    def __str__(self) -> str:
        return f"{self.chain} up to block {self.number}"
