"""The transfer, its batch, its review, and the accounts that must not take part."""

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now

from accounts.models import Account
from bankcore.identifiers import new_id
from bankcore.money import AMOUNT_MINOR_MAX
from transfers.states import Status


class Batch(models.Model):
    """Transfers that came in one request."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    client = models.CharField(max_length=64)
    idempotency_key = models.CharField(max_length=255, null=True, blank=True)  # noqa: DJ001  NULL: none given.
    fingerprint = models.BinaryField(max_length=32, null=True)
    atomic = models.BooleanField()
    accepted = models.IntegerField()
    refused = models.JSONField(default=list, help_text="Rows that were not accepted: field, code and message of each.")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "batches"
        constraints = [models.UniqueConstraint(fields=["client", "idempotency_key"], name="batch_idempotency_key")]

    def __str__(self) -> str:
        return str(self.id)


class Transfer(models.Model):
    """One movement of money from `debit_account` to `credit_account`, from acceptance to its end.

    What was asked for never changes (a trigger says so); `status` follows states.TRANSITIONS (another trigger).
    Foreign keys to accounts and batches have no database constraint, because checking them halves intake; intake has
    read the accounts, accounts are never deleted, and the books proof watches.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    client = models.CharField(max_length=64)
    initiator = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
        db_index=False,
        db_constraint=False,
    )
    idempotency_key = models.CharField(max_length=255, null=True, blank=True)  # noqa: DJ001  NULL: part of a batch.
    fingerprint = models.BinaryField(max_length=32, null=True)
    debit_account = models.ForeignKey(
        Account, on_delete=models.PROTECT, related_name="+", db_constraint=False, db_index=False
    )
    credit_account = models.ForeignKey(
        Account, on_delete=models.PROTECT, related_name="+", db_constraint=False, db_index=False
    )
    amount_minor = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    reference = models.CharField(max_length=140, blank=True, default="", db_default="")
    external_id = models.CharField(max_length=140, null=True, blank=True)  # noqa: DJ001  NULL: none given.
    metadata = models.JSONField(default=dict, db_default={})
    status = models.CharField(max_length=10, choices=Status, db_default=Status.ACCEPTED)
    status_reason = models.CharField(max_length=64, blank=True, default="", db_default="")
    batch = models.ForeignKey(
        Batch, null=True, blank=True, on_delete=models.PROTECT, related_name="transfers", db_constraint=False,
        db_index=False,
    )  # fmt: skip
    reversal_of = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.PROTECT, related_name="reversals", db_constraint=False,
        db_index=False,
    )  # fmt: skip
    reversed_minor = models.BigIntegerField(default=0, db_default=0)
    execute_on = models.DateField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    request_id = models.CharField(max_length=64, blank=True, default="", db_default="")
    created_at = models.DateTimeField(db_default=Now())
    updated_at = models.DateTimeField(db_default=Now())
    posted_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["debit_account", "id"], name="transfer_debit"),
            models.Index(fields=["credit_account", "id"], name="transfer_credit"),
            # No index holds what changes on the way (status, updated_at, posted_at): so a change of status touches no
            # index at all. What is waiting is found in OpenTransfer.
            models.Index(fields=["batch", "id"], condition=Q(batch__isnull=False), name="transfer_batch"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["client", "idempotency_key"],
                condition=Q(idempotency_key__isnull=False),
                name="transfer_idempotency_key",
            ),
            models.UniqueConstraint(
                fields=["client", "external_id"], condition=Q(external_id__isnull=False), name="transfer_external_id"
            ),
            models.CheckConstraint(
                condition=Q(amount_minor__gte=1, amount_minor__lte=AMOUNT_MINOR_MAX), name="transfer_amount"
            ),
            models.CheckConstraint(condition=~Q(debit_account=F("credit_account")), name="transfer_two_accounts"),
            models.CheckConstraint(condition=Q(status__in=Status.values), name="transfer_status"),
            models.CheckConstraint(
                condition=Q(status=Status.POSTED, posted_at__isnull=False)
                | (~Q(status=Status.POSTED) & Q(posted_at=None)),
                name="transfer_posted_at",
            ),
        ]

    def __str__(self) -> str:
        return str(self.id)


class OpenTransfer(models.Model):
    """A transfer that has not ended: what waits for a stage or a person, and what an account has pending.

    Triggers on transfers_transfer write it (migration 0003) and nobody else does. It is as small as the backlog,
    however many transfers have ended.
    """

    transfer = models.OneToOneField(
        Transfer, primary_key=True, on_delete=models.DO_NOTHING, related_name="open", db_constraint=False
    )
    status = models.CharField(max_length=10, choices=Status)
    debit_account = models.ForeignKey(
        Account, on_delete=models.DO_NOTHING, related_name="+", db_constraint=False, db_index=False
    )
    amount_minor = models.BigIntegerField()
    since = models.DateTimeField(help_text="When it was accepted; when it is scheduled, the day that it is for.")

    class Meta:
        ordering = ["transfer"]
        # The condition always holds. It keeps the index out of looks for a transfer alone, which would read all of it:
        # of a table that statistics call empty, that costs no more than the primary key (migration 0006).
        indexes = [
            models.Index(
                fields=["debit_account", "transfer"],
                condition=Q(debit_account__isnull=False),
                name="opentransfer_turn",
            )
        ]

    def __str__(self) -> str:
        return str(self.transfer_id)


class Review(models.Model):
    """A transfer that a person must decide on: opened by a risk rule, closed by someone who did not initiate it."""

    class Decision(models.TextChoices):
        APPROVE = "approve"
        DECLINE = "decline"
        VOID = "void", "Void: the transfer was cancelled"

    transfer = models.OneToOneField(Transfer, primary_key=True, on_delete=models.PROTECT, related_name="review")
    reasons = models.JSONField(default=list)
    opened_at = models.DateTimeField(db_default=Now())
    decision = models.CharField(max_length=8, choices=Decision, blank=True, default="", db_default="")
    decided_at = models.DateTimeField(null=True, blank=True)
    decided_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    note = models.CharField(max_length=500, blank=True, default="", db_default="")

    class Meta:
        ordering = ["opened_at"]
        indexes = [models.Index(fields=["opened_at"], condition=Q(decision=""), name="review_open")]

    def __str__(self) -> str:
        return str(self.transfer_id)


class DeniedAccount(models.Model):
    """An account on the deny list: transfers from or to it are rejected as `risk_denied`."""

    account = models.OneToOneField(Account, primary_key=True, on_delete=models.PROTECT, related_name="+")
    why = models.CharField(max_length=500)
    created_at = models.DateTimeField(db_default=Now())
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return str(self.account_id)
