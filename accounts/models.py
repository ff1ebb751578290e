"""Who holds money, and the double-entry ledger that says how much. Only `ledger` writes balances and the journal."""

from typing import ClassVar

from django.conf import settings
from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from rest_framework_api_key.models import AbstractAPIKey, APIKeyManager

from bankcore.identifiers import new_id


class Customer(models.Model):
    """A person or a company that holds accounts."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    name = models.CharField(max_length=140)
    email = models.EmailField(blank=True, default="")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return self.name


class Account(models.Model):
    """A place for money in one currency. `posted_minor` is credits minus debits: the bank's debt to the holder.

    `limit_minor` is how far below zero the account may go (0: not at all; NULL: without limit, for the bank's own).
    The currency (three capital letters) never changes: a trigger looks at it when the account is opened.
    """

    class Status(models.TextChoices):
        OPEN = "open"
        FROZEN = "frozen"
        CLOSED = "closed"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    customer = models.ForeignKey(
        Customer,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="accounts",
        help_text="Empty: the bank's.",
    )
    name = models.CharField(max_length=140, blank=True, default="")
    currency = models.CharField(max_length=3)
    status = models.CharField(max_length=8, choices=Status, default=Status.OPEN, db_default=Status.OPEN)
    posted_minor = models.BigIntegerField(default=0, db_default=0, editable=False)
    held_minor = models.BigIntegerField(default=0, db_default=0, editable=False)
    limit_minor = models.BigIntegerField(null=True, blank=True, default=0, validators=[MinValueValidator(0)])
    lines = models.BigIntegerField(
        default=0,
        db_default=0,
        editable=False,
        help_text="How many journal lines the account has, which is the newest one's number.",
    )
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(condition=Q(status__in=["open", "frozen", "closed"]), name="account_status"),
            models.CheckConstraint(condition=Q(held_minor__gte=0), name="account_held"),
            models.CheckConstraint(
                condition=Q(limit_minor=None) | Q(posted_minor__gte=F("held_minor") - F("limit_minor")),
                name="account_limit",
            ),
        ]

    def __str__(self) -> str:
        return self.name or str(self.id)


class JournalEntry(models.Model):
    """One balanced, immutable record of moved money. `reference` says why, once: `transfer:<id>`, `opening:<id>`."""

    id = models.BigAutoField(primary_key=True)
    reference = models.CharField(max_length=100)
    currency = models.CharField(max_length=3)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "journal entries"
        constraints = [models.UniqueConstraint(fields=["reference"], name="journalentry_reference")]

    def __str__(self) -> str:
        return self.reference


class JournalLine(models.Model):
    """One debit or credit. `number` counts the account's lines from 1 without a gap.

    The foreign keys have no database constraint: checking them row by row halves posting. The balance trigger checks
    each new line's entry and account set-wise, and the books proof watches the rest.
    """

    class Side(models.TextChoices):
        DEBIT = "D"
        CREDIT = "C"

    id = models.BigAutoField(primary_key=True)
    entry = models.ForeignKey(
        JournalEntry, on_delete=models.PROTECT, related_name="lines", db_constraint=False, db_index=False
    )
    account = models.ForeignKey(
        Account, on_delete=models.PROTECT, related_name="journal_lines", db_constraint=False, db_index=False
    )
    number = models.BigIntegerField()
    side = models.CharField(max_length=1, choices=Side)
    amount_minor = models.BigIntegerField()
    balance_after_minor = models.BigIntegerField()

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["entry"], name="journalline_entry")]
        constraints = [
            models.UniqueConstraint(fields=["account", "number"], name="journalline_account_number"),
            models.CheckConstraint(condition=Q(amount_minor__gt=0), name="journalline_amount"),
            models.CheckConstraint(condition=Q(side__in=["D", "C"]), name="journalline_side"),
        ]

    def __str__(self) -> str:
        return f"{self.side} {self.amount_minor}"


class ApiTokenManager(APIKeyManager):
    """Makes tokens; the library generates, hashes and verifies them."""


class ApiToken(AbstractAPIKey):
    """A client's bearer token, hashed. Bound to a customer, it sees that customer's accounts and nothing else."""

    objects: ClassVar[ApiTokenManager] = ApiTokenManager()

    customer = models.ForeignKey(Customer, null=True, blank=True, on_delete=models.PROTECT, related_name="api_tokens")
    staff_user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="api_tokens",
        help_text="The person who acts through this token; may not approve what it initiated.",
    )
    scopes = models.JSONField(default=list)

    class Meta(AbstractAPIKey.Meta):
        verbose_name = "API token"
        verbose_name_plural = "API tokens"


class Proof(models.Model):
    """One run of the books proof: what was checked, and how many violations each check named (none is good).

    An increment also says what earlier proofs named: only a full proof that finds nothing makes it go away.
    """

    class Kind(models.TextChoices):
        FULL = "full"
        INCREMENT = "increment"

    id = models.BigAutoField(primary_key=True)
    kind = models.CharField(max_length=9, choices=Kind, default=Kind.FULL, db_default=Kind.FULL)
    proved_at = models.DateTimeField(db_default=Now())
    seconds = models.FloatField(default=0, db_default=0, help_text="How long it took.")
    entries = models.BigIntegerField(help_text="Journal entries looked at.")
    violations = models.JSONField(default=dict, help_text="Check name to number of violations, zeros included.")
    named = models.JSONField(
        default=list, db_default=[], help_text="The first hundred of each check: check, subject, detail."
    )
    position = models.JSONField(default=dict, db_default={}, help_text="Where the next increment goes on.")

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["id"], condition=Q(kind="full"), name="proof_full")]

    def __str__(self) -> str:
        return f"{self.proved_at:%F %T}"
