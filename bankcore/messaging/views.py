"""The calls of the dead-letter desk: for programs of the bank, with the scope ops:replay."""

from typing import Any

from django.conf import settings
from django.http import HttpResponse
from drf_spectacular.utils import OpenApiParameter, extend_schema

from bankcore.api import read_model, read_query
from bankcore.cursors import NewestFirst
from bankcore.errors import NotFound
from bankcore.messaging import desk
from bankcore.messaging import serializers as shapes
from bankcore.messaging.forecasts import foresee
from bankcore.messaging.letter_search import find_letters, open_letters
from bankcore.messaging.models import DeadLetter
from bankcore.moments import parse_moment
from bankcore.view import View
from bankcore.wire import Problem, json_response

PAGES = [OpenApiParameter("cursor", str), OpenApiParameter("page_size", int, description="1 to 200, 50 by default.")]
FILTERS = [
    OpenApiParameter(name, str, description=text)
    for name, text in {
        "state": "open, replayed or discarded.",
        "cause": "How the cause begins, such as `ZeroDivisionError`.",
        "task": "",
        "queue": "",
        "subject": "The whole id of what it is about, such as a transfer's.",
        "created_from": "",
        "created_to": "",
    }.items()
]
PROBLEMS = dict.fromkeys((400, 401, 403, 404, 503), Problem)
VERB_PROBLEMS = dict.fromkeys((409, 413, 415, 422), Problem) | PROBLEMS
SCOPE = "ops:replay"


def _state(text: str) -> str:
    if text not in DeadLetter.State.values:
        raise ValueError("Give one of " + ", ".join(DeadLetter.State.values) + ".")
    return text


def _letter_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19) or int(text) > 2**63 - 1:
        raise NotFound
    return int(text)


class DeskView(View):
    """The desk is the bank's own: a customer's token finds nothing here, whatever its scopes are."""

    def initial(self, request: Any, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if request.user.customer_id is not None:
            raise NotFound

    def actor(self, request: Any) -> desk.Actor:
        return desk.actor_of_client(request.user.name, request.user.staff_user_id)


class DeadLetters(DeskView):
    scopes = {"GET": SCOPE}

    @extend_schema(
        operation_id="list_dead_letters",
        tags=["dead letters"],
        description="List dead letters, newest first.",
        parameters=[*FILTERS, *PAGES],
        responses={200: shapes.LetterPage, **PROBLEMS},
    )
    def get(self, request: Any) -> HttpResponse:
        parsers = dict.fromkeys(("cause", "task", "queue", "subject"), str)
        moments = {"created_from": parse_moment, "created_to": parse_moment}
        filters, page = read_query(request, {**parsers, **moments, "state": _state}), NewestFirst()
        letters = page.paginate_queryset(find_letters(filters), request)
        return page.get_paginated_response([shapes.show_letter(letter) for letter in letters])


class OneDeadLetter(DeskView):
    scopes = {"GET": SCOPE}

    @extend_schema(
        operation_id="get_dead_letter",
        tags=["dead letters"],
        description="Show a dead letter with its traceback, its headers and its bytes.",
        responses={200: shapes.LetterDetailShown, **PROBLEMS},
    )
    def get(self, request: Any, letter_id: str) -> HttpResponse:
        read_query(request, {})
        letter = DeadLetter.objects.select_related("resolved_by").filter(pk=_letter_number(letter_id)).first()
        if letter is None:
            raise NotFound
        return json_response(shapes.show_letter_in_full(letter, desk.pending_request(letter)))


class Replay(DeskView):
    scopes = {"POST": SCOPE}

    @extend_schema(
        operation_id="replay_dead_letter",
        tags=["dead letters"],
        description="Let the work go on; or, as a dry run, say what that would come to. 202: it takes a second person.",
        request=shapes.ReplayOrder,
        responses={200: shapes.ReplayShown, 202: shapes.ReplayShown, **VERB_PROBLEMS},
    )
    def post(self, request: Any, letter_id: str) -> HttpResponse:
        number = _letter_number(letter_id)
        order = read_model(request, shapes.ReplayOrder, settings.REQUEST_BYTES_MAX)
        if not order.dry_run:
            return _told(desk.replay(number, actor=self.actor(request)))
        for forecast in foresee([number]):
            return json_response(shapes.show_forecast(forecast))
        raise NotFound


class ReplayMany(DeskView):
    scopes = {"POST": SCOPE}

    @extend_schema(
        operation_id="replay_dead_letters",
        tags=["dead letters"],
        description="Replay open letters that fit a filter, those that came first at the front. Each is done by itself:"
        " one that is refused holds up no other.",
        request=shapes.ReplayManyOrder,
        responses={200: shapes.ReplayManyShown, **VERB_PROBLEMS},
    )
    def post(self, request: Any) -> HttpResponse:
        order = read_model(request, shapes.ReplayManyOrder, settings.REQUEST_BYTES_MAX)
        letters = open_letters(order.filter.model_dump(), order.limit + 1)
        more, letters = len(letters) > order.limit, letters[: order.limit]
        if order.dry_run:
            results = [shapes.show_forecast(forecast) for forecast in foresee(letters)]
        else:
            outcomes = desk.replay_each(letters, actor=self.actor(request), rate=order.rate)
            results = [shapes.show_outcome(outcome) for outcome in outcomes]
        return json_response(shapes.show_many(results, more=more))


class Discard(DeskView):
    scopes = {"POST": SCOPE}

    @extend_schema(
        operation_id="discard_dead_letter",
        tags=["dead letters"],
        description="Give the work up: a parked transfer ends `rejected` as `discarded_by_staff`. The letter is kept.",
        request=shapes.DiscardOrder,
        responses={200: shapes.ReplayShown, 202: shapes.ReplayShown, **VERB_PROBLEMS},
    )
    def post(self, request: Any, letter_id: str) -> HttpResponse:
        number = _letter_number(letter_id)
        order = read_model(request, shapes.DiscardOrder, settings.REQUEST_BYTES_MAX)
        return _told(desk.discard(number, reason=order.reason, actor=self.actor(request)))


class Approve(DeskView):
    scopes = {"POST": SCOPE}

    @extend_schema(
        operation_id="approve_dead_letter",
        tags=["dead letters"],
        description="Agree, as the second person, to what was asked, and do it. The token has to name its staff user.",
        request=shapes.ApproveOrder,
        responses={200: shapes.ReplayShown, **VERB_PROBLEMS},
    )
    def post(self, request: Any, letter_id: str) -> HttpResponse:
        number = _letter_number(letter_id)
        order = read_model(request, shapes.ApproveOrder, settings.REQUEST_BYTES_MAX)
        return _told(desk.approve(number, action=order.action, actor=self.actor(request)))


class Withdraw(DeskView):
    scopes = {"POST": SCOPE}

    @extend_schema(
        operation_id="withdraw_dead_letter_request",
        tags=["dead letters"],
        description="Take back, or turn down, what was asked about a letter.",
        request=None,
        responses={200: shapes.WithdrawnShown, 409: Problem, **PROBLEMS},
    )
    def post(self, request: Any, letter_id: str) -> HttpResponse:
        number = _letter_number(letter_id)
        desk.withdraw(number, actor=self.actor(request))
        return json_response({"letter": str(number), "outcome": "withdrawn"})


def _told(outcome: desk.Outcome) -> HttpResponse:
    return json_response(shapes.show_outcome(outcome), 202 if outcome.outcome == "awaiting_approval" else 200)
