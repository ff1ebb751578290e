"""Keep what has not ended in a small table of its own, so that a transfer's change of status touches no index.

PostgreSQL writes the new version of a row without touching any index (HOT) only if no index, partial indexes' conditions
included, mentions a changed column, and if there is room on the page. So the partial index on what is waiting goes, the
pages are filled by half, and triggers keep transfers_opentransfer, whatever changes a transfer.
"""

import django.db.models.deletion
from django.db import migrations, models

FOLLOW = """
CREATE FUNCTION open_transfers() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO transfers_opentransfer (transfer_id, status, debit_account_id, amount_minor, since)
    SELECT id, status, debit_account_id, amount_minor,
           greatest(created_at, execute_on::timestamp AT TIME ZONE 'UTC')
      FROM fresh WHERE status NOT IN ('posted', 'rejected', 'cancelled');
    RETURN NULL;
END $$;

-- No transition leads out of an end, so following a change is taking away or changing, and never adding.
CREATE FUNCTION follow_transfers() RETURNS trigger LANGUAGE plpgsql
    SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    DELETE FROM transfers_opentransfer AS o USING moved AS m
     WHERE o.transfer_id = m.id AND m.status IN ('posted', 'rejected', 'cancelled');
    IF EXISTS (SELECT FROM moved WHERE status NOT IN ('posted', 'rejected', 'cancelled')) THEN
        UPDATE transfers_opentransfer AS o SET status = m.status
          FROM moved AS m WHERE o.transfer_id = m.id AND o.status <> m.status;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER transfer_opens AFTER INSERT ON transfers_transfer
    REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION open_transfers();
CREATE TRIGGER transfer_is_followed AFTER UPDATE ON transfers_transfer
    REFERENCING NEW TABLE AS moved FOR EACH STATEMENT EXECUTE FUNCTION follow_transfers();

INSERT INTO transfers_opentransfer (transfer_id, status, debit_account_id, amount_minor, since)
SELECT id, status, debit_account_id, amount_minor, greatest(created_at, execute_on::timestamp AT TIME ZONE 'UTC')
  FROM transfers_transfer WHERE status NOT IN ('posted', 'rejected', 'cancelled');

ALTER TABLE transfers_transfer SET (fillfactor = 50);
-- Rows come and go by the thousand: clean up by number, not by share of a table that is empty when all is well.
ALTER TABLE transfers_opentransfer SET (
    fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 10000);
"""

UNDO = """
ALTER TABLE transfers_transfer RESET (fillfactor);
DROP TRIGGER transfer_is_followed ON transfers_transfer;
DROP TRIGGER transfer_opens ON transfers_transfer;
DROP FUNCTION follow_transfers();
DROP FUNCTION open_transfers();
"""


class Migration(migrations.Migration):
    dependencies = [("transfers", "0002_states")]
    operations = [
        migrations.RemoveIndex(model_name="transfer", name="transfer_waiting"),
        migrations.CreateModel(
            name="OpenTransfer",
            fields=[
                (
                    "transfer",
                    models.OneToOneField(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        primary_key=True,
                        related_name="open",
                        serialize=False,
                        to="transfers.transfer",
                    ),
                ),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("scheduled", "Scheduled"),
                            ("accepted", "Accepted"),
                            ("in_review", "In Review"),
                            ("approved", "Approved"),
                            ("posted", "Posted"),
                            ("rejected", "Rejected"),
                            ("cancelled", "Cancelled"),
                            ("parked", "Parked"),
                        ],
                        max_length=10,
                    ),
                ),
                ("amount_minor", models.BigIntegerField()),
                (
                    "since",
                    models.DateTimeField(
                        help_text="When it was accepted; when it is scheduled, the day that it is for."
                    ),
                ),
                (
                    "debit_account",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="+",
                        to="accounts.account",
                    ),
                ),
            ],
            options={
                "ordering": ["transfer"],
                "indexes": [models.Index(fields=["debit_account"], name="opentransfer_debit")],
            },
        ),
        migrations.RunSQL(FOLLOW, UNDO),
    ]
