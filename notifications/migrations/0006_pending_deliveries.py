"""Find the oldest pending webhook delivery without reading the others: for its metric, and for the sweep."""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    # Writers go on while it is built.
    atomic = False
    dependencies = [("notifications", "0005_webhook_previous_secret")]

    operations = [
        # It waits for transactions that began before it, a proof of the books of minutes among them, and nobody for it.
        migrations.RunSQL("SET lock_timeout = 0", "RESET lock_timeout"),
        AddIndexConcurrently(
            model_name="webhookdelivery",
            index=models.Index(fields=["id"], condition=Q(state="pending"), name="webhookdelivery_pending"),
        ),
        migrations.RunSQL("RESET lock_timeout", "SET lock_timeout = 0"),
    ]
