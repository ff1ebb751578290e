"""Accounts, transfers and their two ledger rows, with the foreign keys and indexes that Django makes by default."""

from django.db import models


class Account(models.Model):
    currency = models.CharField(max_length=3)
    balance_minor = models.BigIntegerField()

    def __str__(self) -> str:
        return f"account {self.pk}"


class Transfer(models.Model):
    debit_account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="debits")
    credit_account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="credits")
    amount_minor = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    status = models.CharField(max_length=10)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"transfer {self.pk}"


class LedgerRow(models.Model):
    transfer = models.ForeignKey(Transfer, on_delete=models.PROTECT, related_name="rows")
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="rows")
    side = models.CharField(max_length=1)
    amount_minor = models.BigIntegerField()
    balance_after_minor = models.BigIntegerField()

    def __str__(self) -> str:
        return f"{self.side} {self.amount_minor}"
