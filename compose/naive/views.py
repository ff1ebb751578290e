"""The whole transfer inside one request: lock both accounts, move the money, write two ledger rows, answer."""

from django.db import transaction
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from compose.naive.models import Account, LedgerRow, Transfer
from compose.naive.serializers import TransferIn, TransferOut


class TransferView(APIView):
    @transaction.atomic
    def post(self, request: Request) -> Response:
        body = TransferIn(data=request.data)
        body.is_valid(raise_exception=True)
        wanted = body.validated_data
        ids = [wanted["debit_account"], wanted["credit_account"]]
        # In id order, so that two opposite transfers cannot lock each other out.
        accounts = {a.pk: a for a in Account.objects.select_for_update().filter(pk__in=ids).order_by("pk")}
        payer, payee = accounts.get(ids[0]), accounts.get(ids[1])
        if payer is None or payee is None or payer is payee:
            return Response({"detail": "unknown account"}, status=400)
        if payer.balance_minor < wanted["amount_minor"]:
            return Response({"detail": "insufficient funds"}, status=422)
        return Response(TransferOut(move(payer, payee, wanted["amount_minor"])).data, status=201)


def move(payer: Account, payee: Account, amount_minor: int) -> Transfer:
    payer.balance_minor -= amount_minor
    payee.balance_minor += amount_minor
    payer.save()
    payee.save()
    transfer = Transfer.objects.create(
        debit_account=payer, credit_account=payee, amount_minor=amount_minor, currency=payer.currency, status="posted"
    )
    for side, account in (("D", payer), ("C", payee)):
        LedgerRow.objects.create(
            transfer=transfer,
            account=account,
            side=side,
            amount_minor=amount_minor,
            balance_after_minor=account.balance_minor,
        )
    return transfer
