"""Tell what was accepted earlier by the numbers of events, which the database gives, and not by ids alone.

Ids begin with the time of the web host that made them. Between hosts whose clocks differ, what was accepted later can
have the smaller id: it was taken for lost as soon as the first one was handled, and overtook it. Ids still say which
transfers are looked at, as that is one range of an index; the event that asks for the stage's work says which of them
came earlier. It is looked up only where there is such a transfer, which in healthy times there is not.
"""

from importlib import import_module

from django.db import migrations

_by_their_key = import_module("transfers.migrations.0006_open_by_their_key")
BY_IDS = _by_their_key.LOST_BEFORE.replace(_by_their_key._JOIN, _by_their_key._LOOK_UP)
_TO_BE_TAKEN = "e.attempt = 0 AND e.due_at <= statement_timestamp()"
# With + 0 there is one way to the greatest: by the subject, and never down the primary key.
_AND_EARLIER = """
                       AND e.id < coalesce((SELECT max(g.id + 0) FROM messaging_event AS g
                                             WHERE g.subject = last.transfer_id::text
                                               AND g.type = 'transfer.' || its_status), e.id + 1)"""
BY_EVENTS = BY_IDS.replace(_TO_BE_TAKEN, _TO_BE_TAKEN + _AND_EARLIER)


class Migration(migrations.Migration):
    dependencies = [("transfers", "0007_smaller_samples"), ("messaging", "0001_initial")]
    operations = [migrations.RunSQL(BY_EVENTS, BY_IDS)]
