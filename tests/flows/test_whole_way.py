"""Real transfers through real processes: what a client, a customer and an operator see of them."""

import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.flows.conftest import Bank
from tests.messaging.broker_view import confirming, eventually


def test_a_transfer_travels_the_whole_way(bank: Bank, books_balance: Callable[[], None]) -> None:
    payer, payee = bank.accounts[0], bank.accounts[2]
    before = bank.balance(payer), bank.balance(payee)

    transfer = bank.ended(bank.send(payer, payee, 1234, reference="rent")["id"])

    assert (transfer["status"], transfer["status_reason"], transfer["amount_minor"]) == ("posted", None, 1234)
    assert (bank.balance(payer), bank.balance(payee)) == (before[0] - 1234, before[1] + 1234)
    events = bank.rows("SELECT type FROM messaging_event WHERE subject = %s ORDER BY id", transfer["id"])
    assert [row[0] for row in events] == ["transfer.accepted", "transfer.approved", "transfer.posted"]
    entry = bank.client.get(f"accounts/{payer}/entries").json()["results"][0]
    assert (entry["side"], entry["amount_minor"], entry["balance_after_minor"]) == ("D", 1234, before[0] - 1234)
    books_balance()


def test_both_customers_are_told_once(bank: Bank) -> None:
    payer, payee = bank.accounts[0], bank.accounts[20]  # The seed gives both in-app, and e-mail as well.

    transfer = bank.ended(bank.send(payer, payee, 77)["id"])

    sql = (
        "SELECT channel, state, title FROM notifications_notification WHERE transfer = %s"
        " ORDER BY channel DESC, title DESC"
    )
    expected = [
        ("in_app", "delivered", "Your transfer of 0.77 EUR was made."),
        ("in_app", "delivered", "You received 0.77 EUR."),
        ("email", "delivered", "Your transfer of 0.77 EUR was made."),
        ("email", "delivered", "You received 0.77 EUR."),
    ]
    eventually(lambda: sorted(bank.rows(sql, transfer["id"])) == sorted(expected))
    assert sorted(bank.rows(sql, transfer["id"])) == sorted(expected)  # The list tells more than a False.
    mails = Path(bank.stack["mail"])
    assert sum(m.read_text().count(f"Transfer: {transfer['id']}") for m in mails.glob("*")) == 2


def test_too_little_money_is_a_rejection_and_moves_nothing(bank: Bank) -> None:
    payer, payee = bank.accounts[3], bank.accounts[4]
    before = bank.balance(payer), bank.balance(payee)

    transfer = bank.ended(bank.send(payer, payee, before[0] + 1)["id"])

    assert (transfer["status"], transfer["status_reason"]) == ("rejected", "insufficient_funds")
    assert (bank.balance(payer), bank.balance(payee)) == before


def test_a_large_transfer_waits_for_a_person(bank: Bank) -> None:
    transfer = bank.ended(bank.send(bank.accounts[5], bank.accounts[6], 1_000_000)["id"])

    assert transfer["status"] == "in_review"
    reviews = bank.rows("SELECT reasons, decision FROM transfers_review WHERE transfer_id = %s", transfer["id"])
    assert reviews == [(["amount_over_limit"], "")]


def test_fifty_simultaneous_repeats_make_one_transfer(bank: Bank) -> None:
    key, body = str(uuid4()), bank.order(bank.accounts[7], bank.accounts[8], 5)

    def send(_: int) -> httpx.Response:
        return bank.client.post("transfers", json=body, headers={"Idempotency-Key": key})

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(send, range(50)))

    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 49
    assert bank.rows("SELECT count(*) FROM transfers_transfer WHERE idempotency_key = %s", key) == [(1,)]


def test_a_chain_posts_in_acceptance_order(bank: Bank) -> None:
    """Each transfer of the chain empties the account that the one before it filled: any other order is refused."""
    payer, others = bank.accounts[10], bank.accounts[11:16]
    batch = [bank.order(payer, others[i % 5], 1 + i) for i in range(300)]

    batch_id = bank.send_batch({"atomic": True, "transfers": batch})

    assert bank.batch_ended(batch_id) == {"posted": 300}
    lines = bank.rows(
        "SELECT amount_minor FROM accounts_journalline WHERE account_id = %s AND side = 'D' ORDER BY number", payer
    )
    assert [row[0] for row in lines] == list(range(1, 301))


