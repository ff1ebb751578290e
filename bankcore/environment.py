"""Reading the settings' variables, so strictly that a value that makes no sense is said at the start, with its name."""

from typing import Any

import environ
from django.core.exceptions import ImproperlyConfigured
from limits import RateLimitItem
from limits import parse as parse_limit

_OFF = ("", "0", "off", "no", "n", "false")
_ON = ("1", "on", "yes", "y", "true", "ok")


class Environment(environ.FileAwareEnv):
    """The environment; every variable may also be given as `<NAME>_FILE`, a file's content."""

    def get_value(
        self, var: str, cast: Any = None, default: Any = environ.Env.NOTSET, parse_default: bool = False
    ) -> Any:
        """Read one variable.

        Raises:
            ImproperlyConfigured: it is not there and has no default, or its value cannot be read; names it.
        """
        try:
            return super().get_value(var, cast, default, parse_default)
        except ValueError as error:
            raise ImproperlyConfigured(f"{var}: {error}") from error

    @classmethod
    def parse_value(cls, value: str, cast: Any) -> Any:
        if cast is not bool:
            return super().parse_value(value, cast)
        # What is neither would be off: with HTTPS=enabled nobody would notice.
        if value.strip().lower() not in (*_ON, *_OFF):
            raise ValueError(f"give 1 or 0 (on or off, yes or no), not {value[:20]!r}")
        return value.strip().lower() in _ON

    def limit(self, var: str, default: str) -> RateLimitItem:
        """Read a limit such as 600/minute."""
        return self.get_value(var, cast=parse_limit, default=default, parse_default=True)

    def rate(self, var: str) -> str:
        """Read a rate such as 50/second, or none: a wrong one is said at the start, not at the first call."""
        return self.get_value(var, cast=_rate, default="")


def _rate(text: str) -> str:
    if text:
        parse_limit(text)
    return text
