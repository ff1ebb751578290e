"""Hold transfers to what was asked for and to the table of allowed transitions (transfers/states.py), in the database.

The conditions stand in the triggers' WHEN, so an allowed change calls no function.
"""

from django.db import migrations

GUARD = """
CREATE FUNCTION refuse_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'transfer % cannot go from % to %', OLD.id, OLD.status, NEW.status
        USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_transition';
END $$;

CREATE TRIGGER transfer_transition BEFORE UPDATE OF status ON transfers_transfer FOR EACH ROW
    WHEN (OLD.status || '>' || NEW.status NOT IN (
        'scheduled>in_review', 'scheduled>approved', 'scheduled>rejected', 'scheduled>cancelled', 'scheduled>parked',
        'accepted>in_review', 'accepted>approved', 'accepted>rejected', 'accepted>cancelled', 'accepted>parked',
        'in_review>approved', 'in_review>rejected', 'in_review>cancelled',
        'approved>posted', 'approved>rejected', 'approved>cancelled', 'approved>parked',
        'parked>accepted', 'parked>approved', 'parked>rejected', 'parked>cancelled'))
    EXECUTE FUNCTION refuse_transition();

CREATE TRIGGER transfer_is_as_asked BEFORE UPDATE OF id, client, initiator_id, idempotency_key, fingerprint,
    debit_account_id, credit_account_id, amount_minor, currency, reference, external_id, metadata, batch_id,
    reversal_of_id, execute_on, expires_at, request_id, created_at ON transfers_transfer
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER transfer_stays BEFORE DELETE OR TRUNCATE ON transfers_transfer
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

ALTER TABLE transfers_transfer SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
"""

UNDO = """
ALTER TABLE transfers_transfer RESET (autovacuum_vacuum_scale_factor, autovacuum_analyze_scale_factor);
DROP TRIGGER transfer_stays ON transfers_transfer;
DROP TRIGGER transfer_is_as_asked ON transfers_transfer;
DROP TRIGGER transfer_transition ON transfers_transfer;
DROP FUNCTION refuse_transition();
"""


class Migration(migrations.Migration):
    dependencies = [("transfers", "0001_initial"), ("messaging", "0002_append_only_and_wake")]
    operations = [migrations.RunSQL(GUARD, UNDO)]