def test_killed_workers_and_relay_lose_nothing_and_post_nothing_twice(
    bank: Bank, books_balance: Callable[[], None]
) -> None:
    batches = []
    for number in range(8):
        orders = [
            bank.order(bank.accounts[20 + (i % 10)], bank.accounts[30 + ((i + number) % 10)], 1) for i in range(1000)
        ]
        batches.append(bank.send_batch({"atomic": True, "transfers": orders}))
        role = ("posting", "risk", "relay", "notifications")[number % 4]
        victim = eventually(lambda role=role: bank.pids(role))[0]
        os.kill(victim, signal.SIGKILL)
        assert eventually(lambda role=role, victim=victim: victim not in bank.pids(role))

    ended = [bank.batch_ended(batch) for batch in batches]

    assert ended == [{"posted": 1000}] * 8
    twice = bank.rows("SELECT reference FROM accounts_journalentry GROUP BY reference HAVING count(*) > 1")
    assert twice == []
    books_balance()


def test_a_poisoned_queue_ends_on_the_desk_and_the_worker_lives(bank: Bank) -> None:
    assert eventually(bank.is_complete)
    before = {role: bank.pids(role) for role in ("risk", "posting", "notifications", "maintenance")}
    bodies = [
        (b"{not json", "application/json", {"task": "transfers.post_transfers", "id": "1"}),
        (b'[["x"]]', "application/json", {"task": "transfers.post_transfers", "id": "2"}),
        (b"[[], {}, {}]", "application/json", {"task": "no.such_task", "id": "3"}),
        (b'[[["not-a-uuid-list", null]], {}, {}]', "application/json", {"task": "transfers.post_transfers", "id": "4"}),
        (b'[[[]], {"x": 1}, {}]', "application/json", {"task": "transfers.post_transfers", "id": "5"}),
        (b"\x80\x04.", "application/x-python-serialize", {"task": "transfers.post_transfers", "id": "6"}),
        (b"hello", "text/plain", {}),
    ]
    marker = str(uuid4())
    with confirming(bank.stack["broker_url"]) as connection:
        channel = connection.channel()
        for body, content_type, headers in bodies:
            message = channel.prepare_message(
                body, content_type=content_type, content_encoding="utf-8", headers={**headers, "marker": marker}
            )
            channel.basic_publish(message, exchange="bank", routing_key="posting-0")

    sql = "SELECT count(*) FROM messaging_deadletter WHERE headers->>'marker' = %s"
    assert eventually(lambda: bank.rows(sql, marker) == [(len(bodies),)]), bank.rows(sql, marker)
    assert {role: bank.pids(role) for role in before} == before
    assert bank.ended(bank.send(bank.accounts[0], bank.accounts[1], 1)["id"])["status"] == "posted"


def test_a_message_cannot_run_a_scheduled_transfer_early(bank: Bank) -> None:
    transfer = bank.send(bank.accounts[0], bank.accounts[1], 9, execute_on="2999-01-01")
    body = json.dumps([[[transfer["id"]]], {}, {}]).encode()
    headers = {"task": "transfers.check_risk", "id": str(uuid4())}
    with confirming(bank.stack["broker_url"]) as connection:
        channel = connection.channel()
        message = channel.prepare_message(
            body, content_type="application/json", content_encoding="utf-8", headers=headers
        )
        channel.basic_publish(message, exchange="bank", routing_key="risk-0")

    # Behind the forged message on the same worker, so it has been dealt with when this one is posted.
    later = [bank.ended(bank.send(bank.accounts[n], bank.accounts[n + 1], 1)["id"])["status"] for n in range(8)]

    assert later == ["posted"] * 8
    assert bank.client.get(f"transfers/{transfer['id']}").json()["status"] == "scheduled"


def test_messages_that_the_broker_lost_are_sent_again(bank: Bank) -> None:
    """Purged between relay and worker: the database still knows what is owed."""
    assert eventually(bank.is_complete)
    workers = bank.pids("posting")
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    transfer = bank.send(bank.accounts[0], bank.accounts[1], 3)
    published = "SELECT count(*) FROM messaging_event WHERE subject = %s AND published_at IS NOT NULL"
    assert eventually(lambda: bank.rows(published, transfer["id"]) == [(2,)])
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    with confirming(bank.stack["broker_url"]) as connection:
        for partition in range(4):
            connection.channel().queue_delete(f"posting-{partition}")

    assert bank.ended(transfer["id"])["status"] == "posted"


