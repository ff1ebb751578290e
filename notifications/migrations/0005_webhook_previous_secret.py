"""An endpoint's secret before the newest one, and until when it still signs."""

from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    dependencies = [("notifications", "0004_sweep_position")]

    operations = [
        migrations.AddField(
            model_name="webhookendpoint",
            name="previous_secret",
            field=models.CharField(blank=True, db_default="", default="", max_length=100),
        ),
        migrations.AddField(
            model_name="webhookendpoint",
            name="previous_until",
            field=models.DateTimeField(null=True, blank=True, help_text="Until then both secrets sign."),
        ),
        migrations.AddConstraint(
            model_name="webhookendpoint",
            constraint=models.CheckConstraint(
                condition=Q(previous_secret="", previous_until=None)
                | (~Q(previous_secret="") & Q(previous_until__isnull=False)),
                name="webhookendpoint_previous_secret",
            ),
        ),
    ]
