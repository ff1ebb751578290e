"""The verdict on small runs made by hand: a clean one is clean, and each kind of damage is named as what it is."""

import os
from pathlib import Path

import pytest

from compose.gameday.evidence import Letter, read_mails
from compose.gameday.history import History, problem_of, read
from tests.faults.small_run import ALICE, BOB, POOR, REVIEW_AMOUNT_MINOR, SmallRun


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    run = SmallRun(tmp_path)
    run.order("a-1")
    run.order("a-2", credit=POOR, amount_minor=30)
    run.order("b-1", debit=BOB, credit=ALICE)
    run.order("p-1", "rejected", "insufficient_funds", debit=POOR, amount_minor=500)
    run.order("r-1", "in_review", amount_minor=REVIEW_AMOUNT_MINOR)
    run.tell_alice()
    return run


def damage(run: SmallRun) -> dict[str, int]:
    verdict = run.verdict()
    found = {kind: number for kind, number in verdict.damage.items() if number}
    return found | ({} if verdict.books == "balanced" else {"books": 1})


def change(rows: list, place: int, **changes: object) -> None:
    rows[place] = rows[place]._replace(**changes)


def test_a_clean_run_is_clean(run):
    verdict = run.verdict()

    assert (verdict.clean, verdict.accepted, verdict.details) == (True, 5, {})


def test_an_accepted_transfer_that_is_not_there_is_lost(run):
    run.ask("a-3", run.body("a-3"))
    run.answer("a-3")

    assert damage(run) == {"lost": 1}


def test_another_id_than_the_promised_one_is_lost(run):
    run.ask("a-3", run.body("a-3"))
    run.answer("a-3", answer={"id": "id-other"})
    run.book(run.body("a-3"), "accepted")

    assert damage(run) == {"lost": 1, "stuck": 1}


def test_posted_without_a_journal_entry_is_lost(run):
    run.entries[3] = run.entries[3]._replace(reference="opening:alice")

    assert damage(run)["lost"] == 1


@pytest.mark.parametrize("status", ["accepted", "approved", "parked"])
def test_an_accepted_transfer_without_an_end_is_stuck(run, status):
    run.order("b-2", status, debit=BOB)
    if status == "parked":
        run.letters.append(Letter(1, "open", "id-b-2", "ValueError", ""))

    assert damage(run) == {"stuck": 1}


def test_a_parked_transfer_is_all_right_when_a_fault_parked_it_and_the_desk_has_it(run):
    run.order("b-2", "parked", debit=BOB)
    run.faults.append({"kind": "poison", "explains": ["parked"]})

    assert damage(run) == {"dead_letters_missing": 1}
    run.letters.append(Letter(1, "open", "id-b-2", "ValueError", ""))
    assert damage(run) == {}


def test_a_review_that_no_amount_explains_is_stuck(run):
    run.order("b-2", "in_review", debit=BOB)

    assert damage(run) == {"stuck": 1}
    run.faults.append({"kind": "risk provider away", "explains": ["in_review"]})
    assert damage(run) == {}


def test_a_large_amount_posted_without_a_review_is_unexpected(run):
    run.order("b-2", debit=BOB, amount_minor=REVIEW_AMOUNT_MINOR)

    assert damage(run) == {"unexpected": 1}


def test_two_journal_entries_of_one_transfer_are_duplicated_and_break_the_books(run):
    run.move("transfer:id-a-1", ALICE, BOB, 10)

    assert damage(run) == {"duplicated": 1, "books": 1}


def test_two_transfers_for_one_order_are_duplicated(run):
    run.book(run.body("b-1", BOB, 10, ALICE), "rejected", "insufficient_funds", copy="again")

    assert damage(run)["duplicated"] == 1


def test_an_effect_nobody_asked_for_is_unexpected(run):
    run.book(run.body("x-1", BOB))

    assert damage(run)["unexpected"] == 1


def test_an_effect_of_a_refused_order_is_unexpected(run):
    run.ask("b-2", run.body("b-2", BOB), expected=(400,))
    run.answer("b-2", 400, {"code": "validation_error"})
    run.book(run.body("b-2", BOB))

    assert damage(run)["unexpected"] == 1


def test_another_amount_than_the_one_asked_for_is_unexpected(run):
    run.ask("b-2", run.body("b-2", BOB, 10))
    run.answer("b-2")
    run.book(run.body("b-2", BOB, 11))

    assert damage(run) == {"unexpected": 2, "books": 1}


