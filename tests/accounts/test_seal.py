"""Chains of hashes: rows are sealed behind the writers, nobody waits, and one changed byte is found and named."""

import hashlib
import json
import struct
import threading
import time
from datetime import UTC, datetime

import psycopg
import pytest
from django.apps import apps
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction

from accounts import ledger
from accounts.chains import CHAINS
from accounts.models import Account, JournalEntry, JournalLine
from accounts.tasks import seal_rows_task
from bankcore.messaging import audit, outbox, seal_checks, seals
from bankcore.messaging.models import AuditEntry, Event, Seal, SealMark
from bankcore.messaging.outbox import NewEvent
from bankcore.messaging.seals import EVENTS, seal
from tests.accounts.tampering import run, tamper
from transfers import books

pytestmark = pytest.mark.django_db(transaction=True)

DELIVERY_COLUMNS = {"messaging_event": {"due_at", "attempt", "published_at"}}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(seals, "BLOCK_ROWS_MAX", 4)


@pytest.fixture
def sealed(accounts):
    """Alice and Bob with seven entries, seven events and five audit entries, all of it sealed in small blocks."""
    alice, bob = accounts(1000, 500)
    post(alice, bob, *range(5))
    record(*range(7))
    for number in range(5):
        audit.record(actor="ann", action="account.freeze", subject=number, reason="why", details={"a": 1})
    assert seal(CHAINS) == {
        "accounts_journalentry": 7,
        "accounts_journalline": 14,
        "messaging_event": 7,
        "messaging_auditentry": 5,
    }
    return alice, bob


@pytest.fixture
def other():
    """Another session on the same database."""
    with psycopg.connect(**connection.get_connection_params(), autocommit=True) as session:
        session.execute("SET lock_timeout = '2s'")
        yield session


def post(debit, credit, *numbers):
    movements = [ledger.Movement(f"r:{number}", debit.pk, credit.pk, 10, "EUR") for number in numbers]
    assert ledger.post(movements) == [ledger.POSTED] * len(numbers)


def record(*subjects):
    outbox.record([NewEvent("transfer.posted", "key", f"subject {subject}", {"a": 1}) for subject in subjects])


def found():
    """What the seal checks of a full proof name."""
    result = books.prove(keep=False)
    return [(v.check, v.subject) for v in result.violations if v.check in seal_checks.CHECKS]


def ids(model, **conditions):
    return list(model.objects.filter(**conditions).order_by("id").values_list("pk", flat=True))


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


# -- tampering ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("accounts_journalentry", "reference = reference || 'x'"),
        ("accounts_journalentry", "currency = 'EUS'"),
        ("accounts_journalentry", "created_at = created_at + interval '1 microsecond'"),
        ("accounts_journalline", "entry_id = entry_id + 1"),
        ("accounts_journalline", "account_id = '01a21310-e49d-723e-86f5-597f27d2da3b'"),
        ("accounts_journalline", "number = number + 100"),
        ("accounts_journalline", "side = CASE side WHEN 'D' THEN 'C' ELSE 'D' END"),
        ("accounts_journalline", "amount_minor = amount_minor + 1"),
        ("accounts_journalline", "balance_after_minor = balance_after_minor + 1"),
        ("messaging_event", "type = 'transfer.rejected'"),
        ("messaging_event", "partition_key = 'kez'"),
        ("messaging_event", "subject = subject || '1'"),
        ("messaging_event", """data = '{"a": 2}'"""),
        ("messaging_event", "request_id = 'x'"),
        ("messaging_event", "actor = 'x'"),
        ("messaging_event", "created_at = created_at + interval '1 microsecond'"),
        ("messaging_auditentry", "at = at + interval '1 microsecond'"),
        ("messaging_auditentry", "actor = 'bob'"),
        ("messaging_auditentry", "action = 'account.unfreeze'"),
        ("messaging_auditentry", "subject = 'x'"),
        ("messaging_auditentry", "reason = 'whz'"),
        ("messaging_auditentry", """details = '{"a": 2}'"""),
        ("messaging_auditentry", "request_id = 'x'"),
    ],
)
def test_one_changed_byte_is_found_and_its_row_named(sealed, table, change):
    model = next(model for model in apps.get_models() if model._meta.db_table == table)
    victim = ids(model)[4]

    tamper(f"UPDATE {table} SET {change} WHERE id = %s", victim)

    assert found() == [("sealed_row_changed", f"{table} {victim}")]


@pytest.mark.parametrize("which", [0, 3, 4, -1], ids=["first", "end of a block", "start of a block", "tail"])
def test_a_deleted_row_is_named(sealed, which):
    victim = ids(Event)[which]

    tamper("DELETE FROM messaging_event WHERE id = %s", victim)

    assert found() == [("sealed_row_missing", f"messaging_event {victim}")]


def test_a_tail_cut_off_is_named_row_by_row(sealed):
    gone = ids(Event)[-5:]

    tamper("DELETE FROM messaging_event WHERE id = ANY(%s)", gone)

    assert found() == [("sealed_row_missing", f"messaging_event {row}") for row in gone]


