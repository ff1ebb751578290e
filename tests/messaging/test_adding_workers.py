"""Another worker of a role speeds it up: it works while the first one does. (How one takes over: test_standby.py.)"""

import json
import threading
import time

import pytest

from bankcore.messaging.publisher import Publisher, TaskMessage
from bankcore.topology import ROUTES
from tests.messaging.broker_view import eventually
from tests.outside import as_json, http_server
from transfers.models import Transfer

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("forget_breakers")]
CALL_SECONDS = 0.1


class SlowProvider:
    """Approves everything after a moment, and counts the most calls that were open at a time."""

    def __init__(self):
        self.open = self.most = 0
        self.lock = threading.Lock()

    def answer(self, body):
        with self.lock:
            self.open += 1
            self.most = max(self.most, self.open)
        time.sleep(CALL_SECONDS)
        with self.lock:
            self.open -= 1
        return as_json({"verdicts": [{"id": t["id"], "verdict": "approve"} for t in json.loads(body)["transfers"]]})


def test_another_worker_works_while_the_first_one_does(broker, accounts, make_transfer, settings, start):
    *payers, payee = accounts(*[10_000] * 24, 0)
    queues = {a.pk: settings.TOPOLOGY.queue_of(ROUTES["transfer.accepted"], str(a.pk)) for a in payers}
    provider, publisher = SlowProvider(), Publisher(settings.BROKER_URL, "bank")

    def all_are_screened():
        """A message for every payer, spread over the partitions; and none was held for a person."""
        for payer in payers:
            transfer = make_transfer(payer, payee, 1, "accepted")
            message = TaskMessage(queues[payer.pk], "transfers.check_risk", [str(transfer.pk)])
            assert publisher.publish([message]) == [message]
        return eventually(lambda: not Transfer.objects.exclude(status="approved").exists())

    with http_server(provider.answer) as server:
        outside = {"RISK_PROVIDER_URL": server.url, "RISK_PROVIDER_TIMEOUT_SECONDS": "60"}
        start("worker", "risk", "--index", "0", "--of", "2", **outside)
        assert all_are_screened()
        assert provider.most == 1

        start("worker", "risk", "--index", "1", "--of", "2", **outside)
        assert eventually(lambda: all_are_screened() and provider.most == 2)
    publisher.close()
