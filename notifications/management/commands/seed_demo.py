"""Fill the bank with accounts to play with."""

import json as json_format
from argparse import ArgumentParser
from secrets import token_hex
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from accounts.access import SCOPES
from accounts.models import ApiToken
from accounts.seeding import seed_accounts
from bankcore.money import AMOUNT_MINOR_MAX, format_minor, is_currency
from notifications.models import Channel, Subscription


class Command(BaseCommand):
    help = "Create customers with funded accounts, some of whom want to be told of transfers, and a token to use them."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--accounts", type=int, default=100, metavar="N", help="how many (default: 100)")
        parser.add_argument(
            "--opening-minor",
            type=int,
            default=1_000_000,
            metavar="M",
            help="each account's opening balance in minor units (default: 1000000)",
        )
        parser.add_argument("--currency", default="EUR", help="an ISO 4217 code (default: EUR)")
        parser.add_argument("--json", action="store_true", help='print {"accounts": [ids], "currency", "token"}')

    def handle(self, *, accounts: int, opening_minor: int, currency: str, json: bool, **options: Any) -> None:
        if accounts < 1:
            raise CommandError("--accounts is at least 1.")
        if not 0 <= opening_minor <= AMOUNT_MINOR_MAX:
            raise CommandError(f"--opening-minor is between 0 and {AMOUNT_MINOR_MAX}.")
        if not is_currency(currency):
            raise CommandError(f"{currency} is no ISO 4217 currency code.")
        seeded = seed_accounts(number=accounts, opening_minor=opening_minor, currency=currency)
        _subscribe([account.customer for account in seeded])
        # A client of its own for each run: its idempotency keys and external_ids are new, whoever used them before.
        _, token = ApiToken.objects.create_key(name=f"demo-{token_hex(4)}", scopes=sorted(SCOPES))
        if json:
            ids = [str(account.pk) for account in seeded]
            self.stdout.write(json_format.dumps({"accounts": ids, "currency": currency, "token": token}))
            return
        each = format_minor(opening_minor, currency)
        self.stdout.write(f"{len(seeded)} accounts with {each} each, among them:")
        self.stdout.writelines(f"  {account.pk}  {account.name}\n" for account in seeded[:3])
        self.stdout.write(f"Token (shown once, all scopes): {token}")


def _subscribe(customers: list[Any]) -> None:
    """Every second customer reads in the app, every twentieth wants e-mail as well."""
    Subscription.objects.bulk_create(
        [Subscription(customer=c.pk, channel=Channel.IN_APP) for c in customers[::2]]
        + [Subscription(customer=c.pk, channel=Channel.EMAIL, address=c.email) for c in customers[::20]]
    )