def test_an_order_whose_answer_was_lost_may_have_either_end(run):
    run.ask("b-2", run.body("b-2", BOB))
    run.ask("b-3", run.body("b-3", BOB))
    run.history.write("info", op="b-3", why="ConnectionResetError")
    run.book(run.body("b-3", BOB))

    verdict = run.verdict()

    assert (verdict.clean, verdict.unknown) == (True, 2)


def test_half_an_atomic_batch_is_lost_even_if_nobody_knows_of_it(run):
    rows = [run.body(f"z.{place}", BOB) for place in range(2)]
    run.history.write("invoke", op="z", kind="batch", purpose="batch", path="/api/v1/batches", key="z", expected=[202],
                      body={"atomic": True, "transfers": rows})  # fmt: skip
    run.book(rows[0])

    assert damage(run) == {"lost": 1}
    run.book(rows[1])
    assert damage(run) == {}


def test_a_customer_refused_for_no_reason_of_theirs_is_unexpected(run):
    run.order("b-2", "rejected", "insufficient_funds", debit=BOB)

    assert damage(run) == {"unexpected": 1}


def test_an_account_that_never_held_it_cannot_have_paid_it(run):
    run.order("p-2", debit=POOR, credit=BOB, amount_minor=500)

    assert damage(run)["unexpected"] == 1
    assert damage(run)["books"] == 1


def test_a_cancellation_nobody_asked_for_and_one_that_did_not_hold(run):
    run.order("b-2", "cancelled", "cancelled_by_client", debit=BOB)
    assert damage(run) == {"unexpected": 1}

    for name in ("b-2", "b-1"):
        path = f"/api/v1/transfers/id-{name}/cancel"
        run.history.write("invoke", op=f"{name}-", kind="cancel", purpose="cancel", path=path, expected=[200, 409])
        run.answer(f"{name}-", 200, {"id": f"id-{name}", "status": "cancelled"})
    assert damage(run) == {"unexpected": 1, "bad_answers": 1}


def test_a_way_that_the_states_do_not_allow_is_unexpected(run):
    run.tell("transfer.approved", "id-b-1")

    assert damage(run)["unexpected"] >= 1


def test_an_event_that_was_never_published_is_stuck(run):
    change(run.events, 0, published=False)

    assert damage(run) == {"stuck": 1}


def test_posted_in_another_order_than_accepted_is_out_of_order(run):
    first, second = run.body("b-2", BOB), run.body("b-3", BOB)
    for name, body in (("b-2", first), ("b-3", second)):
        run.ask(name, body)
        run.answer(name)
    run.book(second)
    run.book(first)

    assert damage(run) == {"out_of_order": 1}


def test_orders_under_way_at_the_same_time_have_no_order(run):
    first, second = run.body("b-2", BOB), run.body("b-3", BOB)
    run.ask("b-2", first)
    run.ask("b-3", second)
    run.answer("b-2")
    run.answer("b-3")
    run.book(second)
    run.book(first)

    assert damage(run) == {}


def test_a_balance_changed_by_hand_breaks_the_books(run):
    run.balances[BOB] += 1

    assert damage(run) == {"books": 1}


def test_different_answers_under_one_key_are_bad(run):
    body = run.body("a-1")
    run.ask("a-1=", body, key="a-1")
    run.answer("a-1=", answer={"id": "id-a-1"}, digest="another")

    assert damage(run) == {"bad_answers": 1}


def test_another_body_under_a_used_key_is_to_be_refused_as_such(run):
    run.ask("a-1#", run.body("a-1") | {"amount_minor": 11}, key="a-1", expected=(422,))
    run.answer("a-1#", 422, {"code": "validation_error"})
    run.ask("a-2#", run.body("a-2") | {"amount_minor": 11}, key="a-2", expected=(422,))
    run.answer("a-2#", 202, {"id": "id-a-2"})

    assert damage(run)["bad_answers"] >= 2


def test_accepted_then_404_is_a_bad_answer(run):
    path = "/api/v1/transfers/id-a-1"
    run.history.write("invoke", op="a-1?", kind="look", purpose="wait", path=path, expected=[200])
    run.answer("a-1?", 404, {"code": "not_found"})

    assert damage(run) == {"bad_answers": 1}


