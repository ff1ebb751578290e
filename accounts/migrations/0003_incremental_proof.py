"""What a proof of the books has to say when it goes on where the last one ended. Defaults: older workers write too."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0002_ledger"),
    ]

    operations = [
        migrations.AddField(
            model_name="proof",
            name="kind",
            field=models.CharField(
                choices=[("full", "Full"), ("increment", "Increment")], db_default="full", default="full", max_length=9
            ),
        ),
        migrations.AddField(
            model_name="proof",
            name="named",
            field=models.JSONField(
                db_default=[], default=list, help_text="The first hundred of each check: check, subject, detail."
            ),
        ),
        migrations.AddField(
            model_name="proof",
            name="position",
            field=models.JSONField(db_default={}, default=dict, help_text="Where the next increment goes on."),
        ),
        migrations.AddField(
            model_name="proof",
            name="seconds",
            field=models.FloatField(db_default=0, default=0, help_text="How long it took."),
        ),
        migrations.AddIndex(
            model_name="proof",
            index=models.Index(condition=models.Q(("kind", "full")), fields=["id"], name="proof_full"),
        ),
    ]
