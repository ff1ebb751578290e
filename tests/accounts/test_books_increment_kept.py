"""What an increment found stays until a full proof does not find it, and is told; and money moves all the while."""

import json
import threading

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.utils import timezone

from accounts.chains import CHAINS
from accounts.models import JournalEntry, JournalLine, Proof
from bankcore.messaging.models import Event
from bankcore.messaging.seals import seal
from tests.accounts.increments_view import found, post, set_account
from tests.accounts.tampering import tamper
from transfers import books

pytestmark = pytest.mark.django_db(transaction=True)


# -- a violation stays -------------------------------------------------------------------------------------------------


def test_what_was_found_stays_until_a_full_proof_does_not_find_it(two):
    set_account(two[0], posted_minor=5_000)
    assert found() == [("balance_differs", str(two[0].pk))]
    set_account(two[0], posted_minor=1000)

    for _ in range(3):
        result = books.prove_increment()
        assert result.counts["balance_differs"] == 1
        assert not result.balanced
    assert Proof.objects.first().violations["balance_differs"] == 1

    assert books.prove().balanced
    assert books.prove_increment().balanced


def test_what_is_found_again_counts_once_and_what_is_new_is_added(two):
    set_account(two[0], posted_minor=5_000)
    found()
    set_account(two[1], posted_minor=5_000)

    assert found() == sorted(("balance_differs", str(account.pk)) for account in two)
    assert books.prove_increment().counts["balance_differs"] == 2


def test_what_a_full_proof_found_stays_in_the_increments(two):
    set_account(two[0], posted_minor=5_000)
    assert books.prove().counts["currency_unbalanced"] == 1
    set_account(two[0], posted_minor=1_000)

    assert books.prove_increment().counts["currency_unbalanced"] == 1


def test_what_an_increment_finds_while_a_full_proof_runs_is_not_lost(two):
    def increment_meanwhile(name, share):
        if name == "reference_twice" and not done:
            done.append(name)
            thread = threading.Thread(target=meanwhile)
            thread.start()
            thread.join()

    def meanwhile():
        try:
            Event.objects.create(type="transfer.posted", partition_key="k", subject="nobody")
            seal(CHAINS)
            books.prove_increment()
        finally:
            connection.close()

    done: list[str] = []
    result = books.prove(increment_meanwhile)

    assert result.balanced
    assert Proof.objects.first().kind == "full"
    assert Proof.objects.first().violations["posted_without_entry"] == 1
    assert books.prove_increment().counts["posted_without_entry"] == 1


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_proves_the_increment_as_json(two, capsys):
    call_command("prove_books", incremental=True, json=True)
    assert json.loads(capsys.readouterr().out)["books"] == "balanced"

    set_account(two[0], posted_minor=5_000)
    with pytest.raises(SystemExit) as ended:
        call_command("prove_books", incremental=True, json=True)
    assert ended.value.code == 1
    assert json.loads(capsys.readouterr().out)["violations"][0]["subject"] == str(two[0].pk)


@pytest.mark.parametrize("options", [{}, {"full": True}])
def test_plain_and_full_prove_everything_at_once(two, capsys, options):
    tamper("UPDATE accounts_journalentry SET created_at = created_at + interval '1 microsecond' WHERE id = %s",
           entry := JournalEntry.objects.order_by("id").first().pk)  # fmt: skip

    with pytest.raises(SystemExit):
        call_command("prove_books", json=True, **options)

    printed = json.loads(capsys.readouterr().out)
    assert [(v["check"], v["subject"]) for v in printed["violations"]] == [
        ("sealed_row_changed", f"accounts_journalentry {entry}")
    ]


def test_a_kept_head_asks_for_a_full_proof(two):
    with pytest.raises(CommandError, match="full proof"):
        call_command("prove_books", incremental=True, head=["messaging_event:1:" + "00" * 32])


# -- while money moves -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["balance", "line", "entry", "event", "transfer"])
def test_random_postings_alarm_nobody_and_a_tampering_anywhere_is_found(accounts, make_transfer, victim):
    everyone = accounts(*[10_000] * 5)
    stop = threading.Event()
    failures = []

    def write(seed):
        number = seed
        try:
            while not stop.is_set():
                number += 7
                debit, credit = everyone[number % 5], everyone[(number * 3 + 1) % 5]
                if debit.pk == credit.pk:
                    continue
                with transaction.atomic():
                    transfer = make_transfer(debit, credit, 1, status="posted", posted_at=timezone.now())
                    post(debit, credit, f"transfer:{transfer.pk}", 1)
        except Exception as error:
            failures.append(error)
        finally:
            connection.close()

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
    for writer in writers:
        writer.start()
    try:
        # An error in a writer ends it: then the others go on.
        while JournalEntry.objects.count() < 150 and any(writer.is_alive() for writer in writers):
            assert found() == []
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert failures == []
    assert found() == []

    line = JournalLine.objects.order_by("?").first()
    event = Event.objects.order_by("?").first()
    sql = {
        "balance": "UPDATE accounts_account SET posted_minor = posted_minor + 1 WHERE id = %s",
        "line": "UPDATE accounts_journalline SET amount_minor = amount_minor + 1 WHERE id = %s",
        "entry": "UPDATE accounts_journalentry SET reference = reference || '0' WHERE id = %s",
        "event": "UPDATE messaging_event SET subject = subject || '0' WHERE id = %s",
        "transfer": "UPDATE transfers_transfer SET amount_minor = amount_minor + 1 WHERE id = %s",
    }[victim]
    transfer_id = event.subject
    pk = {"balance": line.account_id, "line": line.pk, "entry": line.entry_id, "event": event.pk,
          "transfer": transfer_id}[victim]  # fmt: skip
    tamper(sql, pk)

    subject = {
        "balance": str(pk), "line": f"accounts_journalline {pk}", "entry": f"accounts_journalentry {pk}",
        "event": f"messaging_event {pk}", "transfer": str(pk),
    }[victim]  # fmt: skip
    looks = 0
    while subject not in {subject for _, subject in found()}:
        # Old blocks come in turn.
        looks += 1
        assert looks < 100
    assert subject in {violation.subject for violation in books.prove().violations}
