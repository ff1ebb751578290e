"""What the webhook calls take and give, as JSON."""

from datetime import datetime
from typing import Annotated, Any, Literal

from django.utils import timezone
from pydantic import BaseModel, ConfigDict, Field

from bankcore.moments import format_moment
from bankcore.wire import Moment
from notifications.endpoints import KEEP_OLD_SECONDS, KEEP_OLD_SECONDS_MAX
from notifications.models import WebhookDelivery, WebhookEndpoint


class EndpointOrder(BaseModel):
    """An endpoint to register."""

    model_config = ConfigDict(strict=True, extra="forbid")

    url: Annotated[str, Field(min_length=1, max_length=500)]
    event_types: Annotated[list[Annotated[str, Field(max_length=64)]], Field(min_length=1, max_length=20)]
    ordered: bool = True
    customer: Annotated[str, Field(max_length=64)] | None = None


class EndpointShown(BaseModel):
    id: str
    customer: str | None
    url: str
    event_types: list[str]
    ordered: bool
    state: Literal["active", "disabled"]
    created_at: datetime
    previous_secret_until: datetime | None


class SecretOrder(BaseModel):
    """How long the old secret signs beside the new one; 0: not at all."""

    model_config = ConfigDict(strict=True, extra="forbid")

    keep_old_seconds: Annotated[int, Field(ge=0, le=KEEP_OLD_SECONDS_MAX)] = KEEP_OLD_SECONDS


class EndpointMade(EndpointShown):
    """Only this answer ever holds the secret."""

    secret: str


class EndpointPage(BaseModel):
    results: list[EndpointShown]
    next: str | None
    previous: str | None


class DeliveryShown(BaseModel):
    id: str
    event: str
    type: str
    transfer: str
    state: Literal["pending", "delivered", "failed"]
    attempts: int
    status_code: int | None
    failure: str | None
    created_at: datetime
    delivered_at: datetime | None


class DeliveryPage(BaseModel):
    results: list[DeliveryShown]
    next: str | None
    previous: str | None


class ReplayOrder(BaseModel):
    """Deliveries of events from a span of time; `state` leaves out the others."""

    model_config = ConfigDict(strict=True, extra="forbid", populate_by_name=True)

    since: Annotated[Moment, Field(alias="from")]
    until: Annotated[Moment, Field(alias="to")]
    state: Literal["delivered", "failed"] | None = None


class Replayed(BaseModel):
    replayed: int
    more: bool


def show_endpoint(endpoint: WebhookEndpoint) -> dict[str, Any]:
    until = endpoint.previous_until
    return {
        "id": str(endpoint.pk),
        "customer": endpoint.customer and str(endpoint.customer),
        "url": endpoint.url,
        "event_types": list(endpoint.event_types),
        "ordered": endpoint.ordered,
        "state": str(endpoint.state),
        "created_at": format_moment(endpoint.created_at),
        "previous_secret_until": format_moment(until) if until and until > timezone.now() else None,
    }


def show_delivery(delivery: WebhookDelivery) -> dict[str, Any]:
    return {
        "id": str(delivery.pk),
        "event": f"evt_{delivery.event}",
        "type": delivery.type,
        "transfer": str(delivery.transfer),
        "state": str(delivery.state),
        "attempts": delivery.attempts,
        "status_code": delivery.status_code,
        "failure": delivery.failure or None,
        "created_at": format_moment(delivery.created_at),
        "delivered_at": delivery.delivered_at and format_moment(delivery.delivered_at),
    }
