"""Let ANALYZE look at a fifth of the sample: 6,000 transfers instead of 30,000 (messaging's migration 0010 says why)."""

from django.db import migrations

COLUMNS = (
    "id", "client", "initiator_id", "idempotency_key", "fingerprint", "debit_account_id", "credit_account_id",
    "amount_minor", "currency", "reference", "external_id", "metadata", "status", "status_reason", "batch_id",
    "reversal_of_id", "reversed_minor", "execute_on", "expires_at", "request_id", "created_at", "updated_at", "posted_at",
)  # fmt: skip


def sample(size: int) -> str:
    """-1 is what the server's default_statistics_target says."""
    columns = ", ".join(f"ALTER COLUMN {column} SET STATISTICS {size}" for column in COLUMNS)
    return f"ALTER TABLE transfers_transfer {columns}"


class Migration(migrations.Migration):
    dependencies = [("transfers", "0006_open_by_their_key")]
    operations = [migrations.RunSQL(sample(20), sample(-1))]
