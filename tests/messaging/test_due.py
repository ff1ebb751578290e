"""What the relay reads: cheap however much waits for later, and not blocked by a queue that refuses."""

import json
import re
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.utils import timezone
from kombu import Exchange, Queue

from bankcore.database import open_session
from bankcore.messaging import due, outbox, relay
from bankcore.messaging.models import Event, Lot
from bankcore.messaging.outbox import NewEvent
from tests.messaging.relay_view import Stepping

pytestmark = pytest.mark.django_db(transaction=True)

OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
FUTURE = 200_000
BACKLOG = 100_000


def fill(number, due_at, published_at="NULL", event_type="transfer.accepted", created_at="now()"):
    with connection.cursor() as cursor:
        cursor.execute(
            f"""INSERT INTO messaging_event (type, partition_key, subject, created_at, due_at, published_at)
                SELECT '{event_type}', n::text, n::text, {created_at}, {due_at}, {published_at}
                  FROM generate_series(1, {number}) AS n"""  # noqa: S608
        )
        cursor.execute("ANALYZE messaging_event")


def buffers(database):
    """Pages touched by one read of what is due, with the plan a prepared statement settles on."""
    limit = relay.EVENTS_MAX
    database.execute("SET plan_cache_mode = force_generic_plan")
    ranges = database.execute("SELECT first_event, last_event FROM messaging_lot WHERE due_at <= now() ORDER BY 1")
    parameters = (due.SETTLED, *map(list, zip(*ranges, strict=True)), timezone.now(), limit)
    ((plan,),) = database.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + due.DUE, parameters, prepare=True)
    plan = plan if isinstance(plan, list) else json.loads(plan)
    return plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"]


@pytest.fixture
def stepping(broker, monkeypatch):
    monkeypatch.setattr(due, "HOLD_SECONDS_MIN", 0.0)
    monkeypatch.setattr(relay, "EVENTS_MAX", 50)
    stepping = Stepping()
    yield stepping
    stepping.close()


def test_two_hundred_thousand_events_of_next_month_cost_the_relay_nothing():
    fill(BACKLOG, "now()", published_at="now()")
    fill(FUTURE, "now() + interval '30 days'")
    outbox.record([NewEvent("transfer.accepted", "a", "now"), NewEvent("transfer.accepted", "a", "then")])
    outbox.defer(["transfer.accepted"], "then", -0.001)
    stepping = Stepping()

    rows = stepping.relay.due.read(stepping.database)

    assert [row.subject for row in rows] == ["now", "then"]
    assert buffers(stepping.database) < 60
    stepping.close()


def test_what_comes_due_is_read_with_the_rest_in_the_order_of_ids():
    outbox.record([NewEvent("transfer.accepted", "a", str(n)) for n in range(4)])
    for subject in ("1", "2"):
        outbox.defer(["transfer.accepted"], subject, 0 if subject == "2" else 60)
    stepping = Stepping()

    assert [row.subject for row in stepping.relay.due.read(stepping.database)] == ["0", "2", "3"]
    stepping.close()


def key_of(settings, queue):
    """A partition key whose transfers are screened in this queue."""
    route = settings.TOPOLOGY_ROUTES["transfer.accepted"]
    return next(key for key in map(str, range(200)) if settings.TOPOLOGY.queue_of(route, key) == queue)


@pytest.mark.parametrize("settled", [True, False])
def test_a_full_queue_does_not_starve_the_others_and_keeps_its_order(stepping, broker, settings, monkeypatch, settled):
    """Ten times as much waits for the full queue as a read takes; the others get theirs, old and new."""
    settings.MESSAGE_IDS_MAX = 10
    if settled:
        monkeypatch.setattr(due, "SETTLED", timedelta(0))
    full, other = "risk-0", "risk-1"
    key, other_key = key_of(settings, full), key_of(settings, other)
    tiny = {"x-max-length": 1, "x-overflow": "reject-publish"}
    broker.delete(full)
    Queue(
        full,
        Exchange("bank", type="topic", no_declare=True),
        routing_key=full,
        queue_arguments=tiny,
        channel=broker.channel,
    ).declare()
    try:
        outbox.record([NewEvent("transfer.accepted", key, f"full {n}") for n in range(500)])
        outbox.record([NewEvent("transfer.accepted", other_key, "behind them")])
        got = []
        for step in range(4):
            stepping.step()
            outbox.record([NewEvent("transfer.accepted", other_key, f"new {step}")])
        stepping.step()

        reached = [subject for _, ids in broker.calls(other) for subject in ids]
        assert reached == ["behind them", *[f"new {step}" for step in range(4)]]
        # The queue takes one message at a time from here on: all of it comes, in order.
        for _ in range(200):
            got += [subject for _, ids in broker.calls(full) for subject in ids]
            if len(got) == 500:
                break
            stepping.step()
        assert got == [f"full {n}" for n in range(500)]
    finally:
        broker.delete(full)


