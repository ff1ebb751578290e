"""Close the reviews of transfers that were cancelled meanwhile: until now they stayed undecided for ever."""

from django.db import migrations, models

CLOSE = """
UPDATE transfers_review AS r
   SET decision = 'void', decided_at = t.updated_at, note = 'The transfer was cancelled.'
  FROM transfers_transfer t
 WHERE t.id = r.transfer_id AND r.decision = '' AND t.status = 'cancelled'
"""


class Migration(migrations.Migration):
    dependencies = [("transfers", "0003_open_transfers")]
    operations = [
        migrations.AlterField(
            model_name="review",
            name="decision",
            field=models.CharField(
                blank=True,
                choices=[
                    ("approve", "Approve"),
                    ("decline", "Decline"),
                    ("void", "Void: the transfer was cancelled"),
                ],
                db_default="",
                default="",
                max_length=8,
            ),
        ),
        migrations.RunSQL(CLOSE, migrations.RunSQL.noop),
    ]
