"""Let ANALYZE look at a fifth of the sample: 6,000 journal lines instead of 30,000 (messaging's migration 0010 says why)."""

from django.db import migrations

COLUMNS = ("id", "entry_id", "account_id", "number", "side", "amount_minor", "balance_after_minor")


def sample(size: int) -> str:
    """-1 is what the server's default_statistics_target says."""
    columns = ", ".join(f"ALTER COLUMN {column} SET STATISTICS {size}" for column in COLUMNS)
    return f"ALTER TABLE accounts_journalline {columns}"


class Migration(migrations.Migration):
    dependencies = [("accounts", "0004_cheaper_posting")]
    operations = [migrations.RunSQL(sample(20), sample(-1))]
