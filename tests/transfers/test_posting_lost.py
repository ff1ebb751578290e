"""What the broker lost is posted in its turn, before what came after it from the same account."""

from uuid import UUID

import pytest

from bankcore.identifiers import new_id
from bankcore.messaging.models import Event
from bankcore.messaging.stretch import Numbering, follow
from tests.transfers.ends_view import balances, ends, entries
from transfers import posting, states
from transfers.posting import post_transfers
from transfers.tasks import post_transfers_task

pytestmark = pytest.mark.django_db


def test_what_the_broker_lost_is_posted_before_what_came_after_it(accounts, make_transfer):
    payer, other, shop = accounts(100, 100, 0)
    lost = [make_transfer(payer, shop, amount) for amount in (90, 5)]
    failing, elsewhere = make_transfer(payer, shop, 7), make_transfer(other, shop, 1)
    Event.objects.filter(subject=str(failing.pk)).update(attempt=1)
    delivered, later = make_transfer(payer, shop, 6), make_transfer(payer, shop, 1)

    assert post_transfers([delivered.pk]) == 3

    # The last one has no more money only because the lost ones were served before it.
    assert ends(*lost, delivered) == [("posted", ""), ("posted", ""), ("rejected", "insufficient_funds")]
    assert entries() == [f"transfer:{transfer.pk}" for transfer in lost]
    assert ends(failing, elsewhere, later) == [("approved", "")] * 3


def an_hour_ahead():
    """An id as a web host makes it whose clock is wrong."""
    return UUID(int=new_id().int + (3_600_000 << 80))


def test_a_web_host_whose_clock_is_ahead_lets_nothing_overtake(accounts, make_transfer):
    payer, shop = accounts(100, 0)
    first, second = make_transfer(payer, shop, 90, id=an_hour_ahead()), make_transfer(payer, shop, 20)

    # The second is in a message of its own, behind this one: it is not lost, although its id is the smaller one.
    assert post_transfers([first.pk]) == 1
    assert post_transfers([second.pk]) == 1

    assert ends(first, second) == [("posted", ""), ("rejected", "insufficient_funds")]


def test_what_was_lost_is_taken_in_the_order_of_acceptance_whatever_the_clocks_of_web_say(accounts, make_transfer):
    payer, shop = accounts(100, 0)
    lost = make_transfer(payer, shop, 5)
    first, second = make_transfer(payer, shop, 90, id=an_hour_ahead()), make_transfer(payer, shop, 20)

    assert post_transfers([first.pk, second.pk]) == 3

    assert ends(lost, first, second) == [("posted", ""), ("posted", ""), ("rejected", "insufficient_funds")]


def test_very_much_that_was_lost_is_posted_in_lots_and_in_order(accounts, make_transfer, monkeypatch):
    monkeypatch.setattr(states, "LOST_AT_ONCE_MAX", 2)
    payer, shop = accounts(100, 0)
    lost = [make_transfer(payer, shop, amount) for amount in (60, 5, 30, 2, 1)]
    delivered = make_transfer(payer, shop, 3)

    assert [len(lot) for lot in states.in_turn([delivered.pk], status=states.Status.APPROVED)] == [2, 3]
    assert post_transfers([delivered.pk]) == 6

    assert ends(*lost, delivered) == [("posted", "")] * 5 + [("rejected", "insufficient_funds")]
    assert entries() == [f"transfer:{transfer.pk}" for transfer in lost]


class Relay:
    """Hands transfers to the posting stage in messages, of which the broker may lose some."""

    def __init__(self, queue):
        self.queue, self.numbering = queue, Numbering()

    def publish(self, *transfers, lost=False):
        place = self.numbering.next(self.queue)
        self.numbering.take(self.queue, place)
        if lost:
            return 0
        with follow(self.queue, str(place)):
            return post_transfers([transfer.pk for transfer in transfers])


@pytest.fixture
def relay(request, monkeypatch):
    monkeypatch.setattr(states._BeforeTheStretch, "LOOK_SECONDS_MIN", 0.0)
    return Relay(f"posting of {request.node.name}")


def test_what_was_lost_before_a_stretch_or_in_its_middle_is_posted_in_its_turn(accounts, make_transfer, relay):
    """By the accounts of whichever message comes next, however many messages of others came in between."""
    payers, (shop,) = accounts(100, 100, 100), accounts(0)
    before, between = (make_transfer(payer, shop, 90) for payer in payers[:2])
    assert relay.publish(make_transfer(payers[2], shop, 1)) == 1
    assert relay.publish(make_transfer(payers[0], shop, 20)) == 2
    relay.publish(between, lost=True)
    assert relay.publish(make_transfer(payers[2], shop, 1)) == 1

    assert relay.publish(make_transfer(payers[1], shop, 20)) == 2

    assert ends(before, between) == [("posted", "")] * 2
    assert balances(*payers) == [10, 10, 98]


def test_an_id_of_a_clock_that_is_behind_hides_nothing_that_was_lost(accounts, make_transfer, relay):
    payer, other, shop = accounts(100, 100, 0)
    assert relay.publish(make_transfer(payer, shop, 1)) == 1
    lost = make_transfer(payer, shop, 90, id=UUID(int=new_id().int - (3_600_000 << 80)))
    relay.publish(lost, lost=True)
    assert relay.publish(make_transfer(other, shop, 1)) == 1

    assert relay.publish(make_transfer(payer, shop, 20)) == 2

    assert ends(lost) == [("posted", "")]


def test_in_a_stretch_nobody_looks_for_what_cannot_have_been_lost(accounts, make_transfer, relay, statements):
    payer, shop = accounts(1000, 0)
    assert relay.publish(make_transfer(payer, shop, 1)) == 1
    second, third, _ = (make_transfer(payer, shop, 1) for _ in range(3))
    assert relay.publish(second) == 1
    statements.clear()

    assert relay.publish(third) == 1
    assert [text for text in statements if "transfers_opentransfer" in text or "transfers_lost_before" in text] == []


def test_a_lost_transfer_that_fails_is_blamed_itself_and_not_the_one_it_was_taken_along_with(
    accounts, make_transfer, monkeypatch
):
    payer, shop = accounts(100, 0)
    lost, culprit, delivered = (make_transfer(payer, shop, amount) for amount in (1, 2, 4))

    def movement(claimed, real=posting._movement):
        if claimed.id == culprit.pk:
            raise ValueError("a bug")
        return real(claimed)

    monkeypatch.setattr(posting, "_movement", movement)
    post_transfers_task([str(delivered.pk)])

    assert ends(lost, culprit, delivered) == [("posted", ""), ("approved", ""), ("posted", "")]
    attempts = dict(Event.objects.filter(type="transfer.approved").values_list("subject", "attempt"))
    assert attempts == {str(lost.pk): 0, str(culprit.pk): 1, str(delivered.pk): 0}
