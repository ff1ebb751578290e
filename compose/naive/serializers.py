"""The body of a transfer, in and out."""

from typing import Any

from rest_framework import serializers

from compose.naive.models import Transfer

CURRENCY_LETTERS = 3


class TransferIn(serializers.Serializer[dict[str, Any]]):
    debit_account = serializers.IntegerField(min_value=1)
    credit_account = serializers.IntegerField(min_value=1)
    amount_minor = serializers.IntegerField(min_value=1, max_value=10**15)
    currency = serializers.CharField(min_length=CURRENCY_LETTERS, max_length=CURRENCY_LETTERS)


class TransferOut(serializers.ModelSerializer[Transfer]):
    class Meta:
        model = Transfer
        fields = ["id", "status", "debit_account", "credit_account", "amount_minor", "currency", "created_at"]
