"""Look for what the broker lost only among what may have been lost: up to an id that the caller names.

A worker that has missed no message since some moment knows that what was accepted since is not lost
(bankcore/messaging/stretch.py). Without that bound every open transfer of the batch's accounts was visited for each
batch, and the more waited the longer a batch took. Workers of the release before name no bound, and get what they got:
their function stays as it is until a later release. To drop it for one with a default would fail whoever calls it in
that moment ("cache lookup failed for function"), and what fails is tried again later, out of its turn.
"""

from importlib import import_module

from django.db import migrations

BY_EVENTS = import_module("transfers.migrations.0008_in_turn_by_events").BY_EVENTS
_HEAD = "CREATE OR REPLACE FUNCTION transfers_lost_before(ids uuid[], its_status text, at_most int)"
_EARLIER = "b.transfer_id < last.transfer_id"
UP_TO = BY_EVENTS.replace(
    _HEAD,
    "CREATE FUNCTION transfers_lost_before(ids uuid[], its_status text, at_most int, up_to uuid)",
).replace(_EARLIER, f"{_EARLIER} AND b.transfer_id <= up_to")


class Migration(migrations.Migration):
    dependencies = [("transfers", "0008_in_turn_by_events")]
    operations = [migrations.RunSQL(UP_TO, ["DROP FUNCTION transfers_lost_before(uuid[], text, int, uuid)", BY_EVENTS])]
