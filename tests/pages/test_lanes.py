"""Calls of the API skip the middleware of pages, and answer the same; pages keep theirs."""

from io import BytesIO
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from django.utils.module_loading import import_string

from bankcore.lanes import Lanes

pytestmark = pytest.mark.django_db


def ask(path: str, **environ: str) -> tuple[int, dict[str, str], bytes]:
    began: list[Any] = []
    base = {
        "REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "80",
        "HTTP_HOST": "127.0.0.1", "wsgi.input": BytesIO(), "wsgi.url_scheme": "http", "HTTP_X_REQUEST_ID": "r-1",
    }  # fmt: skip
    body = b"".join(Lanes()({**base, **environ}, lambda status, headers: began.append((status, headers))))
    status, headers = began[0]
    return int(status[:3]), {name.lower(): value for name, value in headers}, body


@pytest.mark.parametrize("path", ["/api/v1/accounts", "/api/v1/nothing", "/api/v1/transfers/x"])
def test_a_call_is_answered_as_with_all_middleware(path: str) -> None:
    status, headers, body = ask(path)

    other = Client().get(path, headers={"X-Request-Id": "r-1", "Host": "127.0.0.1"})
    assert (status, body) == (other.status_code, other.content)
    expected = {name.lower(): value for name, value in other.headers.items()}
    # Granian counts the bytes itself.
    expected.pop("content-length", None)
    assert headers == expected
    assert headers["x-frame-options"] == "DENY"


def test_a_call_to_another_host_is_refused() -> None:
    assert ask("/api/v1/accounts", HTTP_HOST="evil.example")[0] == 400


def test_a_page_keeps_its_session_and_its_files() -> None:
    assert ask("/admin/")[0] == 302
    assert ask("/static/admin/css/base.css")[0] == 200


def test_no_middleware_of_calls_has_a_hook_that_would_be_left_out() -> None:
    for name in settings.CALL_MIDDLEWARE:
        for hook in ("process_view", "process_template_response", "process_exception"):
            assert not hasattr(import_string(name), hook)
