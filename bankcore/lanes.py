"""Two lanes into Django: calls of the API skip what only pages need, such as sessions, cookies, messages and files."""

from collections.abc import Callable, Iterable
from typing import Any

from django.conf import settings
from django.core.handlers.exception import convert_exception_to_response
from django.core.handlers.wsgi import WSGIHandler
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.urls import ResolverMatch
from django.utils.module_loading import import_string

CALLS = "/api/v1/"
HOSTS_MAX = PATHS_MAX = 256


class HostMiddleware:
    """Refuse a host that is not ours (400), as Django's CommonMiddleware does for pages."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response
        self._allowed: set[str] = set()

    def __call__(self, request: HttpRequest) -> HttpResponse:
        host = request.META.get("HTTP_HOST", "")
        if not host or host not in self._allowed:
            request.get_host()
            if len(self._allowed) < HOSTS_MAX:
                self._allowed.add(host)
        return self.get_response(request)


class CallHandler(WSGIHandler):
    """Django with the middleware of CALL_MIDDLEWARE, which has no hooks but the call itself.

    A call uses no cache, no file and one database, so Django's signals around a request have one thing to do here: to
    leave a database connection that broke.
    """

    def __init__(self) -> None:
        super().__init__()
        self._matches: dict[str, ResolverMatch] = {}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        connection.close_if_unusable_or_obsolete()
        response: Any = self.get_response(self.request_class(environ))
        start_response(f"{response.status_code} {response.reason_phrase}", list(response.items()))
        if response.streaming:
            return response
        return [response.content]

    def resolve_request(self, request: HttpRequest) -> ResolverMatch:
        """Find the view; addresses without an id in them are few, and looked up once."""
        known = self._matches.get(request.path_info)
        if known is None:
            known = super().resolve_request(request)
            if not known.kwargs and not known.args and len(self._matches) < PATHS_MAX:
                self._matches[request.path_info] = known
        request.resolver_match = known
        return known

    def load_middleware(self, is_async: bool = False) -> None:
        self._view_middleware: list[Any] = []
        self._template_response_middleware: list[Any] = []
        self._exception_middleware: list[Any] = []
        inner: Any = self
        handler = convert_exception_to_response(inner._get_response)
        for name in reversed(settings.CALL_MIDDLEWARE):
            handler = convert_exception_to_response(import_string(name)(handler))
        self._middleware_chain = handler


class Lanes:
    """A WSGI application that chooses by the path."""

    def __init__(self) -> None:
        self._pages = get_wsgi_application()
        self._calls = CallHandler()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        lane = self._calls if environ.get("PATH_INFO", "").startswith(CALLS) else self._pages
        answer: Iterable[bytes] = lane(environ, start_response)
        return answer
