"""Remove the partial indexes on what is owed, now that lots say it (0008): they kept marks from being HOT.

An old relay that is still active reads without them by the primary key, correctly, and the more slowly the longer the
history: start the new relays right after this.
"""

from django.contrib.postgres.operations import RemoveIndexConcurrently
from django.db import migrations


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("messaging", "0008_lots")]
    operations = [
        RemoveIndexConcurrently("event", "event_owed"),
        RemoveIndexConcurrently("event", "event_put_off"),
    ]