def test_a_part_that_is_passed_over_is_read_again_when_its_queue_takes_messages(broker, settings, monkeypatch):
    monkeypatch.setattr(due, "SETTLED", timedelta(0))
    monkeypatch.setattr(due, "HOLD_SECONDS_MIN", 60.0)
    monkeypatch.setattr(due, "HOLD_SECONDS_MAX", 60.0)
    key, other_key = key_of(settings, "risk-0"), key_of(settings, "risk-1")
    outbox.record([NewEvent("transfer.accepted", key, str(n)) for n in range(30)])
    outbox.record([NewEvent("transfer.accepted", other_key, "other")])
    stepping, events = Stepping(), due.DueEvents(10)
    events.refuse("risk-0")

    def read():
        return [row.subject for row in events.read(stepping.database)]

    assert read() == ["other"]
    assert read() == ["other"]
    assert events._passed.id > 0
    outbox.record([NewEvent("transfer.accepted", other_key, "newer")])
    assert read() == ["other", "newer"]
    # On trial: the oldest of its events, and none from behind the part that is passed over.
    events._holds["risk-0"].until = 0.0
    assert read() == [*map(str, range(10)), "other", "newer"]
    events.accept("risk-0")
    assert read() == [*map(str, range(10))]
    stepping.close()


def test_an_event_that_may_still_be_overtaken_is_not_passed_over(settings):
    """Younger than SETTLED: another event with a smaller id may yet be committed between those that were read."""
    key = key_of(settings, "risk-0")
    outbox.record([NewEvent("transfer.accepted", key, str(n)) for n in range(30)])
    stepping, events = Stepping(), due.DueEvents(10)
    events.refuse("risk-0")

    events.read(stepping.database)

    assert events._passed == due.Place()
    stepping.close()


# -- lots --------------------------------------------------------------------------------------------------------------


