"""The seeded bugs. Each takes away one thing that a promise rests on; the test named with it must then fail."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A bug: `before` stands exactly once in the file, and becomes `after`."""

    name: str
    path: str
    before: str
    after: str
    test: str


LEDGER, POSTING = "tests/accounts/test_ledger.py::", "tests/transfers/test_posting.py::"
LOST = "tests/transfers/test_posting_lost.py::"
STATES, SWEEP = "tests/transfers/test_states.py::", "tests/transfers/test_sweep.py::"
RELAY, TASKS = "tests/messaging/test_relay.py::", "tests/messaging/test_batch_tasks.py::"
WORKER = "tests/messaging/test_worker.py::test_poison_ends_on_the_desk_with_its_cause_while_healthy_traffic_goes_on"
TOLD, API = "tests/notifications/test_notifications.py::", "tests/api/test_transfers.py::"
JOURNAL, LEDGER_POST = "accounts/migrations/0002_ledger.py", "accounts/migrations/0004_cheaper_posting.py"

MUTANTS = (
    # -- the ledger ----------------------------------------------------------------------------------------------------
    Mutant(
        "account locks removed", LEDGER_POST,
        "WHERE id = ANY (account_ids) ORDER BY id FOR NO KEY UPDATE", "WHERE id = ANY (account_ids) ORDER BY id",
        LEDGER + "test_opposite_directions_at_once_neither_deadlock_nor_lose_money",
    ),
    Mutant(
        "posted references not looked for", LEDGER_POST,
        "IS NOT NULL ORDER BY r.i)", "IS NOT NULL AND false ORDER BY r.i)",
        LEDGER + "test_a_second_post_of_a_reference_answers_already_posted",
    ),
    Mutant(
        "unique reference removed", "accounts/migrations/0001_initial.py",
        'UniqueConstraint(fields=("reference",), name="journalentry_reference")',
        'UniqueConstraint(fields=("reference", "id"), name="journalentry_reference")',
        LEDGER + "test_the_database_takes_a_reference_once",
    ),
    Mutant(
        "held money spent", LEDGER_POST,
        "posted_minor, held_minor - limit_minor AS lowest", "posted_minor, -limit_minor AS lowest",
        LEDGER + "test_held_money_is_not_spent",
    ),
    Mutant(
        "limit off by one", LEDGER_POST,
        "IF left_over < lowest[d]", "IF left_over < lowest[d] - 1",
        LEDGER + "test_an_overdraft_is_used_to_its_end_and_not_beyond",
    ),
    Mutant(
        "journal not append-only", JOURNAL,
        "BEFORE UPDATE OR DELETE OR TRUNCATE ON accounts_journalline", "BEFORE TRUNCATE ON accounts_journalline",
        LEDGER + "test_the_journal_is_append_only",
    ),
    Mutant(
        "proof blind to balances", "accounts/books.py",
        "WHERE a.posted_minor <> coalesce(s.total, 0)", "WHERE false",
        "tests/accounts/test_books.py::test_balances_that_differ_from_their_lines_are_named",
    ),
    # -- states and stages ---------------------------------------------------------------------------------------------
    Mutant(
        "transfer locks removed", "transfers/states.py",
        " ORDER BY id\n   FOR NO KEY UPDATE\n", " ORDER BY id\n",
        POSTING + "test_deliveries_at_once_in_any_order_post_each_transfer_once",
    ),
    Mutant(
        "state guard of posting skipped", "transfers/posting.py",
        "claim(transfer_ids, status=[Status.APPROVED])", "claim(transfer_ids, status=list(Status))",
        POSTING + "test_a_transfer_that_is_not_approved_is_left_alone",
    ),
    Mutant(
        "guard of the update removed", "transfers/states.py",
        " WHERE t.id = c.id AND t.status = c.was", " WHERE t.id = c.id",
        STATES + "test_move_refuses_a_transfer_that_moved_meanwhile",
    ),
    Mutant(
        "order of the message forgotten", "transfers/states.py",
        "for transfer_id in order if transfer_id in found]", "for transfer_id in sorted(found)]",
        STATES + "test_claim_returns_those_in_the_status_in_the_order_asked_for",
    ),
    Mutant(
        "result not announced", "transfers/events.py",
        "      FROM moved ORDER BY place\n", "      FROM moved WHERE false ORDER BY place\n",
        POSTING + "test_an_approved_transfer_moves_its_money",
    ),
    Mutant(
        "acceptance not announced", "transfers/intake.py",
        "JOIN asked AS r USING (id)\n     ORDER", "JOIN asked AS r USING (id) WHERE false\n     ORDER",
        API + "test_an_order_becomes_a_transfer_and_an_event",
    ),
    Mutant(
        "key not bound to its body", "transfers/intake.py",
        "if bytes(first_fingerprint) != fingerprint:", "if not first_fingerprint:",
        API + "test_a_key_with_another_order_is_refused",
    ),
    Mutant(
        "parked without a dead letter", "transfers/parking.py",
        "    dead_letters.park_work(task=task, subject=str(transfer_id), error=error, attempts=attempts)\n", "",
        POSTING + "test_a_parked_transfer_waits_with_its_traceback",
    ),
    Mutant(
        "lost messages not missed", "bankcore/messaging/stretch.py",
        " or stretch.handled < place.after:", ":",
        LOST + "test_what_was_lost_before_a_stretch_or_in_its_middle_is_posted_in_its_turn",
    ),
    Mutant(
        "debits since the count forgotten", "transfers/risk/recent_debits.py",
        "known.debits += screened[account]", "known.debits += 0",
        "tests/transfers/test_risk.py::test_the_one_over_the_limit_is_held_however_fresh_the_count",
    ),
    Mutant(
        "risk check fails open", "transfers/risk/provider.py",
        'UNAVAILABLE = Opinion(Outcome.REVIEW, "risk_unavailable")',
        'UNAVAILABLE = Opinion(Outcome.APPROVE, "risk_unavailable")',
        "tests/transfers/test_risk_provider.py::test_risk_check_that_fails_open",
    ),
    Mutant(
        "sweep disabled", "transfers/sweep.py",
        "   SET published_at = NULL, due_at = statement_timestamp()", "   SET due_at = statement_timestamp()",
        SWEEP + "test_a_stuck_transfers_event_is_due_again",
    ),
    Mutant(
        "sweep takes what is on its way", "transfers/sweep.py",
        "                AND newest.published_at < statement_timestamp() - %(seconds)s * interval '1 second'))", "))",
        SWEEP + "test_what_was_handed_over_just_now_is_on_its_way_however_old_the_transfer_is",
    ),
    # -- messages ------------------------------------------------------------------------------------------------------
    Mutant(
        "marked before the confirm", "bankcore/messaging/relay.py",
        "            taken = self._publisher().publish(wave)\n",
        "            self._mark(database, [i for message in wave for i in message.event_ids], attempts)\n"
        "            taken = self._publisher().publish(wave)\n",
        RELAY + "test_nothing_is_marked_before_the_broker_confirms",
    ),
    Mutant(
        "due events without their order", "bankcore/messaging/due.py",
        "return sorted(self._page(database, Place()))", "return sorted(self._page(database, Place()), reverse=True)",
        RELAY + "test_each_queue_gets_its_events_in_order",
    ),
    Mutant(
        "a full queue is overtaken", "bankcore/messaging/relay.py",
        "if len(lane) > number and queue not in refused]", "if len(lane) > number]",
        RELAY + "test_a_queue_that_refused_one_gets_none_of_those_behind_it",
    ),
    Mutant(
        "a suspect in company", "bankcore/messaging/relay.py",
        "alone = route.retried_alone and outbox.counted(row.attempt) > 0", "alone = False",
        RELAY + "test_what_failed_before_travels_alone_and_in_order",
    ),
    Mutant(
        "another attempt marked", "bankcore/messaging/relay.py",
        " AND e.attempt = sent.attempt AND", " AND",
        RELAY + "test_a_retry_that_overtakes_the_confirm_is_still_owed",
    ),
    Mutant(
        "returned is taken for sent", "bankcore/messaging/publisher.py",
        "                self._failed.append(self._pending[tag])", "                pass",
        RELAY + "test_a_returned_message_stays_due_until_its_queue_is_back",
    ),
    Mutant(
        "refused is taken for sent", "bankcore/messaging/publisher.py",
        "self._failed.append(self._pending.pop(tag))", "self._pending.pop(tag)",
        RELAY + "test_a_full_queue_leaves_its_events_due_and_in_order",
    ),
    Mutant(
        "early ack", "bankcore/messaging/tasks.py", "    acks_late = True\n", "    acks_late = False\n", WORKER,
    ),
    Mutant(
        "unreadable is acknowledged", "bankcore/messaging/consumer.py",
        '        log.error("undecodable message on %s: %s", message.delivery_info.get("routing_key"), exc)\n'
        "        message.reject_log_error(",
        '        log.error("undecodable message on %s: %s", message.delivery_info.get("routing_key"), exc)\n'
        "        message.ack_log_error(",
        WORKER,
    ),
    Mutant(
        "remote control is obeyed", "bankcore/messaging/remote_control.py",
        "if not settings.REMOTE_CONTROL:", "if settings.REMOTE_CONTROL:",
        "tests/messaging/test_remote_control.py::test_no_command_is_obeyed",
    ),
    Mutant(
        "several consumers on a lane", "bankcore/topology.py",
        'arguments["x-single-active-consumer"] = True', 'arguments["x-single-active-consumer"] = False',
        "tests/messaging/test_standby.py::test_a_killed_workers_partitions_are_taken_over_at_once_and_given_back_in_order",
    ),
    Mutant(
        "retry cap off by one", "bankcore/messaging/tasks.py",
        "attempts < settings.TASK_ATTEMPTS_MAX", "attempts <= settings.TASK_ATTEMPTS_MAX",
        TASKS + "test_a_culprit_comes_due_again_later_and_is_then_parked",
    ),
    Mutant(
        "second half first", "bankcore/messaging/tasks.py",
        "waiting += [chunk[middle:], chunk[:middle]]", "waiting += [chunk[:middle], chunk[middle:]]",
        TASKS + "test_a_bug_in_one_is_isolated_and_the_rest_is_done_in_order",
    ),
    Mutant(
        "an outage is a bug", "bankcore/messaging/pause.py",
        "                if not is_infrastructure(error):\n", "                if error:\n",
        TASKS + "test_infrastructure_is_waited_for_in_place_and_counts_nothing",
    ),
    Mutant(
        "a deadlock is a bug", "bankcore/database.py",
        '"08", "40", "53"', '"08", "53"',
        TASKS + "test_an_outage_is_known_by_its_sqlstate_however_it_is_sorted",
    ),
    Mutant(
        "stop is not listened to", "bankcore/messaging/pause.py",
        "            if is_asked_to_stop():\n", "            if not is_asked_to_stop:\n",
        TASKS + "test_a_worker_that_is_to_stop_gives_the_message_back_untouched",
    ),
    Mutant(
        "backpressure fails open", "bankcore/messaging/backpressure.py",
        "return (UNMEASURED_RETRY_SECONDS if now - known_at > GRACE_SECONDS else None), ", "return None, ",
        "tests/messaging/test_backpressure.py::test_backpressure_fails_closed",
    ),
    # -- telling people ------------------------------------------------------------------------------------------------
    Mutant(
        "told again with each delivery", "notifications/dispatch.py",
        "    ON CONFLICT (event, recipient, channel) DO NOTHING\n", "",
        TOLD + "test_dispatch_tells_once_however_often_it_is_delivered",
    ),
    Mutant(
        "e-mails without a lock", "notifications/delivery.py",
        "AND state = 'pending' ORDER BY id FOR NO KEY UPDATE", "AND state = 'pending' ORDER BY id",
        TOLD + "test_workers_at_once_send_one_email",
    ),
)  # fmt: skip
