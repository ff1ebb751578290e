"""One column with a larger sample makes ANALYZE read that many rows of the whole table (decision 0024)."""

import pytest
from django.db import connection

pytestmark = pytest.mark.django_db

LARGE = ("messaging_event", "transfers_transfer", "accounts_journalline", "notifications_notification")


@pytest.mark.parametrize("table", LARGE)
def test_every_column_of_a_large_table_has_the_small_sample(table: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
            " AND attstattarget IS DISTINCT FROM 20",
            [table],
        )
        assert cursor.fetchall() == []
