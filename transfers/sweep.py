"""Find transfers that sit in a working state although nothing carries them on, and make their event due again."""

import logging

from django.conf import settings

from bankcore import metrics
from bankcore.database import execute

log = logging.getLogger(__name__)

SWEPT_MAX = 5000

# The event that asks for a stage's work is named after the state it leaves the transfer in; a scheduled transfer's is
# the one of its acceptance. Events that the relay still owes are left alone, and so are those that a
# newer one of their kind (a replay, perhaps for later) has taken the place of.
_SWEEP = """
WITH stuck AS (
    SELECT t.id, CASE o.status WHEN 'approved' THEN 'transfer.approved' ELSE 'transfer.accepted' END AS type
      FROM transfers_opentransfer AS o JOIN transfers_transfer AS t ON t.id = o.transfer_id
     WHERE (o.status IN ('accepted', 'approved')
            OR o.status = 'scheduled' AND o.since <= statement_timestamp())
       AND t.updated_at < statement_timestamp() - %s * interval '1 second'
     ORDER BY o.transfer_id LIMIT %s
)
UPDATE messaging_event AS e
   SET published_at = NULL, due_at = statement_timestamp()
  FROM stuck
 WHERE e.subject = stuck.id::text AND e.type = stuck.type
   AND e.published_at < statement_timestamp() - %s * interval '1 second'
   AND NOT EXISTS (SELECT FROM messaging_event AS newer
                    WHERE newer.subject = e.subject AND newer.type = e.type AND newer.id > e.id)
"""


def sweep_stuck() -> int:
    """Make due again what has waited longer than STUCK_SECONDS since it was handed to the broker; return how many.

    Harmless when wrong: a stage finds a transfer that was handled meanwhile in another state and leaves it alone. At
    most SWEPT_MAX at a time, the oldest first, so that a long backlog is not sent twice in one go.
    """
    swept = execute(_SWEEP, (settings.STUCK_SECONDS, SWEPT_MAX, settings.STUCK_SECONDS))
    if swept:
        metrics.retries.labels("sweep", "stuck").inc(swept)
        log.warning("%s transfers waited longer than %s s; their events are due again", swept, settings.STUCK_SECONDS)
    return swept
