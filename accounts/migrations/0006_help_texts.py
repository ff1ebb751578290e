"""What a staff page says of an account's lines. Nothing changes in the database."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("accounts", "0005_smaller_samples")]

    operations = [
        migrations.AlterField(
            model_name="account",
            name="lines",
            field=models.BigIntegerField(
                db_default=0,
                default=0,
                editable=False,
                help_text="How many journal lines the account has, which is the newest one's number.",
            ),
        ),
    ]
