"""Say by ranges of ids what is owed, so that marking an event as published touches no index of the events.

PostgreSQL writes the new version of a row without touching any index (HOT) only if no index, partial indexes' conditions
included, mentions a changed column, and if there is room on the page. So the pages are filled by half from here on, and
the partial indexes go with the next migration.

The triggers come first and keep writers out until the end of this transaction, so that what is owed now is either in the
lots that are filled in here or gets one from a trigger. Old writers and old relays go on: the triggers work for them as
well, and a lot whose events an old relay has published is removed by the next new one.
"""

from django.db import migrations, models

FOLLOW = """
-- One lot for all that a statement writes; for what it puts off, one for each moment.
CREATE FUNCTION owe_events() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO messaging_lot (first_event, last_event, due_at)
    SELECT min(id), max(id), due_at FROM fresh WHERE published_at IS NULL GROUP BY due_at;
    RETURN NULL;
END $$;

CREATE FUNCTION owe_event_again() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO messaging_lot (first_event, last_event, due_at) VALUES (NEW.id, NEW.id, NEW.due_at);
    RETURN NULL;
END $$;

CREATE TRIGGER event_is_owed AFTER INSERT ON messaging_event
    REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION owe_events();
CREATE TRIGGER event_is_owed_again AFTER UPDATE OF published_at, due_at ON messaging_event FOR EACH ROW
    WHEN (NEW.published_at IS NULL AND (OLD.published_at IS NOT NULL OR OLD.due_at <> NEW.due_at))
    EXECUTE FUNCTION owe_event_again();

INSERT INTO messaging_lot (first_event, last_event, due_at)
SELECT lower(owed.ids), upper(owed.ids) - 1, owed.due_at
  FROM (SELECT unnest(range_agg(int8range(id, id + 1))) AS ids, max(due_at) AS due_at
          FROM messaging_event WHERE published_at IS NULL AND due_at <= created_at) AS owed
UNION ALL
SELECT id, id, due_at FROM messaging_event WHERE published_at IS NULL AND due_at > created_at;

-- Dead rows are cleaned up on their pages by whoever comes by; indexes hold none of them.
ALTER TABLE messaging_event SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1);
-- Rows come and go all the time: clean up by number, not by share of a table that is empty when all is well.
ALTER TABLE messaging_lot SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 10000);

-- What is owed to the broker, due or not; as cheap as what is owed is little.
CREATE VIEW messaging_owed AS
SELECT e.*
  FROM (SELECT unnest(range_agg(int8range(first_event, last_event + 1))) AS ids FROM messaging_lot) AS lot
 CROSS JOIN LATERAL (SELECT * FROM messaging_event
                      WHERE id >= lower(lot.ids) AND id < upper(lot.ids) AND published_at IS NULL ORDER BY id) AS e;
"""

UNDO = """
DROP VIEW messaging_owed;
ALTER TABLE messaging_event SET (autovacuum_vacuum_scale_factor = 0.02);
ALTER TABLE messaging_event RESET (fillfactor);
DROP TRIGGER event_is_owed_again ON messaging_event;
DROP TRIGGER event_is_owed ON messaging_event;
DROP FUNCTION owe_event_again();
DROP FUNCTION owe_events();
"""


class Migration(migrations.Migration):
    dependencies = [("messaging", "0007_seals")]
    operations = [
        migrations.CreateModel(
            name="Lot",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("first_event", models.BigIntegerField()),
                ("last_event", models.BigIntegerField()),
                ("due_at", models.DateTimeField()),
            ],
            options={
                "ordering": ["id"],
                "indexes": [models.Index(fields=["due_at"], name="lot_due")],
            },
        ),
        migrations.RunSQL(FOLLOW, UNDO),
    ]
