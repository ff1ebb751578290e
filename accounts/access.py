"""Who is calling and what they may see: bearer tokens, scopes, and the accounts of the caller's customer."""

import re
import time
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models import Q, QuerySet
from django.utils import timezone
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed, NotAuthenticated
from rest_framework.permissions import BasePermission

from accounts.models import Account, ApiToken
from bankcore import rate_limits
from bankcore.errors import NotFound, ScopeMissing
from bankcore.identifiers import parse_id

SCOPES = {
    "accounts:read": "See accounts, their balances and their journal lines.",
    "accounts:write": "Open accounts.",
    "transfers:read": "See transfers and batches.",
    "transfers:write": "Order and cancel transfers.",
    "webhooks:read": "See webhook endpoints and their deliveries.",
    "webhooks:write": "Register and remove webhook endpoints, and have deliveries sent again.",
    "staff": "Act for the bank: see and debit every customer's accounts.",
    "ops:replay": "Send dead letters again.",
}
CACHED_TOKENS_MAX = 10_000
# Behind an @ stands whose client it is (Client.namespace).
CLIENT_NAME = re.compile(r"[^@\x00-\x1f]{1,50}")
CLIENT_NAME_RULE = "A client's name has 1 to 50 characters, and no @."
_TOKEN = re.compile(r"[A-Za-z0-9]{8}\.[A-Za-z0-9]{16,128}")


@dataclass(frozen=True, slots=True)
class Client:
    """The program behind a token. Bound to a customer it sees that customer's accounts; staff sees all."""

    name: str
    customer_id: UUID | None
    scopes: frozenset[str]
    staff_user_id: int | None

    is_authenticated = True

    @property
    def is_staff(self) -> bool:
        return "staff" in self.scopes

    @property
    def namespace(self) -> str:
        """What keys are unique in: equal names of two customers must never meet each other's idempotency keys."""
        return self.name if self.customer_id is None else f"{self.name}@{self.customer_id.hex[-12:]}"

    def may_use(self, customer_id: UUID | None) -> bool:
        return self.is_staff or (customer_id is not None and customer_id == self.customer_id)


# Who the bank itself is when it takes in a file: no token has this name, as none may have an @ in it, so its keys and
# external_ids meet nobody else's.
BANK_FILES = Client("import@bank", customer_id=None, scopes=frozenset({"staff", "transfers:write"}), staff_user_id=None)


class BearerAuthentication(BaseAuthentication):
    """`Authorization: Bearer <token>`. A good one is remembered for TOKEN_CACHE_SECONDS; revoking takes that long."""

    # By digest, so that the tokens themselves are not kept in memory.
    _known: dict[bytes, tuple[float, Client]] = {}

    def authenticate(self, request: Any) -> tuple[Client, None] | None:
        kind, _, token = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        if kind.lower() != "bearer":
            return None
        digest = sha256(token.encode("utf-8", "replace")).digest()
        until, client = self._known.get(digest, (0.0, None))
        if client is None or until < time.monotonic():
            try:
                client = _client_of(token)
            except AuthenticationFailed:
                rate_limits.take("auth_failures", request.META.get("REMOTE_ADDR", "")).enforce()
                raise
            if len(self._known) >= CACHED_TOKENS_MAX:
                self._known.clear()
            self._known[digest] = (time.monotonic() + settings.TOKEN_CACHE_SECONDS, client)
        return client, None

    def authenticate_header(self, request: Any) -> str:
        return "Bearer"

    @classmethod
    def forget(cls) -> None:
        cls._known.clear()


def _client_of(token: str) -> Client:
    # Unknown, revoked, expired and inactive give one answer.
    refusal = AuthenticationFailed("The token is not valid: it is not whole, was revoked, or has expired.")
    if not _TOKEN.fullmatch(token):
        raise refusal
    prefix = token.partition(".")[0]
    known = ApiToken.objects.get_usable_keys().select_related("staff_user").filter(prefix=prefix).first()
    if known is None or not known.is_valid(token) or known.has_expired:
        raise refusal
    if known.staff_user is not None and not known.staff_user.is_active:
        raise refusal
    return _as_client(known)


def _as_client(token: ApiToken) -> Client:
    return Client(
        name=token.name,
        customer_id=token.customer_id,
        scopes=frozenset(token.scopes),
        staff_user_id=token.staff_user_id,
    )


def clients_with_tokens(name: str) -> list[Client]:
    """List who so named has a token that is valid now, newest first; one of equal tokens is enough."""
    valid = Q(expiry_date__isnull=True) | Q(expiry_date__gt=timezone.now())
    active = Q(staff_user__isnull=True) | Q(staff_user__is_active=True)
    tokens = ApiToken.objects.get_usable_keys().filter(valid, active, name=name).order_by("-created")
    return list(dict.fromkeys(_as_client(token) for token in tokens))


class HasScope(BasePermission):
    """Each view declares `scopes = {"GET": "transfers:read", ...}`; a method it does not declare is nobody's."""

    def has_permission(self, request: Any, view: Any) -> bool:
        if not isinstance(request.user, Client):
            raise NotAuthenticated("Send a token of yours in the header: `Authorization: Bearer ...`.")
        method = "GET" if request.method == "HEAD" else request.method
        scopes = getattr(view, "scopes", {})
        if scopes and not _has_handler(view, method):
            # The view goes on to say 405.
            return True
        scope = scopes.get(method)
        if scope is None:
            return False
        if scope not in request.user.scopes:
            raise ScopeMissing(f"This call needs the scope {scope}.")
        return True


def _has_handler(view: Any, method: str) -> bool:
    return method.lower() in view.http_method_names and hasattr(view, method.lower())


def visible_accounts(client: Client) -> QuerySet[Account]:
    if client.is_staff:
        return Account.objects.all()
    if client.customer_id is None:
        return Account.objects.none()
    return Account.objects.filter(customer_id=client.customer_id)


def find_account(client: Client, account_id: str) -> Account:
    """Return the account if the caller may see it.

    Raises:
        NotFound: there is none, or it is someone else's.
    """
    known = parse_id(account_id)
    account = visible_accounts(client).filter(id=known).first() if known else None
    if account is None:
        raise NotFound
    return account