def test_no_index_of_the_events_holds_what_delivery_changes():
    """So that a mark is a HOT update: three of them for every transfer."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = 'messaging_event'::regclass")
        indexes = [row[0] for row in cursor.fetchall()]

    assert len(indexes) == 2
    assert not [index for index in indexes for column in ("due_at", "attempt", "published_at") if column in index]


@pytest.fixture
def reader(broker):
    stepping = Stepping()
    yield stepping
    stepping.close()


def subjects(stepping):
    return [row.subject for row in stepping.relay.due.read(stepping.database)]


def test_what_is_committed_late_is_read_although_later_events_were_published(reader):
    with open_session("a slow writer") as slow:
        slow.autocommit = False
        slow.execute(
            "INSERT INTO messaging_event (type, partition_key, subject) VALUES ('account.opened', 'a', 'late')"
        )
        outbox.record([NewEvent("account.opened", "a", "early")])
        reader.step()
        assert list(Event.objects.owed()) == []
        assert Lot.objects.count() == 0
        slow.commit()

    assert subjects(reader) == ["late"]


def test_a_lot_goes_when_nothing_in_it_is_owed(reader):
    outbox.record([NewEvent("account.opened", "a", str(n)) for n in range(5)])
    outbox.record([NewEvent("account.opened", "a", "next month", due_at=timezone.now() + timedelta(days=30))])
    assert Lot.objects.count() == 2

    reader.step()

    assert [lot.due_at > timezone.now() for lot in Lot.objects.all()] == [True]
    assert [event.subject for event in Event.objects.owed()] == ["next month"]


@pytest.mark.parametrize("again", [{"published_at": None}, {"published_at": None, "due_at": timezone.now()}])
def test_an_event_that_is_owed_again_is_read_again_whoever_said_so(reader, again):
    outbox.record([NewEvent("account.opened", "a", str(n)) for n in range(3)])
    reader.step()

    Event.objects.filter(subject="1").update(**again)

    assert subjects(reader) == ["1"]


def test_an_event_that_is_put_off_while_it_is_owed_leaves_the_others_of_its_lot(reader):
    outbox.record([NewEvent("account.opened", "a", str(n)) for n in range(3)])
    outbox.postpone(["account.opened"], ["1"], 3600)

    assert subjects(reader) == ["0", "2"]
    reader.step()
    Event.objects.filter(subject="1").update(due_at=timezone.now())
    assert subjects(reader) == ["1"]


def test_the_lots_of_a_backlog_are_put_together_and_nothing_is_lost_or_read_twice(reader, monkeypatch):
    monkeypatch.setattr(due, "LOTS_MAX", 20)
    for number in range(30):
        outbox.record([NewEvent("account.opened", "a", str(number))])
    outbox.postpone(["account.opened"], ["7"], 3600)

    everything = due.DueEvents(100).read(reader.database)

    assert [lot.last_event - lot.first_event for lot in Lot.objects.order_by("due_at")] == [29, 0]
    assert [row.subject for row in everything] == [str(n) for n in range(30) if n != 7]


@pytest.fixture
def set_clock_back(reader):
    """Make the database's clock, as the relay's session reads it, slower by an interval from here on."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA clocks")
        cursor.execute(
            "CREATE FUNCTION clocks.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE AS $$"
            " SELECT pg_catalog.statement_timestamp() - current_setting('clocks.behind')::interval $$"
        )

    def by(interval):
        reader.database.execute("SELECT set_config('clocks.behind', %s, false)", (interval,))

    by("0")
    reader.database.execute("SET search_path = clocks, pg_catalog, public")
    yield by
    with connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA clocks CASCADE")


def test_a_clock_that_is_set_back_between_lots_and_events_loses_nothing(reader, set_clock_back, monkeypatch):
    """Their lot would go and they would stay: owed for ever, and seen by no relay, sweep or alarm."""
    monkeypatch.setattr(due, "LOTS_MAX", 3)
    for number in range(5):
        outbox.record([NewEvent("account.opened", "a", str(number))])
    page = due.DueEvents._page

    def set_back_first(self, database, place):
        set_clock_back("1 minute")
        return page(self, database, place)

    with monkeypatch.context() as patch:
        patch.setattr(due.DueEvents, "_page", set_back_first)
        reader.step()

    set_clock_back("0")
    reader.step()
    assert Event.objects.filter(published_at=None).count() == 0


def test_what_comes_due_in_a_part_that_is_passed_over_is_read_although_lots_are_put_together(
    reader, settings, monkeypatch
):
    monkeypatch.setattr(due, "SETTLED", timedelta(0))
    monkeypatch.setattr(due, "HOLD_SECONDS_MIN", 60.0)
    key, other_key = key_of(settings, "risk-0"), key_of(settings, "risk-1")
    outbox.record([NewEvent("transfer.accepted", key, str(n)) for n in range(20)])
    outbox.record([NewEvent("transfer.accepted", other_key, "tried again", due_at=timezone.now() + timedelta(days=1))])
    outbox.record([NewEvent("transfer.accepted", key, str(n)) for n in range(20, 40)])
    events = due.DueEvents(10)
    events.refuse("risk-0")
    assert events.read(reader.database) == []
    assert events.read(reader.database) == []
    assert events._passed.id > 0
    monkeypatch.setattr(due, "LOTS_MAX", 1)

    Event.objects.filter(subject="tried again").update(due_at=timezone.now())

    assert [row.subject for row in events.read(reader.database)] == ["tried again"]


def test_after_a_restore_the_numbers_go_on_behind_those_that_were_given_out(reader):
    """As docs/operations.md has it: what was told under a number is not taken for what comes now."""
    (statement,) = re.findall(r"^SELECT setval.*?;$", OPERATIONS.read_text(), re.DOTALL | re.MULTILINE)
    outbox.record([NewEvent("account.opened", "a", "before")])
    before = Event.objects.get().pk
    with connection.cursor() as cursor:
        cursor.execute(statement)

    outbox.record([NewEvent("account.opened", "a", "after")])

    assert Event.objects.latest("id").pk > before + 10_000_000
    assert subjects(reader) == ["before", "after"]
    reader.step()
    assert (Event.objects.filter(published_at=None).count(), Lot.objects.count()) == (0, 0)


