"""The blocks that chain append-only tables by hashes, and how far each chain has come. Blocks are append-only too."""

import django.contrib.postgres.fields
from django.db import migrations, models

APPEND_ONLY = """
CREATE TRIGGER seal_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON messaging_seal
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""

UNDO = "DROP TRIGGER seal_is_append_only ON messaging_seal;"


class Migration(migrations.Migration):
    dependencies = [
        ("messaging", "0006_outbox_in_two_indexes"),
    ]

    operations = [
        migrations.CreateModel(
            name="SealMark",
            fields=[
                ("chain", models.CharField(max_length=64, primary_key=True, serialize=False)),
                ("number", models.BigIntegerField(db_default=0, default=0)),
                ("head", models.BinaryField(max_length=32)),
                ("settled_id", models.BigIntegerField(db_default=0, default=0)),
                ("settled_at", models.DateTimeField(null=True)),
                ("sampled_id", models.BigIntegerField(db_default=0, default=0)),
                ("sampled_at", models.DateTimeField(null=True)),
                (
                    "holders",
                    django.contrib.postgres.fields.ArrayField(base_field=models.TextField(), default=list, size=None),
                ),
                (
                    "sealed_through",
                    models.DateTimeField(help_text="Every row that was committed by then is in a block.", null=True),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Seal",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("chain", models.CharField(help_text="The table.", max_length=64)),
                ("number", models.BigIntegerField(help_text="Counts the chain's blocks from 1 without a gap.")),
                (
                    "form",
                    models.SmallIntegerField(help_text="Which of the chain's byte forms the rows were hashed in."),
                ),
                ("after_id", models.BigIntegerField()),
                ("last_id", models.BigIntegerField()),
                ("row_count", models.IntegerField()),
                (
                    "digest",
                    models.BinaryField(help_text="SHA-256 over the hashes of the rows, in id order.", max_length=32),
                ),
                ("leaves", models.BinaryField()),
                (
                    "head",
                    models.BinaryField(help_text="SHA-256 over this block and the head before it.", max_length=32),
                ),
                ("sealed_at", models.DateTimeField()),
            ],
            options={
                "ordering": ["-id"],
                "constraints": [models.UniqueConstraint(fields=("chain", "number"), name="seal_chain_number")],
            },
        ),
        migrations.RunSQL(APPEND_ONLY, UNDO),
    ]
