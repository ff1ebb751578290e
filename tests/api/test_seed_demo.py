"""What seed_demo hands out works, however often it has run before."""

import io
import json
from typing import Any

from django.core.management import call_command

from accounts.models import ApiToken
from tests.api.conftest import Caller


def test_each_run_gives_a_client_of_its_own(bank: Any) -> None:
    answers = []
    for _ in range(2):
        out = io.StringIO()
        call_command("seed_demo", accounts=2, opening_minor=100_000, json=True, stdout=out)
        seeded = json.loads(out.getvalue())
        debit, credit = seeded["accounts"]
        body = bank.body(debit_account=debit, credit_account=credit, external_id="4711")
        answers.append(Caller(seeded["token"]).order(body, key="invoice-4711"))

    assert [answer.status_code for answer in answers] == [202, 202]
    first, second = ApiToken.objects.filter(name__startswith="demo-")
    assert first.name != second.name
    assert first.scopes == second.scopes