def test_a_backlog_is_read_page_by_page_and_what_is_done_is_not_read_again(reader, monkeypatch):
    outbox.record([NewEvent("account.opened", "a", str(number)) for number in range(25)])
    reader.relay.due = due.DueEvents(10)
    lengths = []
    for _ in range(3):
        reader.step()
        lengths += [lot.last_event - lot.first_event + 1 for lot in Lot.objects.all()]

    assert lengths == [15, 5]
    assert Event.objects.filter(published_at=None).count() == 0


def test_what_comes_due_in_a_part_that_is_passed_over_is_read_nevertheless(reader, settings, monkeypatch):
    monkeypatch.setattr(due, "SETTLED", timedelta(0))
    monkeypatch.setattr(due, "HOLD_SECONDS_MIN", 60.0)
    key, other_key = key_of(settings, "risk-0"), key_of(settings, "risk-1")
    outbox.record([NewEvent("transfer.accepted", other_key, "tried again")])
    outbox.postpone(["transfer.accepted"], ["tried again"], 3600)
    outbox.record([NewEvent("transfer.accepted", key, str(n)) for n in range(30)])
    events = due.DueEvents(10)
    events.refuse("risk-0")
    assert events.read(reader.database) == []
    assert events.read(reader.database) == []
    assert events._passed.id > 0

    Event.objects.filter(subject="tried again").update(due_at=timezone.now())

    assert [row.subject for row in events.read(reader.database)] == ["tried again"]


def test_what_is_committed_while_the_relay_publishes_keeps_its_lot(reader):
    outbox.record([NewEvent("account.opened", "a", "read")])
    assert subjects(reader) == ["read"]
    outbox.record([NewEvent("account.opened", "a", "not read")])

    reader.relay.due.forget_done(reader.database)

    assert subjects(reader) == ["not read"]


def test_a_queue_that_takes_messages_again_gets_what_its_trial_left_out(reader, settings, monkeypatch):
    monkeypatch.setattr(due, "HOLD_SECONDS_MIN", 0.0)
    key = key_of(settings, "risk-0")
    outbox.record([NewEvent("transfer.accepted", key, str(n)) for n in range(35)])
    events, delivered = due.DueEvents(10), []
    events.refuse("risk-0")

    while rows := events.read(reader.database):
        events.accept("risk-0")
        delivered += [row.subject for row in rows]
        Event.objects.filter(id__in=[row.id for row in rows]).update(published_at=timezone.now())
        events.forget_done(reader.database)

    assert delivered == [str(n) for n in range(35)]
    assert Lot.objects.count() == 0


def test_what_others_publish_past_a_queue_that_refuses_is_not_read_again_and_again(reader, settings, monkeypatch):
    monkeypatch.setattr(due, "NARROW_SECONDS", 0.0)
    monkeypatch.setattr(due, "HOLD_SECONDS_MIN", 60.0)
    key, other_key = key_of(settings, "risk-0"), key_of(settings, "risk-1")
    outbox.record([NewEvent("transfer.accepted", key, "held")])
    outbox.record([NewEvent("transfer.accepted", other_key, str(n)) for n in range(5000)])
    outbox.record([NewEvent("transfer.accepted", key, "held too")])
    outbox.record([NewEvent("transfer.accepted", key, "put off", due_at=timezone.now() + timedelta(days=1))])
    events = due.DueEvents(10_000)
    events.refuse("risk-0")
    Event.objects.filter(partition_key=other_key).update(published_at=timezone.now())

    assert events.read(reader.database) == []

    held, held_too, put_off = Event.objects.filter(partition_key=key).order_by("id").values_list("id", flat=True)
    ranges = list(Lot.objects.order_by("first_event").values_list("first_event", "last_event"))
    assert ranges == [(held, held), (held_too, held_too), (put_off, put_off)]
    events.accept("risk-0")
    assert [row.subject for row in events.read(reader.database)] == ["held", "held too"]
