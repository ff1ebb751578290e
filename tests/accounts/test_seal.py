"""Chains of hashes: rows are sealed behind the writers, and nobody waits."""

import hashlib
import struct
import threading
import time
from datetime import UTC, datetime

import psycopg
import pytest
from django.apps import apps
from django.conf import settings
from django.db import DatabaseError, connection, transaction

from accounts import ledger
from accounts.chains import CHAINS
from accounts.models import Account, JournalEntry, JournalLine
from accounts.tasks import seal_rows_task
from bankcore.messaging import seals
from bankcore.messaging.models import AuditEntry, Event, Seal, SealMark
from bankcore.messaging.seals import EVENTS, seal
from tests.accounts.chains_view import found, ids, post, record
from tests.accounts.tampering import run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("small_blocks")]

DELIVERY_COLUMNS = {"messaging_event": {"due_at", "attempt", "published_at"}}


# -- sealing -----------------------------------------------------------------------------------------------------------


def test_blocks_cover_every_row_once_and_follow_each_other(sealed):
    for chain in CHAINS:
        blocks = list(Seal.objects.filter(chain=chain.table).order_by("number"))
        assert [block.number for block in blocks] == list(range(1, len(blocks) + 1))
        assert [block.after_id for block in blocks[1:]] == [block.last_id for block in blocks[:-1]]
        assert all(block.row_count == 4 for block in blocks[:-1])
    assert found() == []


def test_sealing_again_seals_only_what_is_new(sealed):
    alice, bob = sealed
    before = Seal.objects.count()

    seal_rows_task()
    assert Seal.objects.count() == before

    post(alice, bob, 100)
    assert seal(CHAINS) == {
        "accounts_journalentry": 1,
        "accounts_journalline": 2,
        "messaging_event": 0,
        "messaging_auditentry": 0,
    }
    assert found() == []


def test_a_call_leaves_the_rest_to_the_next(accounts, monkeypatch):
    monkeypatch.setattr(seals, "BLOCKS_MAX", 2)
    record(*range(10))

    assert [seal([EVENTS])["messaging_event"] for _ in range(3)] == [8, 2, 0]
    mark = SealMark.objects.get(chain="messaging_event")
    assert mark.sealed_through == mark.settled_at


def test_a_row_hash_is_what_the_documents_say(sealed):
    entry = JournalEntry.objects.order_by("id").first()
    microseconds = (entry.created_at - datetime(2000, 1, 1, tzinfo=UTC)) // (
        datetime(2000, 1, 1, 0, 0, 0, 1, tzinfo=UTC) - datetime(2000, 1, 1, tzinfo=UTC)
    )
    columns = [
        (20, struct.pack("!q", entry.pk)),
        (25, entry.reference.encode()),
        (25, entry.currency.encode()),
        (1184, struct.pack("!q", microseconds)),
    ]
    row = struct.pack("!i", 4) + b"".join(struct.pack("!Ii", oid, len(data)) + data for oid, data in columns)

    block = Seal.objects.get(chain="accounts_journalentry", number=1)
    assert bytes(block.leaves[4:12]) == hashlib.sha256(row).digest()[:8]


def test_every_column_that_means_something_is_sealed():
    for chain in CHAINS:
        model = next(model for model in apps.get_models() if model._meta.db_table == chain.table)
        columns = {field.column for field in model._meta.concrete_fields}
        in_form = {piece.strip().removeprefix("t.").split("::")[0] for piece in chain.forms[-1].split(",")}

        assert in_form == columns - DELIVERY_COLUMNS.get(chain.table, set())


def test_delivering_an_event_changes_no_seal(sealed):
    Event.objects.update(published_at=datetime.now(UTC), attempt=3, due_at=datetime.now(UTC))

    assert found() == []


@pytest.mark.parametrize(
    "change",
    ["UPDATE messaging_seal SET sealed_at = now()", "DELETE FROM messaging_seal", "TRUNCATE messaging_seal"],
)
def test_blocks_are_append_only(sealed, change):
    with pytest.raises(DatabaseError, match="never changed or removed"):
        run(change)


# -- beside the writers ------------------------------------------------------------------------------------------------

INSERT = """
INSERT INTO messaging_event (type, partition_key, subject) VALUES ('transfer.posted', 'key', %s) RETURNING id
"""


def test_a_row_that_commits_late_with_a_lower_id_is_sealed_in_its_place(other):
    with other.transaction():
        late = other.execute(INSERT, ("late",)).fetchone()[0]
        record("early")
        assert seal([EVENTS]) == {"messaging_event": 0}
        assert seal([EVENTS]) == {"messaging_event": 0}

    assert ids(Event)[0] == late
    assert seal([EVENTS]) == {"messaging_event": 2}
    assert found() == []


