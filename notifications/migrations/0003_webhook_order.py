"""Keep a lane in the order of its events: dispatch may write their deliveries in another."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("notifications", "0002_webhooks"),
    ]

    operations = [
        migrations.RemoveIndex(model_name="webhookdelivery", name="webhookdelivery_lane"),
        migrations.AddIndex(
            model_name="webhookdelivery",
            index=models.Index(
                condition=models.Q(("state", "pending")),
                fields=["endpoint", "lane", "event"],
                name="webhookdelivery_order",
            ),
        ),
    ]
