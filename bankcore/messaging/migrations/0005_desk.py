"""Let the desk resolve a dead letter once, with a second person where there is much money, and lose nothing of it.

What came stays as it came, a resolved letter stays resolved, and no letter goes away: there is no cap and no expiry.
"""

import django.db.models.deletion
import django.db.models.functions.datetime
from django.conf import settings
from django.db import migrations, models

KEPT = """
CREATE TRIGGER deadletter_stays BEFORE DELETE OR TRUNCATE ON messaging_deadletter
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER deadletter_is_as_it_came
    BEFORE UPDATE OF id, task, queue, subject, cause, detail, attempts, headers, body, body_digest, created_at
    ON messaging_deadletter FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER deadletter_is_resolved_once BEFORE UPDATE ON messaging_deadletter
    FOR EACH ROW WHEN (OLD.state <> 'open') EXECUTE FUNCTION refuse_change();
CREATE TRIGGER deskrequest_stays BEFORE DELETE OR TRUNCATE ON messaging_deskrequest
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER deskrequest_is_as_asked
    BEFORE UPDATE OF id, letter_id, action, reason, requested_by_id, requested_at ON messaging_deskrequest
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER deskrequest_is_decided_once BEFORE UPDATE ON messaging_deskrequest
    FOR EACH ROW WHEN (OLD.decision <> '') EXECUTE FUNCTION refuse_change();
"""
UNDO = """
DROP TRIGGER deskrequest_is_decided_once ON messaging_deskrequest;
DROP TRIGGER deskrequest_is_as_asked ON messaging_deskrequest;
DROP TRIGGER deskrequest_stays ON messaging_deskrequest;
DROP TRIGGER deadletter_is_resolved_once ON messaging_deadletter;
DROP TRIGGER deadletter_is_as_it_came ON messaging_deadletter;
DROP TRIGGER deadletter_stays ON messaging_deadletter;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("messaging", "0004_breaker_switch"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="DeskRequest",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("action", models.CharField(choices=[("replay", "Replay"), ("discard", "Discard")], max_length=8)),
                ("reason", models.CharField(blank=True, db_default="", default="", max_length=500)),
                ("requested_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                (
                    "decision",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("approved", "Approved"),
                            ("withdrawn", "Withdrawn"),
                            ("void", "Void: the letter was resolved another way"),
                        ],
                        db_default="",
                        default="",
                        max_length=9,
                    ),
                ),
                ("decided_at", models.DateTimeField(blank=True, null=True)),
                (
                    "decided_by",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "letter",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="requests", to="messaging.deadletter"
                    ),
                ),
                (
                    "requested_by",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
                    ),
                ),
            ],
            options={
                "ordering": ["-id"],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("decision", "")), fields=("letter",), name="deskrequest_one_at_a_time"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("decision", "approved"), _negated=True),
                            models.Q(
                                ("decided_by__isnull", False),
                                models.Q(("decided_by", models.F("requested_by")), _negated=True),
                            ),
                            _connector="OR",
                        ),
                        name="deskrequest_second_person",
                    ),
                ],
            },
        ),
        migrations.RunSQL(KEPT, UNDO),
    ]
