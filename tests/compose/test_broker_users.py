"""What each user of the private RabbitMQ may do, tried with its own password."""

import json
import os
from pathlib import Path
from urllib.parse import urlsplit

import amqp
import httpx
import pytest
from amqp.exceptions import AccessRefused

from bankcore.messaging.broker import declare_topology
from bankcore.settings import BROKER_URL
from compose.instance import Instance
from compose.private_rabbitmq import definitions_of, rights_of_roles
from compose.roles import plan
from compose.servers import Servers

FOLDER = Path(os.environ["BANKCORE_STACK"]).parent
SECRETS = json.loads((FOLDER / "secrets.json").read_text())
API = json.loads((FOLDER / "stack.json").read_text())["broker_api_url"]
QUEUE = "dead_letters"

pytestmark = pytest.mark.skipif(not API, reason="the broker is not a private RabbitMQ")


@pytest.fixture
def letter():
    """A message among the dead letters, and how many are there."""
    declare_topology()
    with signed_in("bankcore", "broker") as connection:
        channel = connection.channel()
        channel.queue_purge(QUEUE)
        channel.basic_publish_confirm(amqp.Message("a letter"), exchange="bank.dead", routing_key=QUEUE)
        yield lambda: channel.queue_declare(QUEUE, passive=True).message_count
        channel.queue_purge(QUEUE)


def signed_in(user, secret):
    broker = urlsplit(BROKER_URL)
    return amqp.Connection(
        f"{broker.hostname}:{broker.port}", userid=user, password=SECRETS[secret], virtual_host=broker.path[1:]
    )


def refused(user, secret, method, *arguments, **options):
    """Whether the broker answers 403 (which closes the channel)."""
    with signed_in(user, secret) as connection:
        channel = connection.channel()
        try:
            getattr(channel, method)(*arguments, **options)
        except AccessRefused:
            return True
    return False


@pytest.mark.parametrize(("user", "secret"), [("monitor", "broker_monitor"), ("flower", "broker_flower")])
def test_who_only_looks_can_neither_take_nor_add_nor_remove_a_message(user, secret, letter):
    work = amqp.Message("work")

    assert refused(user, secret, "basic_get", QUEUE)
    assert refused(user, secret, "basic_consume", "posting-0")
    assert refused(user, secret, "queue_purge", QUEUE)
    assert refused(user, secret, "queue_delete", "posting-0")
    assert refused(user, secret, "queue_bind", "posting-0", exchange="bank", routing_key="#")
    assert refused(user, secret, "basic_publish_confirm", work, exchange="bank", routing_key="posting-0")
    assert refused(user, secret, "basic_publish_confirm", work, exchange="", routing_key="posting-0")
    assert letter() == 1


def test_monitor_sees_the_numbers_and_no_message(letter):
    address = urlsplit(API)
    with httpx.Client(
        base_url=f"http://{address.hostname}:{address.port}/api/", auth=("monitor", SECRETS["broker_monitor"])
    ) as api:
        assert QUEUE in {queue["name"] for queue in api.get("queues").json()}
        assert api.get(f"queues/bank/{QUEUE}").status_code == 200
        take = {"count": 1, "ackmode": "ack_requeue_false", "encoding": "auto"}
        assert api.post(f"queues/bank/{QUEUE}/get", json=take).status_code >= 400
        assert api.delete(f"queues/bank/{QUEUE}/contents").status_code >= 400
    assert letter() == 1


def test_monitor_has_no_share_in_the_control_of_workers_and_flower_has():
    ask = amqp.Message("{}")
    with signed_in("bankcore", "broker") as connection:
        connection.channel().exchange_declare("celery.pidbox", "fanout", durable=False, auto_delete=False)

    assert refused("monitor", "broker_monitor", "basic_publish_confirm", ask, exchange="celery.pidbox")
    assert not refused("flower", "broker_flower", "basic_publish_confirm", ask, exchange="celery.pidbox")


