"""The relay against a real RabbitMQ: in order, at least once, marked only when confirmed."""

from datetime import timedelta
from uuid import UUID

import pytest
from django.utils import timezone
from kombu import Exchange, Queue

from bankcore.messaging import due as due_module
from bankcore.messaging import outbox
from bankcore.messaging.models import Event
from bankcore.messaging.outbox import NewEvent
from bankcore.messaging.publisher import Publisher, TaskMessage
from tests.messaging.relay_view import KEY, Stepping, due, places, record

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def stepping(broker, monkeypatch):
    # A queue that refused is tried again with the next step.
    monkeypatch.setattr(due_module, "HOLD_SECONDS_MIN", 0.0)
    stepping = Stepping()
    yield stepping
    stepping.close()


def test_each_queue_gets_its_events_in_order(stepping, broker, settings):
    keys = [f"account {i}" for i in range(12)]
    expected = {}
    for number in range(60):
        event_type = "transfer.accepted" if number % 3 else "transfer.approved"
        record(number, type=event_type, key=keys[number * 7 % 12])
        name = settings.TOPOLOGY.queue_of(settings.TOPOLOGY_ROUTES[event_type], keys[number * 7 % 12])
        expected.setdefault(name, []).append(str(number))

    stepping.step()

    got = {name: [subject for _, ids in broker.calls(name) for subject in ids] for name in expected}
    assert got == expected
    assert len(expected) > 4
    assert due() == []


def test_a_message_carries_at_most_so_many_ids(stepping, broker, queue, settings):
    settings.MESSAGE_IDS_MAX = 10
    record(*range(25))

    stepping.step()

    calls = broker.calls(queue)
    assert [task for task, _ in calls] == ["transfers.post_transfers"] * 3
    assert [ids for _, ids in calls] == [[str(i) for i in some] for some in (range(10), range(10, 20), range(20, 25))]
    assert due() == []


def test_what_failed_before_travels_alone_and_in_order(stepping, broker, queue):
    """One that killed its worker in company is tried alone, whatever else is due by then."""
    record(*range(8))
    for subject in ("2", "3", "5"):
        outbox.defer(["transfer.approved"], subject, 0)
    # Postponed is not failed.
    outbox.postpone(["transfer.approved"], ["7"], -1)

    stepping.step()

    assert [ids for _, ids in broker.calls(queue)] == [["0", "1"], ["2"], ["3"], ["4"], ["5"], ["6", "7"]]
    assert due() == []


def test_an_event_whose_telling_failed_travels_alone_and_a_delivery_does_not(stepping, broker):
    for event_type in ("transfer.posted", "notification.pending"):
        record(*range(3), type=event_type)
        outbox.defer([event_type], "1", 0)
    events = list(Event.objects.filter(type="transfer.posted").order_by("id").values_list("id", flat=True))

    stepping.step()

    assert [ids for _, ids in broker.calls("notifications")] == [[event] for event in events]
    assert [ids for _, ids in broker.calls("deliveries")] == [["0", "1", "2"]]


def test_each_message_names_the_one_before_it_in_its_queue(stepping, broker, queue, settings):
    settings.MESSAGE_IDS_MAX = 1
    record(1, 2)
    record(3, type="transfer.posted")
    stepping.step()
    record(4)
    stepping.step()

    first, second, third = places(broker, queue)

    assert len({place.relay for place in (first, second, third)}) == 1
    assert (first.after, second.after, third.after) == (0, first.number, second.number)
    assert first.number < second.number < third.number


def test_a_message_that_was_not_taken_is_not_named_as_the_one_before(stepping, broker, queue):
    record(1)
    stepping.step()
    (first,) = places(broker, queue)
    broker.delete(queue)
    record(2)
    stepping.step()
    assert due() == ["2"]

    stepping.step()

    (again,) = places(broker, queue)
    assert again.after == first.number < again.number - 1


