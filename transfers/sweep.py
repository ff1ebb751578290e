"""Find transfers that sit in a working state although nothing carries them on, and make their event due again."""

import logging
from uuid import UUID

from django.conf import settings

from bankcore import metrics
from bankcore.database import fetch_all

log = logging.getLogger(__name__)

# Looked at with one statement, and made due again in one run: all that a purged queue held is on its way with the next.
LOT = 5_000
SWEPT_MAX = 50_000

# The event that asks for a stage's work is named after the state it leaves the transfer in; a scheduled transfer's is
# the one of its acceptance. Only the newest of its kind counts (a replay, perhaps for later), and what the relay still
# owes or has just handed over is left alone. One look into the indexes for each, whatever the planner believes.
_SWEEP = """
WITH lot AS MATERIALIZED (
    SELECT transfer_id, status FROM transfers_opentransfer
     WHERE transfer_id > %(after)s::uuid
       AND (status IN ('accepted', 'approved') OR status = 'scheduled' AND since <= statement_timestamp())
     ORDER BY transfer_id LIMIT %(most)s
), again AS (
    UPDATE messaging_event AS e
       SET published_at = NULL, due_at = statement_timestamp()
     WHERE e.published_at IS NOT NULL
       AND e.id = ANY(ARRAY(
             SELECT newest.id
               FROM lot
              CROSS JOIN LATERAL (SELECT updated_at FROM transfers_transfer WHERE id = lot.transfer_id OFFSET 0) AS t
              CROSS JOIN LATERAL (
                SELECT id, published_at FROM messaging_event
                 WHERE subject = lot.transfer_id::text
                   AND type = CASE lot.status WHEN 'approved' THEN 'transfer.approved' ELSE 'transfer.accepted' END
                 ORDER BY id DESC LIMIT 1) AS newest
              WHERE t.updated_at < statement_timestamp() - %(seconds)s * interval '1 second'
                AND newest.published_at < statement_timestamp() - %(seconds)s * interval '1 second'))
    RETURNING e.id
)
SELECT (SELECT count(*) FROM again), (SELECT count(*) FROM lot),
       (SELECT transfer_id FROM lot ORDER BY transfer_id DESC LIMIT 1)
"""


def sweep_stuck() -> int:
    """Make due again what has waited longer than STUCK_SECONDS since it was handed to the broker; return how many.

    Harmless when wrong: a stage finds a transfer that was handled meanwhile in another state and leaves it alone. About
    SWEPT_MAX at a time, the oldest first, in lots that are a transaction each.
    """
    swept, after = 0, UUID(int=0)
    while swept < SWEPT_MAX:
        lot = {"after": after, "seconds": float(settings.STUCK_SECONDS), "most": LOT}
        ((again, looked_at, after),) = fetch_all(_SWEEP, lot)
        swept += again
        if looked_at < LOT:
            break
    if swept:
        metrics.retries.labels("sweep", "stuck").inc(swept)
        log.warning("%s transfers waited longer than %s s; their events are due again", swept, settings.STUCK_SECONDS)
    return swept