def test_an_end_that_was_shown_and_then_changed_is_a_bad_answer(run):
    path = "/api/v1/transfers/id-a-1"
    run.history.write("invoke", op="a-1?", kind="look", purpose="wait", path=path, expected=[200])
    run.answer("a-1?", 200, {"status": "rejected"})

    assert damage(run) == {"bad_answers": 1}


def test_notifications_that_are_missing_false_doubled_or_unsent_are_named(run):
    kept = list(run.notes), list(run.mails)
    del run.notes[0], run.mails[0]
    assert damage(run) == {"notifications_missing": 1}

    run.notes[:], run.mails[:] = kept[0] * 1, kept[1] * 1
    change(run.notes, 0, title="Your transfer of EUR 0.10 was refused.")
    assert damage(run) == {"notifications_false": 1}

    run.notes[:] = [*kept[0], kept[0][0]._replace(id=99)]
    assert damage(run) == {"notifications_false": 2, "notifications_missing": 1}

    run.notes[:] = [kept[0][0]._replace(state="failed"), *kept[0][1:]]
    assert damage(run) == {"notifications_missing": 1}

    run.notes[:] = [*kept[0], kept[0][0]._replace(id=98, event=12345, channel="in_app")]
    assert damage(run) == {"notifications_false": 1}


def test_emails_that_are_all_missing_are_named(run):
    sent = len(run.mails)
    run.mails.clear()
    assert sent
    assert damage(run) == {"notifications_missing": sent}


def test_an_email_that_tells_what_did_not_happen_is_false(run):
    run.mails.append(run.mails[0]._replace(message_id="<by-hand@example.com>"))
    assert damage(run) == {"notifications_false": 1}

    run.mails[-1] = run.mails[0]._replace(title="Your transfer of EUR 0.10 was refused.")
    assert damage(run) == {"notifications_false": 1}

    # The same message again, after a crash: a mailbox folds the two.
    run.mails[-1] = run.mails[0]
    assert damage(run) == {}


def test_poison_that_is_not_on_the_desk_is_missing(run):
    run.faults.append({"kind": "poison", "poison": ["ab" * 32, "ab" * 32, "cd" * 32]})
    run.letters += [Letter(1, "open", "", "undeliverable: rejected", "ab" * 32), Letter(2, "open", "", "", "cd" * 32)]

    assert damage(run) == {"dead_letters_missing": 2}


def test_a_killed_client_leaves_half_a_line_that_the_next_writer_and_every_reader_survive(tmp_path):
    path = tmp_path / "history-load.jsonl"
    first = History(path)
    first.write("invoke", op="a", kind="transfer", path="/", key="a", body={}, expected=[202])
    os.write(os.open(path, os.O_WRONLY | os.O_APPEND), b'{"t":1,"event":"o')
    second = History(path)
    second.write("ok", op="a", status=202, digest="d", answer={"id": "1"})

    record = read(tmp_path)

    assert record.torn_lines == 1
    assert record.operations["a"].accepted


def test_not_now_has_to_be_said_in_a_machines_words():
    kind, body = "application/problem+json", b'{"retryable":true}'

    assert problem_of(503, kind, body, "1") is None
    assert problem_of(202, "application/json", b"{}", None) is None
    for status, content_type, content, retry_after in (
        (503, "text/html", b"<h1>Oops</h1>", "1"),
        (503, kind, b"not json", "1"),
        (503, kind, b"{}", "1"),
        (503, kind, b'{"retryable":false}', "1"),
        (503, kind, body, None),
        (429, kind, body, None),
        (500, kind, body, "1"),
    ):
        assert problem_of(status, content_type, content, retry_after), (status, content_type, content)


def test_mails_are_read_as_django_writes_them_without_a_half_written_one(tmp_path):
    mail = (
        "Subject: Your transfer of EUR 1.00 was made.\nTo: a@example.com\nMessage-ID: <1@x>\n\nText.\nTransfer: t-1\n"
    )
    (tmp_path / "1.log").write_text(f"{mail}\n{'-' * 79}\n{mail.replace('t-1', 't-2')}\n{'-' * 79}\n{mail[:40]}")

    assert [(m.message_id, m.transfer) for m in read_mails(tmp_path)] == [("<1@x>", "t-1"), ("<1@x>", "t-2")]