@pytest.mark.parametrize("where", ["before all", "in a gap"])
def test_an_inserted_row_is_named(accounts, where):
    record(1, 2)
    with transaction.atomic():
        record("undone")
        gap = ids(Event)[-1]
        transaction.set_rollback(True)
    record(3, 4)
    seal([EVENTS])
    forged = gap if where == "in a gap" else -5

    sql = "INSERT INTO messaging_event (id, type, partition_key, subject) VALUES (%s, 'transfer.posted', 'key', 'x')"
    tamper(sql, forged)

    assert found() == [("sealed_row_added", f"messaging_event {forged}")]


def test_two_swapped_rows_are_both_named(sealed):
    first, second = ids(Event)[1:3]

    tamper(
        "UPDATE messaging_event e SET subject = o.subject FROM messaging_event o"
        " WHERE (e.id, o.id) IN ((%s, %s), (%s, %s))",
        first, second, second, first,
    )  # fmt: skip

    assert found() == [("sealed_row_changed", f"messaging_event {row}") for row in (first, second)]


@pytest.mark.parametrize(
    "change",
    [
        "digest = sha256('x')",
        "leaves = set_byte(leaves, 5, get_byte(leaves, 5) # 1)",
        "head = sha256('x')",
        "sealed_at = sealed_at + interval '1 microsecond'",
        "row_count = row_count + 1",
        "last_id = last_id + 1000",
        "form = 0",
    ],
)
def test_a_block_that_was_tampered_with_is_named(sealed, change):
    tamper(f"UPDATE messaging_seal SET {change} WHERE chain = 'messaging_event' AND number = 1")

    assert ("seal_block_broken", "messaging_event block 1") in found()


def test_a_block_forged_with_a_head_that_fits_breaks_the_block_behind_it(sealed):
    tamper("UPDATE messaging_event SET actor = 'someone else' WHERE subject = 'subject 0'")
    second = Seal.objects.get(chain="messaging_event", number=2)
    mark = SealMark.objects.get(chain="messaging_event")
    # Seal the first block anew, exactly as the sealer would, and put the old second one behind it again.
    tamper("DELETE FROM messaging_seal WHERE chain = 'messaging_event'")
    SealMark.objects.filter(chain="messaging_event").update(number=0, head=bytes(32), settled_id=second.after_id)
    assert seals._seal_block(EVENTS) == 4
    second.save(force_insert=True)
    SealMark.objects.filter(chain="messaging_event").update(number=2, head=second.head, settled_id=mark.settled_id)

    assert found() == [("seal_block_broken", "messaging_event block 2")]


def test_a_missing_block_is_named(sealed):
    tamper("DELETE FROM messaging_seal WHERE chain = 'messaging_event' AND number = 1")

    assert found() == [("seal_chain_cut", "messaging_event block 1")]


def test_a_chain_that_lost_its_end_is_found_and_not_mended(sealed, caplog):
    tamper("DELETE FROM messaging_seal WHERE chain = 'messaging_event' AND number = 2")

    assert seal([EVENTS]) == {"messaging_event": 0}
    assert "not sealed any further" in caplog.text
    assert found() == [("seal_chain_cut", "messaging_event block 2")]


def _write_the_chain_anew():
    tamper("DELETE FROM messaging_seal")
    SealMark.objects.all().delete()
    tamper("UPDATE messaging_event SET actor = 'someone else' WHERE subject = 'subject 2'")
    seal(CHAINS)


def test_a_chain_written_anew_is_found_by_the_head_that_the_last_proof_saw(sealed):
    assert books.prove().balanced

    _write_the_chain_anew()

    broken = [
        ("seal_head_gone", f"{chain.table} block {Seal.objects.filter(chain=chain.table).count()}") for chain in CHAINS
    ]
    assert sorted(found()) == sorted(broken)
    # A second look finds it too: the heads seen before are not forgotten.
    assert not books.prove().balanced
    assert not books.prove().balanced
    assert not books.prove_increment().balanced


@pytest.mark.parametrize("as_json", [True, False])
def test_a_head_kept_outside_vouches_for_the_chain(sealed, capsys, tmp_path, as_json):
    call_command("seal_head", json=as_json)
    kept = tmp_path / "heads"
    kept.write_text(capsys.readouterr().out)
    alice, bob = sealed
    post(alice, bob, 100)
    seal(CHAINS)

    call_command("prove_books", head=[str(kept)])
    _write_the_chain_anew()
    with pytest.raises(SystemExit) as ended:
        call_command("prove_books", head=[str(kept)], json=True)

    assert ended.value.code == 1
    violations = json.loads(capsys.readouterr().out.splitlines()[-1])["violations"]
    assert ("seal_head_gone", "messaging_event block 2") in {(v["check"], v["subject"]) for v in violations}


def test_a_single_value_is_a_head_too(sealed):
    block = Seal.objects.get(chain="messaging_event", number=1)

    call_command("prove_books", head=[f"messaging_event:1:{bytes(block.head).hex()}"])
    with pytest.raises(SystemExit):
        call_command("prove_books", head=[f"messaging_event:1:{bytes(32).hex()}"])
    with pytest.raises(SystemExit):
        call_command("prove_books", head=[f"messaging_event:99:{bytes(block.head).hex()}"])


@pytest.mark.parametrize("value", ["nonsense", "messaging_event:x:00", "messaging_event:1:abcd", "{}", "{", '{"a": 1}'])
def test_a_head_that_cannot_be_read_is_an_error_that_says_what_to_give(sealed, value):
    with pytest.raises(CommandError, match="seal_head"):
        call_command("prove_books", head=[value])


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
