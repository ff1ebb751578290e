"""Keep which breakers staff holds open or closed, so that Redis may forget it."""

import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("messaging", "0003_audit"),
    ]

    operations = [
        migrations.CreateModel(
            name="BreakerSwitch",
            fields=[
                ("name", models.CharField(max_length=100, primary_key=True, serialize=False)),
                ("mode", models.CharField(choices=[("open", "held open"), ("closed", "held closed")], max_length=6)),
                ("reason", models.CharField(max_length=500)),
                ("set_by", models.CharField(max_length=150)),
                ("set_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={"verbose_name": "breaker", "ordering": ["name"]},
        ),
    ]
