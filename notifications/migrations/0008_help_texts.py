"""What a staff page says of a subscription's customer. Nothing changes in the database."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("notifications", "0007_smaller_samples")]

    operations = [
        migrations.AlterField(
            model_name="subscription",
            name="customer",
            field=models.UUIDField(help_text="The customer's id, as the list of customers shows it."),
        ),
    ]
