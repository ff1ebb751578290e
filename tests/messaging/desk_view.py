"""What the tests of the dead-letter desk look at, and how they let things happen at the same moment."""

import threading
from datetime import UTC, datetime
from uuid import UUID

from django.db import connection

from bankcore.errors import BankError
from bankcore.messaging.models import Event
from transfers.models import Transfer
from transfers.posting import post_transfers
from transfers.risk.screening import check_risk

CHECK, POST = "transfers.check_risk", "transfers.post_transfers"


def state(letter):
    letter.refresh_from_db()
    transfer = Transfer.objects.get(pk=letter.subject)
    return letter.state, transfer.status, transfer.status_reason


def owed():
    return list(Event.objects.filter(published_at=None).order_by("id").values_list("type", "subject", "attempt"))


def run_pipeline():
    """Do what the owed messages ask for."""
    for stage, type_ in ((check_risk, "transfer.accepted"), (post_transfers, "transfer.approved")):
        events = Event.objects.filter(published_at=None, due_at__lte=datetime.now(UTC), type=type_).order_by("id")
        stage([UUID(subject) for subject in events.values_list("subject", flat=True)])


def together(*calls):
    """Start the calls at the same moment in threads; return what each came to."""
    start, answers = threading.Barrier(len(calls)), []

    def run(call):
        start.wait()
        try:
            answers.append(call().outcome)
        except BankError as error:
            answers.append(error.code)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(answers)
