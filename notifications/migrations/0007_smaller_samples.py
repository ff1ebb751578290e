"""Let ANALYZE look at a fifth of the sample: 6,000 notifications instead of 30,000 (messaging's migration 0010 says why)."""

from django.db import migrations

COLUMNS = (
    "id", "event", "recipient", "channel", "address", "transfer", "title", "text", "state", "attempts", "failure",
    "created_at", "delivered_at",
)  # fmt: skip


def sample(size: int) -> str:
    """-1 is what the server's default_statistics_target says."""
    columns = ", ".join(f"ALTER COLUMN {column} SET STATISTICS {size}" for column in COLUMNS)
    return f"ALTER TABLE notifications_notification {columns}"


class Migration(migrations.Migration):
    dependencies = [("notifications", "0006_pending_deliveries")]
    operations = [migrations.RunSQL(sample(20), sample(-1))]
