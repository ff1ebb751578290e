"""Make a bearer token for a client and print it, once: only its hash is kept."""

import re
from datetime import timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.utils import timezone

from accounts.access import CLIENT_NAME, CLIENT_NAME_RULE, SCOPES
from accounts.models import ApiToken, Customer
from bankcore.identifiers import parse_id
from bankcore.messaging import audit


class Command(BaseCommand):
    help = "Issue a bearer token. Scopes: " + ", ".join(SCOPES)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--client", required=True, help="The program that will use it, at most 50 characters.")
        parser.add_argument("--scopes", required=True, help="Separated by spaces or commas.")
        parser.add_argument("--customer", help="The id of the customer whose accounts it may use.")
        parser.add_argument("--staff-user", help="The user name of the person who acts through it.")
        parser.add_argument("--expires-days", type=int, help="Days until it expires; never, if not given.")

    def handle(self, *args: Any, **options: Any) -> None:
        scopes = sorted(set(re.split(r"[\s,]+", options["scopes"].strip(" ,\t\n"))))
        if unknown := [scope for scope in scopes if scope not in SCOPES]:
            raise CommandError(f"Unknown scopes: {' '.join(unknown) or '(none)'}. Valid: {' '.join(SCOPES)}")
        if not CLIENT_NAME.fullmatch(options["client"]):
            raise CommandError(CLIENT_NAME_RULE)
        days = options["expires_days"]
        if days is not None and not 1 <= days <= 36_500:
            raise CommandError("--expires-days takes 1 to 36500.")
        with transaction.atomic():
            made, token = ApiToken.objects.create_key(
                name=options["client"],
                scopes=scopes,
                customer=_customer(options["customer"]),
                staff_user=_staff_user(options["staff_user"]),
                expiry_date=timezone.now() + timedelta(days=days) if days else None,
            )
            details = {"client": made.name, "scopes": scopes, "customer": options["customer"]}
            audit.record(actor=audit.operator(), action="token.issue", subject=made.prefix, details=details)
        self.stdout.write(token)
        if options["customer"] is None and not {"staff", "ops:replay"} & set(scopes):
            self.stderr.write("It sees no account: that takes --customer ID, or the scope staff for the bank itself.")


def _customer(customer_id: str | None) -> Customer | None:
    if customer_id is None:
        return None
    known = parse_id(customer_id)
    customer = Customer.objects.filter(id=known).first() if known else None
    if customer is None:
        raise CommandError(f"There is no customer {customer_id}.")
    return customer


def _staff_user(username: str | None) -> Any:
    if username is None:
        return None
    user = get_user_model().objects.filter(username=username, is_staff=True).first()
    if user is None:
        raise CommandError(f"There is no staff user {username}.")
    return user
