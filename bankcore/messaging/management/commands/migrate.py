"""Django's migrate, without the limit on how long a statement may run."""

from typing import Any

from django.core.management.commands import migrate
from django.db import connections


class Command(migrate.Command):
    """A migration takes as long as the tables are large, and half of it is no release.

    It still gives up on a lock (DATABASE_LOCK_TIMEOUT_MS), as others wait behind who waits for one.
    """

    def handle(self, *args: Any, **options: Any) -> None:
        connection = connections[options["database"]]
        with connection.cursor() as cursor:
            cursor.execute("SET statement_timeout = 0")
        try:
            super().handle(*args, **options)
        finally:
            if connection.is_usable():
                with connection.cursor() as cursor:
                    cursor.execute("RESET statement_timeout")
