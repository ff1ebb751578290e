"""Find open transfers by the right index, whatever the statistics say of a table that is empty at one moment.

Vacuum or ANALYZE in such a moment notes that there are no rows. Of an empty table any plan is as cheap as any other, and
PL/pgSQL keeps the one it made: the index of accounts was read from one end to the other for each transfer of a batch, and
a batch among thousands of open transfers took several times as long. So there is no choice any more. The condition of the
index always holds, but only a question that names a debit account implies it; and neither an array nor what stands behind
OFFSET 0 can change places with the table.
"""

import re
from importlib import import_module

from django.db import migrations, models

FOLLOW = """
CREATE OR REPLACE FUNCTION follow_transfers() RETURNS trigger LANGUAGE plpgsql
    SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    its_status text;
BEGIN
    FOR its_status IN SELECT DISTINCT status FROM moved LOOP
        IF its_status IN ('posted', 'rejected', 'cancelled') THEN
            DELETE FROM transfers_opentransfer
             WHERE transfer_id = ANY (ARRAY(SELECT id FROM moved WHERE status = its_status));
        ELSE
            UPDATE transfers_opentransfer SET status = its_status
             WHERE transfer_id = ANY (ARRAY(SELECT id FROM moved WHERE status = its_status)) AND status <> its_status;
        END IF;
    END LOOP;
    RETURN NULL;
END $$;
"""

_in_turn = import_module("transfers.migrations.0005_in_turn")
_JOIN = "FROM unnest(ids) AS given(id) JOIN transfers_opentransfer AS o ON o.transfer_id = given.id"
_LOOK_UP = """FROM unnest(ids) AS given(id)
             CROSS JOIN LATERAL (SELECT * FROM transfers_opentransfer WHERE transfer_id = given.id OFFSET 0) AS o"""
LOST_BEFORE = _in_turn.FUNCTION.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1)

_open_transfers = import_module("transfers.migrations.0003_open_transfers")
_followed = re.search(r"CREATE FUNCTION follow_transfers.*?END \$\$;", _open_transfers.FOLLOW, re.DOTALL)
FOLLOW_BEFORE = _followed[0].replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1) if _followed else ""


class Migration(migrations.Migration):
    dependencies = [("transfers", "0005_in_turn")]
    operations = [
        migrations.RemoveIndex(model_name="opentransfer", name="opentransfer_turn"),
        migrations.AddIndex(
            model_name="opentransfer",
            index=models.Index(
                condition=models.Q(("debit_account__isnull", False)),
                fields=["debit_account", "transfer"],
                name="opentransfer_turn",
            ),
        ),
        migrations.RunSQL(FOLLOW, FOLLOW_BEFORE),
        migrations.RunSQL(LOST_BEFORE.replace(_JOIN, _LOOK_UP), LOST_BEFORE),
    ]
