"""Make events append-only in the database, and let writers wake a sleeping relay.

What an event says never changes and no event goes away. Only the delivery columns (due_at, attempt, published_at) may
be written, so the update trigger names the other columns and costs nothing when the relay marks a batch.
"""

from django.db import migrations

APPEND_ONLY = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on % is refused: rows of this table are never changed or removed', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER event_is_append_only
    BEFORE UPDATE OF id, type, partition_key, subject, data, request_id, actor, created_at ON messaging_event
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER event_stays BEFORE DELETE OR TRUNCATE ON messaging_event
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""

# NOTIFY serialises the commits of all who use it. A relay that is awake needs no call, so writers look first: while
# the relay sleeps it holds advisory lock 7205 alone. Writers share the lock until they commit, so a relay cannot fall
# asleep between a writer's look and its commit.
WAKE = """
CREATE FUNCTION wake_relay() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock_shared(7205) THEN
        PERFORM pg_notify('bankcore_outbox', '');
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER event_wakes_relay AFTER INSERT OR UPDATE OF due_at ON messaging_event
    FOR EACH STATEMENT EXECUTE FUNCTION wake_relay();

ALTER TABLE messaging_event SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
"""

UNDO = """
DROP TRIGGER event_wakes_relay ON messaging_event;
DROP FUNCTION wake_relay();
DROP TRIGGER event_stays ON messaging_event;
DROP TRIGGER event_is_append_only ON messaging_event;
DROP FUNCTION refuse_change();
ALTER TABLE messaging_event RESET (autovacuum_vacuum_scale_factor, autovacuum_analyze_scale_factor);
"""


class Migration(migrations.Migration):
    dependencies = [("messaging", "0001_initial")]
    operations = [migrations.RunSQL(APPEND_ONLY + WAKE, UNDO)]