def test_a_large_message_is_compressed_and_reads_the_same(stepping, broker, queue):
    subjects = [str(UUID(int=i)) for i in range(500)]
    record(*subjects)

    stepping.step()

    (message,) = broker.take(queue)
    assert message.headers["compression"] == "application/zstd"
    assert message.decode() == [[subjects], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    assert (message.properties["delivery_mode"], message.content_type) == (2, "application/json")


def test_notifications_are_called_with_event_ids_and_tasks_do_not_mix(stepping, broker):
    for number, event_type in enumerate(
        ["transfer.posted", "transfer.rejected", "notification.pending", "transfer.posted"]
    ):
        record(number, type=event_type)
    ids = list(Event.objects.order_by("id").values_list("id", flat=True))

    stepping.step()

    assert broker.calls("deliveries") == [("notifications.deliver", ["2"])]
    assert broker.calls("notifications") == [("notifications.dispatch", [*ids[:2], *ids[3:]])]


def test_events_that_no_queue_hears_of_are_marked(stepping, broker):
    record(1, 2, type="account.opened")

    stepping.step()

    assert due() == []
    assert [broker.depth(name) for name in broker.names] == [0] * len(broker.names)


def test_what_is_not_due_yet_stays(stepping, broker, queue):
    record(1, due_at=timezone.now() + timedelta(hours=1))
    record(2)

    stepping.step()

    assert broker.calls(queue) == [("transfers.post_transfers", ["2"])]
    assert due() == ["1"]


def test_a_deferred_event_is_delivered_again(stepping, broker, queue):
    record(1)
    stepping.step()
    outbox.defer(["transfer.approved"], "1", 0)

    stepping.step()

    assert broker.calls(queue) == [("transfers.post_transfers", ["1"])] * 2


def test_nothing_is_marked_before_the_broker_confirms(stepping, broker, queue, monkeypatch):
    record(1, 2)
    seen = []

    def never_confirmed(publisher):
        seen.append(due())
        raise TimeoutError("no confirm")

    with monkeypatch.context() as patched:
        patched.setattr(Publisher, "_await_confirms", never_confirmed)
        stepping.step()

    assert (seen, due()) == ([["1", "2"]], ["1", "2"])
    stepping.step()
    assert due() == []
    calls = broker.calls(queue)
    assert calls[-1] == ("transfers.post_transfers", ["1", "2"])
    assert len(calls) in (1, 2)


def test_a_returned_message_stays_due_until_its_queue_is_back(stepping, broker, queue, settings):
    settings.MESSAGE_IDS_MAX = 1
    broker.delete(queue)
    record(1, 2, 3)
    record(4, type="transfer.posted")

    stepping.step()

    # The other queue's message went; the first return also redeclared the topology.
    assert due() == ["1", "2", "3"]
    assert broker.depth("notifications") == 1
    stepping.step()
    assert due() == []
    assert [ids for _, ids in broker.calls(queue)] == [["1"], ["2"], ["3"]]


def test_a_queue_that_refused_one_gets_none_of_those_behind_it(stepping, broker, queue, settings, monkeypatch):
    settings.MESSAGE_IDS_MAX = 1
    broker.delete(queue)
    record(1, 2, 3)
    publish = Publisher.publish

    def publish_and_bring_the_queue_back(publisher, messages):
        taken = publish(publisher, messages)
        broker.fill_from_scratch()
        return taken

    with monkeypatch.context() as patched:
        patched.setattr(Publisher, "publish", publish_and_bring_the_queue_back)
        stepping.step()

    assert (due(), broker.depth(queue)) == (["1", "2", "3"], 0)
    stepping.step()
    assert [ids for _, ids in broker.calls(queue)] == [["1"], ["2"], ["3"]]


def test_a_full_queue_leaves_its_events_due_and_in_order(stepping, broker, queue, settings):
    settings.MESSAGE_IDS_MAX = 1
    broker.delete(queue)
    tiny = {"x-max-length": 2, "x-overflow": "reject-publish"}
    exchange = Exchange("bank", type="topic", no_declare=True)
    Queue(queue, exchange, routing_key=queue, queue_arguments=tiny, channel=broker.channel).declare()
    try:
        record(1, 2, 3, 4, 5)
        got = []

        stepping.step()

        assert due() == ["3", "4", "5"]
        for left in (["5"], []):
            got += broker.calls(queue)
            stepping.step()
            assert due() == left
        got += broker.calls(queue)
        assert [ids for _, ids in got] == [["1"], ["2"], ["3"], ["4"], ["5"]]
    finally:
        broker.delete(queue)


def test_a_broker_that_is_away_loses_nothing(stepping, broker, queue, settings):
    record(1, 2)
    url, settings.BROKER_URL = settings.BROKER_URL, "amqp://guest:guest@127.0.0.1:1//"

    stepping.step()
    record(3)

    assert due() == ["1", "2", "3"]
    settings.BROKER_URL = url
    stepping.step()
    assert due() == []
    assert broker.calls(queue) == [("transfers.post_transfers", ["1", "2", "3"])]


def test_a_connection_that_was_lost_is_made_anew(stepping, broker, queue):
    record(1)
    stepping.step()
    stepping.relay.publisher.connection.transport.close_connection(stepping.relay.publisher.connection.connection)
    record(2)

    stepping.step()
    assert due() == ["2"]
    stepping.step()

    assert due() == []
    assert [ids for _, ids in broker.calls(queue)] == [["1"], ["2"]]


def test_a_publisher_tells_which_messages_were_taken(broker, settings):
    publisher = Publisher(settings.BROKER_URL, "bank")
    there = [TaskMessage("posting-0", "t", ["1"]), TaskMessage("risk-0", "t", ["2"])]
    nowhere = TaskMessage("nowhere", "t", ["3"])

    assert publisher.publish([there[0], nowhere, there[1]]) == there
    assert publisher.publish(there) == there

    publisher.close()
    assert broker.depth("posting-0") == 2


def test_a_retry_that_overtakes_the_confirm_is_still_owed(stepping, queue, monkeypatch):
    """The worker had the message, failed, and made the event due again before the relay marked it."""
    outbox.record([NewEvent("transfer.approved", KEY, "the subject")])
    publish = Publisher.publish

    def publish_and_fail(self, messages):
        taken = publish(self, messages)
        assert outbox.defer(["transfer.approved"], "the subject", 0.0)
        return taken

    monkeypatch.setattr(Publisher, "publish", publish_and_fail)

    stepping.step()

    event = Event.objects.get()
    assert (event.attempt, event.published_at) == (1, None)
