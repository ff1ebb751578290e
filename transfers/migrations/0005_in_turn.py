"""Find what the broker lost in front of a batch by ranges of an index, and only so much of it at a time."""

from django.db import migrations, models

# PL/pgSQL, because it keeps its plan; and that plan goes by the index, because the table is empty at one moment, when
# reading all of it looks cheap, and full at the next. NOT IN looks the batch's own ids up in a hash table.
FUNCTION = """
CREATE FUNCTION transfers_lost_before(ids uuid[], its_status text, at_most int) RETURNS SETOF uuid
LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    RETURN QUERY
    SELECT before.transfer_id
      FROM (SELECT DISTINCT ON (o.debit_account_id) o.debit_account_id, o.transfer_id
              FROM unnest(ids) AS given(id) JOIN transfers_opentransfer AS o ON o.transfer_id = given.id
             ORDER BY o.debit_account_id, o.transfer_id DESC) AS last
     CROSS JOIN LATERAL (
            SELECT b.transfer_id FROM transfers_opentransfer AS b
             WHERE b.debit_account_id = last.debit_account_id AND b.transfer_id < last.transfer_id
               AND b.status = its_status AND b.transfer_id NOT IN (SELECT unnest(ids))
               AND (SELECT bool_and(e.attempt = 0 AND e.due_at <= statement_timestamp()) FROM messaging_event AS e
                     WHERE e.subject = b.transfer_id::text AND e.type = 'transfer.' || its_status)
             ORDER BY b.transfer_id LIMIT at_most) AS before
     ORDER BY 1 LIMIT at_most;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("transfers", "0004_review_void"), ("messaging", "0001_initial")]
    operations = [
        migrations.AddIndex(
            model_name="opentransfer",
            index=models.Index(fields=["debit_account", "transfer"], name="opentransfer_turn"),
        ),
        migrations.RemoveIndex(model_name="opentransfer", name="opentransfer_debit"),
        migrations.RunSQL(FUNCTION, "DROP FUNCTION transfers_lost_before(uuid[], text, int)"),
    ]
