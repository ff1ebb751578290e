from collections.abc import Iterator
from typing import Any

import pytest

from tests.messaging.broker_view import Broker


@pytest.fixture
def broker(settings: Any) -> Iterator[Broker]:
    """The real RabbitMQ with the topology declared and every queue empty, before and after."""
    broker = Broker(settings.BROKER_URL, settings.TOPOLOGY)
    broker.fill_from_scratch()
    yield broker
    broker.fill_from_scratch()
    broker.connection.release()
