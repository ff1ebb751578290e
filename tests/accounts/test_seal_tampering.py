"""Chains of hashes: one changed byte is found, and its row named."""

import json

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import transaction

from accounts.chains import CHAINS
from bankcore.messaging import seals
from bankcore.messaging.models import Event, Seal, SealMark
from bankcore.messaging.seals import EVENTS, seal
from tests.accounts.chains_view import found, ids, post, record
from tests.accounts.tampering import tamper
from transfers import books

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("small_blocks")]


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
