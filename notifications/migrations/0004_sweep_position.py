"""Where the sweep for lost notifications has got to. It begins with what happens from now on."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("notifications", "0003_webhook_order"),
        ("messaging", "0002_append_only_and_wake"),
    ]

    operations = [
        migrations.CreateModel(
            name="SweepPosition",
            fields=[
                ("id", models.SmallIntegerField(primary_key=True, serialize=False)),
                ("event", models.BigIntegerField()),
            ],
            options={
                "constraints": [models.CheckConstraint(condition=models.Q(("id", 1)), name="sweepposition_one_row")],
            },
        ),
        migrations.RunSQL(
            "INSERT INTO notifications_sweepposition (id, event)"
            " SELECT 1, coalesce((SELECT max(id) FROM messaging_event), 0)",
            reverse_sql=migrations.RunSQL.noop,
        ),
    ]
