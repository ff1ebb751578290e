"""What granian says of a request, as the WSGI environment that Django reads."""

import sys
from typing import Any

from bankcore.pool import Environ

# Stands for a value that could not be read: it is no key, no token, no host, no number. Like all text of a WSGI
# environment it is Latin-1, as Django encodes cookies and more.
NOT_ASCII = "\x80"


def environ_of(scope: Any) -> Environ:
    """Say what came in as a WSGI environment (PEP 3333)."""
    server, _, port = scope.server.rpartition(":")
    environ: Environ = {
        "REQUEST_METHOD": scope.method,
        "SCRIPT_NAME": "",
        # Granian has decoded it. Once more, and an address would mean one thing to the front, or to a proxy that keeps
        # /admin/ from strangers, and another to Django.
        "PATH_INFO": scope.path.encode().decode("latin-1"),
        "QUERY_STRING": scope.query_string,
        "SERVER_NAME": server,
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "REMOTE_ADDR": scope.client.rpartition(":")[0].strip("[]"),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.scheme,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    if scope.authority:
        environ["HTTP_HOST"] = scope.authority
    for name, value in scope.headers.items():
        # A name with an underscore would pass for the one with a hyphen.
        if "_" in name:
            continue
        key = name.upper().replace("-", "_")
        key = key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"
        if key in environ and key != "HTTP_HOST":
            value = f"{environ[key]}; {value}" if key == "HTTP_COOKIE" else f"{environ[key]},{value}"
        environ[key] = value
    # Granian names a header whose value is not ASCII, and does not give the value. It was sent, and is not valid.
    for name in set(scope.headers.keys()) - {name for name, _ in scope.headers.items()}:
        if "_" not in name:
            environ[f"HTTP_{name.upper().replace('-', '_')}"] = NOT_ASCII
    return environ
