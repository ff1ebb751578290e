"""Keep who did what by hand; like events, what was written is never changed or removed."""

import django.db.models.functions.datetime
from django.db import migrations, models

APPEND_ONLY = """
CREATE TRIGGER auditentry_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON messaging_auditentry
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""
UNDO = "DROP TRIGGER auditentry_is_append_only ON messaging_auditentry;"


class Migration(migrations.Migration):
    dependencies = [
        ("messaging", "0002_append_only_and_wake"),
    ]

    operations = [
        migrations.CreateModel(
            name="AuditEntry",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                (
                    "actor",
                    models.CharField(help_text="A user's name, an API client, or shell:<login>.", max_length=150),
                ),
                ("action", models.CharField(help_text="What was done, such as account.freeze.", max_length=64)),
                ("subject", models.CharField(help_text="The id of what it was done to.", max_length=150)),
                ("reason", models.CharField(blank=True, db_default="", default="", max_length=500)),
                ("details", models.JSONField(db_default={}, default=dict)),
                ("request_id", models.CharField(blank=True, db_default="", default="", max_length=64)),
            ],
            options={
                "verbose_name_plural": "audit entries",
                "ordering": ["-id"],
                "indexes": [
                    models.Index(fields=["subject", "id"], name="auditentry_subject"),
                    models.Index(fields=["actor", "id"], name="auditentry_actor"),
                    models.Index(fields=["action", "id"], name="auditentry_action"),
                ],
            },
        ),
        migrations.RunSQL(APPEND_ONLY, UNDO),
    ]