def test_an_id_that_is_taken_before_the_transaction_has_a_number_is_waited_for_as_well(other):
    with other.transaction():
        taken = other.execute("SELECT nextval(pg_get_serial_sequence('messaging_event', 'id'))").fetchone()[0]
        record("early")
        assert seal([EVENTS]) == {"messaging_event": 0}
        sql = "INSERT INTO messaging_event (id, type, partition_key, subject) VALUES (%s, 'x', 'key', 'late')"
        other.execute(sql, (taken,))

    assert seal([EVENTS]) == {"messaging_event": 2}
    assert found() == []


def test_a_new_writer_does_not_hold_up_what_older_ones_have_left(other):
    with psycopg.connect(**connection.get_connection_params(), autocommit=True) as another:
        with other.transaction():
            other.execute(INSERT, ("first",))
            assert seal([EVENTS]) == {"messaging_event": 0}
        with another.transaction():
            another.execute(INSERT, ("second",))
            assert seal([EVENTS]) == {"messaging_event": 1}


def test_rival_one_lock_for_the_hash_chain_posting_is_not_held_up_by_a_sealer_at_work(sealed, other):
    alice, bob = sealed
    post(alice, bob, 100)
    sql = "SELECT ledger_post(%b::uuid[], '{1}', '{2}', '{7}', '{EUR}', '{during}')"

    with transaction.atomic():
        assert seal(CHAINS)["accounts_journalline"] == 2
        # Everything the sealer has locked is still locked.
        assert other.execute(sql, (sorted([alice.pk, bob.pk]),)).fetchone()[0] == [""]
        other.execute(INSERT, ("during",))
        other.execute("UPDATE messaging_event SET published_at = now()")

    assert seal(CHAINS) == {
        "accounts_journalentry": 1,
        "accounts_journalline": 2,
        "messaging_event": 1,
        "messaging_auditentry": 0,
    }
    assert found() == []


def test_rival_one_lock_for_the_hash_chain_a_sealer_does_not_wait_for_a_posting_in_progress(sealed, other):
    alice, bob = sealed
    sql = "SELECT ledger_post(%b::uuid[], '{1}', '{2}', '{7}', '{EUR}', '{during}')"

    with other.transaction():
        other.execute(sql, (sorted([alice.pk, bob.pk]),))
        run("SET lock_timeout = '100ms'")
        assert set(seal(CHAINS).values()) == {0}
        run("RESET lock_timeout")


def test_of_two_sealers_one_does_nothing(accounts, other):
    record(1)
    with other.transaction():
        other.execute("SELECT pg_advisory_xact_lock(%s)", (seals.SEAL_LOCK,))
        assert seal([EVENTS]) == {"messaging_event": 0}

    assert seal([EVENTS]) == {"messaging_event": 1}


def test_sealing_during_random_postings_leaves_nothing_out_and_alarms_nobody(accounts):
    everyone = accounts(*[10_000] * 4)

    def write(seed):
        try:
            for number in range(120):
                debit, credit = everyone[(number + seed) % 4], everyone[(number * 3 + seed + 1) % 4]
                if debit.pk != credit.pk:
                    with transaction.atomic():
                        ledger.post([ledger.Movement(f"{seed}:{number}", debit.pk, credit.pk, 1, "EUR")])
                        record(f"{seed}:{number}")
                        time.sleep(0.004 * (number % 3))
                        if number % 7 == 0:
                            transaction.set_rollback(True)
        finally:
            connection.close()

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
    for writer in writers:
        writer.start()
    try:
        while any(writer.is_alive() for writer in writers):
            seal(CHAINS)
            assert found() == []
    finally:
        for writer in writers:
            writer.join()
    while any(seal(CHAINS).values()):
        pass

    assert found() == []
    for chain, model in zip(CHAINS, (JournalEntry, JournalLine, Event, AuditEntry), strict=True):
        rows = Seal.objects.filter(chain=chain.table).values_list("row_count", flat=True)
        assert sum(rows) == model.objects.count()


def test_the_sealed_tables_have_a_sequence_without_a_cache(sealed):
    # A session that takes ids ahead would use them in transactions that never lock the sequence.
    with connection.cursor() as cursor:
        for chain in CHAINS:
            cursor.execute(
                "SELECT seqcache FROM pg_sequence WHERE seqrelid = pg_get_serial_sequence(%s, 'id')::regclass",
                (chain.table,),
            )
            assert cursor.fetchall() == [(1,)]
    assert Account.objects.count() == 3
    assert settings.DATABASES["default"]["ENGINE"].endswith("postgresql")