def test_each_role_publishes_and_takes_where_its_work_is_and_nowhere_else(letter):
    queues = {"risk": "risk-0", "posting": "posting-0", "notifications": "deliveries", "maintenance": "maintenance"}
    work = amqp.Message("work")
    may_publish, may_take, may_purge, may_command = set(), set(), set(), set()
    for role in (*queues, "relay"):
        secret = f"broker_{role}"
        if not refused(role, secret, "basic_publish_confirm", work, exchange="bank", routing_key="no-such-queue"):
            may_publish.add(role)
        # What an earlier test has left is looked at and put back.
        take = {"callback": lambda _: None}
        may_take |= {(role, q) for q in queues.values() if not refused(role, secret, "basic_consume", q, **take)}
        may_purge |= {role} if not refused(role, secret, "queue_purge", QUEUE) else set()
        may_command |= (
            {role} if not refused(role, secret, "basic_publish_confirm", work, exchange="celery.pidbox") else set()
        )

        assert refused(role, secret, "basic_publish_confirm", work, exchange="", routing_key="posting-0")
    assert may_publish == {"relay", "maintenance"}
    # To declare a queue with a dead-letter exchange takes the right to read it.
    assert may_take == {*queues.items(), *(("relay", queue) for queue in queues.values())}
    assert may_purge == {"maintenance"}
    assert may_command == set()


@pytest.mark.parametrize("role", ["risk", "posting", "notifications", "maintenance"])
def test_no_role_can_have_the_work_of_others_copied_to_itself(role, letter):
    """A worker may declare an exchange like this one, for remote control; bound to `bank` it could get all there is.

    And no publish would find out any more that a queue was deleted: each would be routed, if only there.
    """
    secret, box, own = f"broker_{role}", "x.celery.pidbox", {"risk": "risk-0", "posting": "posting-0"}.get(role, role)
    others = {"risk-0", "posting-0", "notifications", "deliveries", "maintenance"} - {own}
    if role == "notifications":
        others -= {"deliveries"}
    with signed_in(role, secret) as connection:
        channel = connection.channel()
        channel.exchange_declare(box, "fanout", durable=False, auto_delete=False)
        channel.queue_declare(box, exclusive=True)
        # As it does when it starts.
        channel.queue_bind(own, exchange="bank", routing_key=own)

        for key in ["#", "*", "posting-*", "", *others]:
            assert refused(role, secret, "exchange_bind", box, source="bank", routing_key=key), key
            assert refused(role, secret, "queue_bind", own, exchange="bank", routing_key=key), key
    with signed_in("bankcore", "broker") as connection:
        connection.channel().exchange_delete(box)


def test_a_process_has_its_own_user():
    assert set(rights_of_roles()) == {"relay", "risk", "posting", "notifications", "maintenance", "flower"}
    servers = Servers(broker_url="amqp://bankcore", broker_urls={"risk": "amqp://risk"})
    assert {program.environment["BROKER_URL"] for program in programs(servers, "risk")} == {"amqp://risk"}
    assert {program.environment["BROKER_URL"] for program in programs(servers, "posting")} == {"amqp://bankcore"}


def test_the_roles_have_the_same_rights_as_in_containers():
    definitions = json.loads((Path("compose") / "rabbitmq" / "docker" / "definitions.json").read_text())
    containers = definitions["permissions"]
    here = {rights["user"]: rights for rights in definitions_of(SECRETS)["permissions"]}
    topics_here = definitions_of(SECRETS)["topic_permissions"]

    assert [one | {"vhost": "bank"} for one in definitions["topic_permissions"]] == topics_here
    assert {one["user"] for one in topics_here} == {"relay", "risk", "posting", "notifications", "maintenance"}
    for rights in containers:
        assert rights | {"vhost": ""} == here[rights["user"]] | {"vhost": ""}
    assert {rights["user"] for rights in containers if ".*" in rights.values()} == {"bankcore"}
    assert {rights["user"] for rights in here.values() if ".*" in rights.values()} == {"bankcore", "operator"}


def programs(servers, role):
    instance = Instance(folder=FOLDER, throwaway=True)
    return plan(instance, {role: 2}, servers, iter(range(2)), {}, {}).programs
