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
        # It waits for transactions that began before it, a proof of the books of minutes among them, and nobody for it.
        migrations.RunSQL("SET lock_timeout = 0", "RESET lock_timeout"),
        RemoveIndexConcurrently("event", "event_owed"),
        RemoveIndexConcurrently("event", "event_put_off"),
        migrations.RunSQL("RESET lock_timeout", "SET lock_timeout = 0"),
    ]
