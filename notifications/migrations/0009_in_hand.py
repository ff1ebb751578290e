"""Count the webhook deliveries that workers have in hand, without reading those that wait (notifications/crowds.py)."""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    # Writers go on while it is built.
    atomic = False
    dependencies = [("notifications", "0008_help_texts")]

    operations = [
        # It waits for transactions that began before it, a proof of the books of minutes among them, and nobody for it.
        migrations.RunSQL("SET lock_timeout = 0", "RESET lock_timeout"),
        AddIndexConcurrently(
            model_name="webhookdelivery",
            index=models.Index(
                fields=["endpoint"],
                condition=Q(state="pending", claimed_until__isnull=False),
                name="webhookdelivery_in_hand",
            ),
        ),
        migrations.RunSQL("RESET lock_timeout", "SET lock_timeout = 0"),
    ]
