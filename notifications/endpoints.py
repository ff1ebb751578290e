"""Webhook endpoints: registering, new secrets, removing, looking, and having deliveries sent again."""

import base64
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Now

from bankcore.database import fetch_all
from bankcore.errors import FieldError, Invalid, NotFound
from bankcore.identifiers import parse_id
from bankcore.messaging import audit, outbox
from notifications.addresses import check_url
from notifications.models import WebhookDelivery, WebhookEndpoint
from notifications.webhooks import PENDING

ENDPOINTS_MAX = 20
REPLAY_MAX = 10_000
_SECRET_BYTES = 32
KEEP_OLD_SECONDS, KEEP_OLD_SECONDS_MAX = 24 * 3600, 7 * 24 * 3600


def event_types() -> list[str]:
    """What an endpoint may ask for: every event that is told to people."""
    routes = settings.TOPOLOGY_ROUTES.items()
    return sorted(name for name, route in routes if route.task == "notifications.dispatch" and "transfer." in name)


def visible_endpoints(client: Any) -> QuerySet[WebhookEndpoint]:
    endpoints = WebhookEndpoint.objects.exclude(state=WebhookEndpoint.State.DELETED)
    if client.is_staff:
        return endpoints
    # A token without a customer has none; those of the bank itself, without a customer as well, are not its own.
    return endpoints.filter(customer=client.customer_id) if client.customer_id else endpoints.none()


def find_endpoint(client: Any, endpoint_id: str) -> WebhookEndpoint:
    """Return the endpoint if the caller may see it.

    Raises:
        NotFound: there is none, or it is someone else's.
    """
    known = parse_id(endpoint_id)
    endpoint = visible_endpoints(client).filter(id=known).first() if known else None
    if endpoint is None:
        raise NotFound
    return endpoint


@transaction.atomic
def register_endpoint(
    client: Any, *, url: str, types: Sequence[str], ordered: bool, customer: str | None
) -> WebhookEndpoint:
    """Register an endpoint for the caller's customer, with a new secret; staff name any customer, or none: all.

    Raises:
        Invalid: with every place that is wrong.
    """
    errors = []
    try:
        check_url(url)
    except ValueError as error:
        errors.append(FieldError("url", "invalid", str(error)))
    unknown = [f"event_types.{n}" for n, name in enumerate(types) if name not in event_types()]
    errors += [FieldError(place, "unknown_event_type", "Give one of " + ", ".join(event_types())) for place in unknown]
    owner = parse_id(customer) if customer else client.customer_id
    if customer and (owner is None or not client.may_use(owner)):
        errors.append(FieldError("customer", "unknown_customer", "There is no such customer."))
    elif owner is None and not client.is_staff:
        errors.append(FieldError("customer", "required", "This token belongs to no customer."))
    if visible_endpoints(client).filter(customer=owner).count() >= ENDPOINTS_MAX:
        errors.append(FieldError("url", "too_many", f"A customer has at most {ENDPOINTS_MAX} endpoints."))
    if errors:
        raise Invalid(errors=errors)
    endpoint = WebhookEndpoint.objects.create(
        customer=owner,
        url=url,
        event_types=sorted(set(types)),
        ordered=ordered,
        secret=_new_secret(),
        created_by=client.name,
    )
    _audit(client.name, "webhook.register", endpoint)
    endpoint.refresh_from_db()
    return endpoint


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


@transaction.atomic
def rotate_secret(endpoint: WebhookEndpoint, *, actor: str, keep_old_seconds: int) -> WebhookEndpoint:
    """Give an endpoint a new secret; the old one signs beside it for KEEP_OLD_SECONDS_MAX at most, 0: not at all.

    Repeating makes another secret, and the one before the old one ends at once. Locks the endpoint's row.

    Raises:
        NotFound: it was removed.
    """
    kept: dict[str, Any] = {"previous_secret": "", "previous_until": None}
    if keep_old_seconds:
        kept = {"previous_secret": F("secret"), "previous_until": Now() + timedelta(seconds=keep_old_seconds)}
    alive = WebhookEndpoint.objects.filter(pk=endpoint.pk).exclude(state=WebhookEndpoint.State.DELETED)
    if not alive.update(secret=_new_secret(), **kept):
        raise NotFound
    endpoint.refresh_from_db()
    _audit(actor, "webhook.rotate_secret", endpoint, {"keep_old_seconds": keep_old_seconds})
    return endpoint


def forget_old_secrets() -> int:
    """Remove secrets whose time is up, and return how many. They have signed nothing since; safe to repeat."""
    ended = WebhookEndpoint.objects.filter(previous_until__lte=Now())
    return ended.update(previous_secret="", previous_until=None)


@transaction.atomic
def remove_endpoint(client: Any, endpoint: WebhookEndpoint) -> None:
    """Tell it nothing any more. What is pending ends as failed; what was delivered stays on record."""
    WebhookEndpoint.objects.filter(pk=endpoint.pk).update(
        state=WebhookEndpoint.State.DELETED, secret="", previous_secret="", previous_until=None
    )
    _audit(client.name, "webhook.remove", endpoint)


def find_delivery(endpoint: WebhookEndpoint, delivery_id: str) -> WebhookDelivery:
    """Return a delivery of this endpoint.

    Raises:
        NotFound: it has none of this id.
    """
    if not (delivery_id.isascii() and delivery_id.isdigit() and len(delivery_id) <= 18):
        raise NotFound
    delivery = WebhookDelivery.objects.filter(endpoint=endpoint, pk=int(delivery_id)).first()
    if delivery is None:
        raise NotFound
    return delivery


_REPLAY = """
UPDATE notifications_webhookdelivery
   SET state = 'pending', attempts = 0, failure = '', status_code = NULL, delivered_at = NULL, claimed_until = NULL
 WHERE id = ANY(%b::bigint[]) AND state <> 'pending'
RETURNING id
"""


@transaction.atomic
def replay(client: Any, endpoint: WebhookEndpoint, delivery_ids: Sequence[int]) -> int:
    """Send ended deliveries again, in their old order and with all their attempts; return how many.

    Safe to repeat: what is pending is left alone. The receiver sees the `webhook-id` it has seen before.
    """
    rows = fetch_all(_REPLAY, (list(delivery_ids),))
    outbox.postpone([PENDING], [str(row[0]) for row in rows], 0.0)
    if rows:
        _audit(client.name, "webhook.replay", endpoint, {"deliveries": len(rows)})
    return len(rows)


def ended_between(endpoint: WebhookEndpoint, since: datetime, until: datetime, state: str | None) -> list[int]:
    """Name the oldest ended deliveries whose event was told in this span of time, REPLAY_MAX at most."""
    ended = WebhookDelivery.objects.filter(endpoint=endpoint, created_at__gte=since, created_at__lt=until)
    wanted = ended.filter(state=state) if state else ended.exclude(state=WebhookDelivery.State.PENDING)
    return list(wanted.order_by("id").values_list("id", flat=True)[:REPLAY_MAX])


def _audit(actor: str, action: str, endpoint: WebhookEndpoint, details: dict[str, Any] | None = None) -> None:
    customer: UUID | None = endpoint.customer
    told = {"customer": str(customer) if customer else None, "url": endpoint.url, **(details or {})}
    audit.record(actor=actor, action=action, subject=endpoint.pk, details=told)
