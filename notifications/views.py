"""The webhook calls of the API: parse, authorize, call the verb, answer."""

from typing import Any

from django.conf import settings
from django.http import HttpResponse
from drf_spectacular.utils import OpenApiParameter, extend_schema

from bankcore.api import read_model, read_query
from bankcore.cursors import NewestFirst
from bankcore.view import View
from bankcore.wire import Problem, json_response
from notifications import serializers as shapes
from notifications.endpoints import (
    REPLAY_MAX,
    ended_between,
    find_delivery,
    find_endpoint,
    register_endpoint,
    remove_endpoint,
    replay,
    rotate_secret,
    visible_endpoints,
)
from notifications.models import WebhookDelivery

PAGES = [OpenApiParameter("cursor", str), OpenApiParameter("page_size", int, description="1 to 200, 50 by default.")]
PROBLEMS = dict.fromkeys((400, 401, 403, 404, 503), Problem)
READ, WRITE = "webhooks:read", "webhooks:write"


def _state(text: str) -> str:
    if text not in WebhookDelivery.State.values:
        raise ValueError("Give one of " + ", ".join(WebhookDelivery.State.values) + ".")
    return text


class Endpoints(View):
    scopes = {"GET": READ, "POST": WRITE}

    @extend_schema(
        operation_id="list_webhook_endpoints",
        tags=["webhooks"],
        description="List the caller's webhook endpoints, newest first.",
        parameters=PAGES,
        responses={200: shapes.EndpointPage, **PROBLEMS},
    )
    def get(self, request: Any) -> HttpResponse:
        read_query(request, {})
        page = NewestFirst()
        endpoints = page.paginate_queryset(visible_endpoints(request.user), request)
        return page.get_paginated_response([shapes.show_endpoint(endpoint) for endpoint in endpoints])

    @extend_schema(
        operation_id="create_webhook_endpoint",
        tags=["webhooks"],
        description="Register an endpoint. The answer alone holds its secret (Standard Webhooks).",
        request=shapes.EndpointOrder,
        responses={201: shapes.EndpointMade, 413: Problem, 415: Problem, **PROBLEMS},
    )
    def post(self, request: Any) -> HttpResponse:
        order = read_model(request, shapes.EndpointOrder, settings.REQUEST_BYTES_MAX)
        endpoint = register_endpoint(
            request.user, url=order.url, types=order.event_types, ordered=order.ordered, customer=order.customer
        )
        made = {**shapes.show_endpoint(endpoint), "secret": endpoint.secret}
        return json_response(made, 201, {"Location": f"/api/v1/webhook-endpoints/{endpoint.pk}"})


class OneEndpoint(View):
    scopes = {"GET": READ, "DELETE": WRITE}

    @extend_schema(
        operation_id="get_webhook_endpoint",
        tags=["webhooks"],
        description="Show one endpoint.",
        responses={200: shapes.EndpointShown, **PROBLEMS},
    )
    def get(self, request: Any, endpoint_id: str) -> HttpResponse:
        read_query(request, {})
        return json_response(shapes.show_endpoint(find_endpoint(request.user, endpoint_id)))

    @extend_schema(
        operation_id="delete_webhook_endpoint",
        tags=["webhooks"],
        description="Remove an endpoint. It is told nothing any more; what was pending is not delivered.",
        responses={204: None, **PROBLEMS},
    )
    def delete(self, request: Any, endpoint_id: str) -> HttpResponse:
        remove_endpoint(request.user, find_endpoint(request.user, endpoint_id))
        return HttpResponse(status=204)


class Secret(View):
    scopes = {"POST": WRITE}

    @extend_schema(
        operation_id="rotate_webhook_secret",
        tags=["webhooks"],
        description="Give an endpoint a new secret, which this answer alone holds. For `keep_old_seconds` (a day by "
        "default) each call is signed with both, so that the receiver can turn to the new one meanwhile; a rotation "
        "within that time ends the older one at once. Each call makes another secret.",
        request=shapes.SecretOrder,
        responses={200: shapes.EndpointMade, 413: Problem, 415: Problem, **PROBLEMS},
    )
    def post(self, request: Any, endpoint_id: str) -> HttpResponse:
        endpoint = find_endpoint(request.user, endpoint_id)
        order = read_model(request, shapes.SecretOrder, settings.REQUEST_BYTES_MAX)
        rotate_secret(endpoint, actor=request.user.name, keep_old_seconds=order.keep_old_seconds)
        return json_response({**shapes.show_endpoint(endpoint), "secret": endpoint.secret})


class Deliveries(View):
    scopes = {"GET": READ}

    @extend_schema(
        operation_id="list_webhook_deliveries",
        tags=["webhooks"],
        description="List what an endpoint was told, newest first.",
        parameters=[OpenApiParameter("state", str, enum=WebhookDelivery.State.values), *PAGES],
        responses={200: shapes.DeliveryPage, **PROBLEMS},
    )
    def get(self, request: Any, endpoint_id: str) -> HttpResponse:
        query, page = read_query(request, {"state": _state}), NewestFirst()
        endpoint = find_endpoint(request.user, endpoint_id)
        deliveries = WebhookDelivery.objects.filter(endpoint=endpoint, **query)
        return page.get_paginated_response(
            [shapes.show_delivery(d) for d in page.paginate_queryset(deliveries, request)]
        )


class ReplayOne(View):
    scopes = {"POST": WRITE}

    @extend_schema(
        operation_id="replay_webhook_delivery",
        tags=["webhooks"],
        description="Send one delivery again, whatever became of it. One that is pending is left alone.",
        request=None,
        responses={202: shapes.Replayed, **PROBLEMS},
    )
    def post(self, request: Any, endpoint_id: str, delivery_id: str) -> HttpResponse:
        endpoint = find_endpoint(request.user, endpoint_id)
        number = replay(request.user, endpoint, [find_delivery(endpoint, delivery_id).pk])
        return json_response({"replayed": number, "more": False}, 202)


class ReplayMany(View):
    scopes = {"POST": WRITE}

    @extend_schema(
        operation_id="replay_webhook_deliveries",
        tags=["webhooks"],
        description="Send the deliveries of a span of time again, oldest first, up to 10,000 a call; `more` tells if "
        "the span held as many, and may hold more.",
        request=shapes.ReplayOrder,
        responses={202: shapes.Replayed, 413: Problem, 415: Problem, **PROBLEMS},
    )
    def post(self, request: Any, endpoint_id: str) -> HttpResponse:
        endpoint = find_endpoint(request.user, endpoint_id)
        order = read_model(request, shapes.ReplayOrder, settings.REQUEST_BYTES_MAX)
        ended = ended_between(endpoint, order.since, order.until, order.state)
        number = replay(request.user, endpoint, ended)
        return json_response({"replayed": number, "more": len(ended) == REPLAY_MAX}, 202)
