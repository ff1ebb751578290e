"""Declaring the topology on a broker that has a queue of the same name and another kind."""

import re

import pytest
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import override_settings
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


def test_a_broker_that_does_not_know_us_is_named_without_the_password(broker):
    stranger = override_settings(BROKER_URL=re.sub(r"//[^@]*@", "//nobody:secret@", settings.BROKER_URL))

    with stranger, pytest.raises(CommandError, match=r"The broker amqp://nobody:\*\*@.* turns us away") as refused:
        call_command("declare_topology")

    assert "secret" not in str(refused.value)