def test_who_was_to_be_told_is_told_when_the_broker_lost_the_message(bank: Bank) -> None:
    """Purged between relay and dispatch, where no transfer waits for anything any more."""
    assert eventually(bank.is_complete)
    workers = bank.pids("notifications")
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    transfer = bank.send(bank.accounts[0], bank.accounts[1], 3)
    published = (
        "SELECT id FROM messaging_event WHERE subject = %s AND type = 'transfer.posted' AND published_at < now()"
    )
    assert eventually(lambda: bank.rows(published, transfer["id"]))
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    with confirming(bank.stack["broker_url"]) as connection:
        connection.channel().queue_delete("notifications")

    told = "SELECT count(*) FROM notifications_notification WHERE transfer = %s AND channel = 'in_app'"
    assert eventually(lambda: bank.rows(told, transfer["id"]) != [(0,)])


def test_metrics_of_the_contract_are_scraped(bank: Bank) -> None:
    bank.ended(bank.send(bank.accounts[0], bank.accounts[1], 1)["id"])

    expected = {
        'bankcore_transfers_total{reason="",status="posted"}',
        'bankcore_stage_seconds_bucket{le="0.05",stage="accept"}',
        'bankcore_stage_seconds_count{stage="risk"}',
        'bankcore_stage_seconds_count{stage="post"}',
        'bankcore_stage_seconds_count{stage="end_to_end"}',
        'bankcore_batch_size_count{stage="post"}',
        'bankcore_backlog_transfers{stage="posting"}',
        'bankcore_oldest_seconds{stage="risk"}',
        "bankcore_outbox_events",
        "bankcore_outbox_oldest_seconds",
        'bankcore_admission_total{decision="accepted"}',
        'bankcore_dead_letters{state="open"}',
        'bankcore_notifications_total{channel="in_app",outcome="delivered"}',
        'bankcore_books_violations{check="balance_differs"}',
        "bankcore_books_proved_timestamp_seconds",
        'bankcore_books_violations{check="sealed_row_changed"}',
        'bankcore_books_proof_seconds{kind="full"}',
        'bankcore_seal_lag_seconds{chain="accounts_journalline"}',
        'bankcore_seal_lag_rows{chain="messaging_auditentry"}',
        'bankcore_notifications_oldest_seconds{channel="webhook"}',
        "bankcore_notifications_sweep_lag_seconds",
        "bankcore_retries_total",
    }

    def missing() -> set[str]:
        page = ""
        for url in bank.stack["metrics"]:
            # One that was killed before may not be back yet.
            with suppress(httpx.TransportError):
                page += httpx.get(url).text
        return {name for name in expected if name not in page}

    # Some are measured only now and then.
    eventually(lambda: not missing())
    assert missing() == set()


def test_each_role_signs_in_at_the_broker_as_itself_and_is_refused_nothing(bank: Bank) -> None:
    if not bank.stack["broker_api_url"]:
        pytest.skip("the broker is no RabbitMQ")
    assert eventually(bank.is_complete)
    assert bank.ended(bank.send(bank.accounts[0], bank.accounts[1], 1)["id"])["status"] == "posted"

    def users() -> set[str]:
        return {connection["user"] for connection in httpx.get(f"{bank.stack['broker_api_url']}connections").json()}

    roles = {"relay", "risk", "posting", "notifications", "maintenance", "flower"}
    # The statistics follow within seconds; the tests themselves sign in as somebody else.
    assert eventually(lambda: roles <= users()), users()
    assert eventually(lambda: users() == roles), users()
    log = (Path(bank.stack["logs"]) / "rabbitmq.log").read_text(errors="replace")
    assert [line for line in log.splitlines() if "refused for user" in line] == []


def test_flower_asks_who_is_there(bank: Bank) -> None:
    for page in ("workers", "metrics", "api/workers"):
        assert httpx.get(f"{bank.stack['flower']}/{page}").status_code == 401, page
    user = json.loads(Path(bank.stack["credentials"]).read_text())["flower"]

    def workers() -> str:
        signed_in = httpx.get(f"{bank.stack['flower']}/workers", auth=(user["username"], user["password"]))
        assert signed_in.status_code == 200
        return signed_in.text

    # It hears of a new worker with its next heartbeat.
    assert eventually(lambda: "posting.0" in workers())
