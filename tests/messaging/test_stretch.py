"""What a worker knows of a queue from the ids of its messages: that none is missing, or that one may be."""

import pytest
from django.db import OperationalError

from bankcore.messaging import pause, stretch
from bankcore.messaging.stretch import Numbering, Stretch, current_stretch, follow, place_of


class Known:
    """Something that a stage finds out once for each stretch."""


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(stretch, "_stretches", {})


class Wire:
    """A relay and a worker with the broker between them."""

    def __init__(self):
        self.relay = Numbering()

    def publish(self, queue="risk-0", *, confirmed=True):
        place = self.relay.next(queue)
        if confirmed:
            self.relay.take(queue, place)
        return str(place)

    def handle(self, message_id, queue="risk-0", *, fails=False):
        """Return what the stage kept; the same object means the same stretch."""
        with follow(queue, message_id):
            known = current_stretch()
            assert known is not None
            if fails:
                raise ZeroDivisionError
            return known.keep(Known)

    def pass_on(self, queue="risk-0", **how):
        return self.handle(self.publish(queue), queue, **how)


@pytest.fixture
def wire():
    return Wire()


def test_messages_without_a_gap_are_one_stretch(wire):
    first = wire.pass_on()

    assert [wire.pass_on() for _ in range(3)] == [first] * 3
    assert current_stretch() is None


def test_each_queue_has_its_own(wire):
    first, other = wire.pass_on("risk-0"), wire.pass_on("risk-1")

    assert first is not other
    assert (wire.pass_on("risk-0"), wire.pass_on("risk-1")) == (first, other)


def test_a_message_that_is_missing_begins_a_new_stretch(wire):
    first = wire.pass_on()
    wire.publish()

    second = wire.pass_on()

    assert second is not first
    assert wire.pass_on() is second


def test_a_message_that_was_not_handled_begins_a_new_stretch(wire):
    first, failing = wire.pass_on(), wire.publish()
    with pytest.raises(ZeroDivisionError):
        wire.handle(failing, fails=True)

    assert wire.pass_on() is not first


def test_one_that_fails_at_the_beginning_of_a_stretch_keeps_nothing(wire):
    first = wire.pass_on()
    wire.publish()
    with pytest.raises(ZeroDivisionError):
        wire.pass_on(fails=True)

    second = wire.pass_on()
    assert second is not first
    assert wire.pass_on() is second


def test_a_message_that_comes_again_changes_nothing(wire):
    first, ids = wire.pass_on(), [wire.publish() for _ in range(3)]

    assert [wire.handle(message_id) for message_id in [*ids, ids[0], ids[2]]] == [first] * 5
    assert wire.pass_on() is first


def test_what_the_broker_did_not_confirm_is_not_missed_and_may_be_there(wire):
    """It is sent again under another number, with all that was in it."""
    first = wire.pass_on()
    gone, there = wire.publish(confirmed=False), wire.publish(confirmed=False)

    assert gone != there
    assert wire.handle(there) is first
    assert wire.pass_on() is first


def test_a_confirmed_repetition_that_is_missing_is_missed(wire):
    first, unconfirmed = wire.pass_on(), wire.publish(confirmed=False)
    # The broker had it after all; what it loses is the repetition, in which there may be more.
    assert wire.handle(unconfirmed) is first
    wire.publish()

    assert wire.pass_on() is not first


def test_another_relay_begins_a_new_stretch_and_so_does_the_first_one_after_it(wire):
    first, other = wire.pass_on(), Wire()

    second = other.pass_on()
    third = wire.pass_on()

    assert len({first, second, third}) == 3


@pytest.mark.parametrize("message_id", [None, "", "an-id", "0123456789abcdef-0-0", "0123456789abcdef-2", "x-2-1"])
def test_another_id_belongs_to_no_stretch_and_ends_none(wire, message_id):
    first = wire.pass_on()
    with follow("risk-0", message_id):
        assert current_stretch() is None

    assert wire.pass_on() is first


def test_an_id_is_read_as_it_was_written(wire):
    wire.publish()
    place = wire.relay.next("risk-0")

    assert place_of(str(place)) == place
    assert (place.number, place.after) == (2, 1)


def test_after_an_outage_all_is_found_out_again(wire, monkeypatch):
    """After a failover the database may lack what the messages before have done."""
    monkeypatch.setattr(pause.Pause, "wait", lambda self, error: None)
    other = wire.pass_on("risk-1")
    answers = iter([OperationalError(), "done"])
    seen = []

    def step():
        seen.append(current_stretch().keep(Known))
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    with follow("risk-0", wire.publish()):
        assert pause.through_outages("a stage", step) == "done"

    assert seen[0] is not seen[1]
    assert wire.pass_on() is seen[1]
    assert wire.pass_on("risk-1") is not other


def test_what_could_not_be_found_out_is_not_kept():
    known, tries = Stretch("a relay"), []

    class Fragile:
        def __init__(self):
            tries.append(self)
            if len(tries) == 1:
                raise ConnectionError

    with pytest.raises(ConnectionError):
        known.keep(Fragile)
    assert known.keep(Fragile) is known.keep(Fragile)
    assert len(tries) == 2
