"""Two indexes for what the relay owes the broker, so that events of next month cost nothing today.

Built concurrently: writers go on. The old index goes last; an old relay reads without it what it read before.
"""

from django.contrib.postgres.operations import AddIndexConcurrently, RemoveIndexConcurrently
from django.db import migrations, models
from django.db.models import F, Q


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("messaging", "0005_desk")]
    operations = [
        AddIndexConcurrently(
            "event",
            models.Index(fields=["id"], condition=Q(published_at=None, due_at__lte=F("created_at")), name="event_owed"),
        ),
        AddIndexConcurrently(
            "event",
            models.Index(
                fields=["due_at", "id"],
                condition=Q(published_at=None, due_at__gt=F("created_at")),
                name="event_put_off",
            ),
        ),
        RemoveIndexConcurrently("event", "event_outbox"),
    ]
