"""Who says that the broker is away, and that nobody is believed who cannot know."""

import re
import signal

import pytest

from tests.messaging.broker_view import eventually
from tests.messaging.relay_view import Stepping, record
from tests.messaging.test_relay_faults import is_active, owed
from transfers.backlog import Backlog

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def without_broker(settings):
    """A URL at which there is none."""
    return re.sub(r":\d+/", ":1/", settings.BROKER_URL)


def broker_is_away():
    """What the gate in front of intake is told."""
    return Backlog().read().broker_is_away


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_a_relay_says_it_as_long_as_it_lives(broker, start, without_broker, end):
    relay = start("relay", BROKER_URL=without_broker)
    assert eventually(lambda: is_active(relay))
    assert not broker_is_away()

    record(1)
    assert eventually(broker_is_away)

    relay.send_signal(end)
    assert eventually(lambda: not broker_is_away())
    assert owed() == 1


def test_a_relay_that_reaches_the_broker_takes_it_back(broker, settings, without_broker):
    stepping, reached = Stepping(), settings.BROKER_URL
    record(1)
    settings.BROKER_URL = without_broker
    stepping.step()
    assert broker_is_away()

    settings.BROKER_URL = reached
    stepping.step()

    assert not broker_is_away()
    assert owed() == 0
    stepping.close()


def test_a_connection_that_breaks_is_no_outage(broker):
    """The broker is there, and takes the next one: as when one node of a cluster dies."""
    stepping = Stepping()
    record(1)
    stepping.step()
    stepping.relay.publisher.connection.transport.close_connection(stepping.relay.publisher.connection.connection)
    record(2)

    stepping.step()

    assert not broker_is_away()
    stepping.step()
    assert owed() == 0
    stepping.close()
