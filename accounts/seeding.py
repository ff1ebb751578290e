"""Make customers with funded accounts for a demo, a test or a benchmark. The money is the bank's own."""

from uuid import UUID

from django.db import transaction

from accounts import ledger
from accounts.models import Account, Customer
from bankcore.identifiers import new_id

FUNDING_NAME = "Demo funding"
CHUNK = 1000


def seed_accounts(*, number: int, opening_minor: int, currency: str) -> list[Account]:
    """Create `number` accounts, each of a customer of its own and holding `opening_minor`."""
    with transaction.atomic():
        funding, _ = Account.objects.get_or_create(
            name=f"{FUNDING_NAME} {currency}", currency=currency, customer=None, defaults={"limit_minor": None}
        )
    accounts: list[Account] = []
    for start in range(0, number, CHUNK):
        accounts += _seed_chunk(min(CHUNK, number - start), start, opening_minor, currency, funding.pk)
    return accounts


@transaction.atomic
def _seed_chunk(number: int, start: int, opening_minor: int, currency: str, funding: UUID) -> list[Account]:
    customers = Customer.objects.bulk_create(
        Customer(name=f"Customer {start + i + 1}", email=f"customer-{start + i + 1}@example.com") for i in range(number)
    )
    accounts = Account.objects.bulk_create(
        Account(id=new_id(), customer=c, name=f"Account of {c.name}", currency=currency) for c in customers
    )
    if opening_minor:
        ledger.post([ledger.Movement(f"opening:{a.pk}", funding, a.pk, opening_minor, currency) for a in accounts])
    return accounts
