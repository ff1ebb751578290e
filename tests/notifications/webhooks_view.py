"""Webhook endpoints at a real server, and what has been told to them."""

import json
from collections import Counter

from django.utils import timezone

from bankcore.messaging.models import Event
from notifications.models import WebhookDelivery, WebhookEndpoint

SECRET = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
FINE = (204, {}, b"")


def listen(server, customer, types=("transfer.posted", "transfer.rejected"), **fields):
    return WebhookEndpoint.objects.create(
        customer=customer and customer.pk,
        url=server.url,
        event_types=list(types),
        secret=SECRET,
        created_by="x",
        **fields,
    )


def due():
    """Ids of deliveries whose event is owed to the broker now, as the relay would send them."""
    events = Event.objects.filter(type="webhook.pending", published_at=None, due_at__lte=timezone.now()).order_by("id")
    ids = [int(subject) for subject in events.values_list("subject", flat=True)]
    Event.objects.filter(pk__in=[e.pk for e in events]).update(published_at=timezone.now())
    return ids


def make_all_due():
    Event.objects.filter(type="webhook.pending", published_at=None).update(due_at=timezone.now())


def states():
    return Counter(WebhookDelivery.objects.values_list("state", "attempts"))


def told(server):
    return [json.loads(body)["id"] for _, body in server.requests]
