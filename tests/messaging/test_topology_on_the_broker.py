"""Declaring the topology on a broker that has a queue of the same name and another kind."""

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from kombu import Exchange, Queue


def test_a_queue_with_other_arguments_is_named_with_what_to_do(broker):
    broker.delete("risk-0")
    exchange = Exchange("bank", type="topic", no_declare=True)
    Queue("risk-0", exchange, routing_key="risk-0", queue_arguments={}, channel=broker.channel).declare()
    try:
        with pytest.raises(CommandError) as refused:
            call_command("declare_topology")
    finally:
        broker.delete("risk-0")

    assert "The queue risk-0 exists with other arguments" in str(refused.value)
    assert "delete the queue, declare the topology again" in str(refused.value)
