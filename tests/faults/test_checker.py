"""Can the verdict fail? One promise after the other is broken on a real stack, and the verdict has to say which.

The order of the tests matters: damage stays, so each asks for what its own act has added.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from compose import local
from compose.gameday.clients import Load
from tests.faults import broken
from tests.faults.bank import Bank
from tests.messaging.broker_view import PATIENCE_SECONDS, eventually

# One partition: whatever can overtake, would. No maintenance worker: nothing sweeps up what was lost.
ROLES = {"web": 1, "relay": 1, "risk": 1, "posting": 1, "notifications": 1}


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    folder, switches = tmp_path_factory.mktemp("history"), tmp_path_factory.mktemp("sabotage")
    environment = {
        "DJANGO_SETTINGS_MODULE": "tests.faults.sabotage",
        "SABOTAGE": str(switches),
        "PARTITIONS": "1",
        "STUCK_SECONDS": "3600",
    }
    with pytest.MonkeyPatch.context() as patch:
        # Servers of its own: its queues are not as they should be, and its books will not balance.
        for name in ("DATABASE_URL", "BROKER_URL", "REDIS_URL", "EMAIL_URL"):
            patch.delenv(name, raising=False)
        with local.stack(name="broken", roles=ROLES, environment=environment) as stack:
            yield Bank(stack, folder)


@pytest.fixture
def sabotage(bank: Bank) -> Iterator["Switches"]:
    switches = Switches(Path(bank.stack["environment"]["SABOTAGE"]))
    yield switches
    switches.off()


class Switches:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on(self, act: str) -> None:
        (self.folder / act).touch()

    def off(self) -> None:
        for switch in self.folder.iterdir():
            switch.unlink()


@pytest.fixture(scope="module")
def accounts(bank: Bank) -> list[str]:
    return bank.open_accounts(4)


def test_a_mixed_load_on_a_sound_build_is_clean(bank):
    load = Load([bank.stack["api"]], bank.stack["environment"], 11, bank.folder, 30.0)
    load.start()
    assert load.probe(seconds_max=PATIENCE_SECONDS)
    assert eventually(lambda: load.counts()["accepted"] >= 100), load.counts()
    load.shift_clock(-7200)
    assert eventually(lambda: load.counts()["accepted"] >= 200), load.counts()
    counts = load.stop()
    assert bank.drained()

    verdict = bank.verdict(whole=True)

    assert (verdict.clean, verdict.unknown) == (True, 0), verdict.details
    assert verdict.accepted == counts["accepted"] + 1
    assert counts["refused"] > 0


def test_acknowledged_before_the_work_a_killed_worker_loses_it(bank, accounts, sabotage):
    for lost in (False, True):
        if lost:
            sabotage.on(broken.EARLY_ACK)
            # A worker looks at this when it starts.
            bank.kill("posting")
        with bank.locked("accounts_account", accounts[0]):
            transfer = bank.order(accounts[0], accounts[1])
            assert bank.waits_for_a_lock()
            bank.kill("posting")

        # Late acks bring it back to the next worker: that is what makes the other case the sabotage's doing.
        assert bank.becomes(transfer, "posted", 5 if lost else PATIENCE_SECONDS) is not lost

    verdict = bank.verdict()
    assert (verdict.lost + verdict.stuck, verdict.duplicated, verdict.clean) == (1, 0, False)


def test_marked_before_the_broker_has_it_a_cut_connection_loses_it(bank, accounts, sabotage):
    stuck = bank.verdict().stuck
    sabotage.on(broken.MARK_FIRST)
    bank.cut_connections()
    transfer = bank.order(accounts[0], accounts[1])
    assert bank.is_published(transfer, "transfer.accepted")
    sabotage.off()

    assert not bank.becomes(transfer, "posted", 5)
    assert bank.verdict().stuck == stuck + 1
    # Those that come after it are posted: it is this one that was lost, not the broker.
    assert bank.becomes(bank.order(accounts[0], accounts[1]), "posted")


NOTHING_WAS_LOST = """
CREATE OR REPLACE FUNCTION transfers_lost_before(ids uuid[], its_status text, at_most int, up_to uuid)
RETURNS SETOF uuid LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN; END $$
"""


def test_parallel_workers_on_an_ordered_lane_post_out_of_order(bank, accounts):
    assert bank.verdict().out_of_order == 0
    # Whoever posts the second would take the first along: order has two guards, and both have to be gone.
    bank.change(NOTHING_WAS_LOST)
    with bank.another_worker("posting") as other:
        workers = [*bank.pids("posting"), other]
        bank.freeze(workers)
        first = bank.order(accounts[2], accounts[3])
        assert bank.is_published(first, "transfer.approved")
        second = bank.order(accounts[2], accounts[3])
        assert bank.is_published(second, "transfer.approved")
        with bank.locked("transfers_transfer", first):
            bank.thaw(workers)
            assert bank.becomes(second, "posted")
        assert bank.becomes(first, "posted")

    assert bank.verdict().out_of_order == 1


def test_an_email_about_what_did_not_happen_is_false(bank, sabotage):
    poor = bank.open_accounts(2, opening_minor=10)
    sabotage.on(broken.TALL_TALES)
    transfer = bank.order(poor[0], poor[1])
    assert bank.becomes(transfer, "rejected")
    assert eventually(lambda: bank.rows("SELECT FROM notifications_notification WHERE transfer = %s", transfer))

    # Once as the bank's own record of it, on two channels, and once as the e-mail itself.
    assert eventually(lambda: bank.verdict().notifications_false >= 3)
    verdict = bank.verdict()
    assert verdict.notifications_false == 3
    assert any("e-mail" in named for named in verdict.details["notifications_false"])


def test_without_unique_reference_and_state_guard_a_duplicate_posts_twice(bank, accounts, sabotage):
    assert bank.verdict().duplicated == 0
    transfer = bank.order(accounts[0], accounts[1])
    assert bank.becomes(transfer, "posted")
    bank.send("posting-0", "transfers.post_transfers", [transfer])
    # Behind it in the queue: once this is posted, the duplicate has met the guards that are about to go.
    assert bank.becomes(bank.order(accounts[0], accounts[1]), "posted")
    entries = "SELECT count(*) FROM accounts_journalentry WHERE reference = %s"
    bank.change("ALTER TABLE accounts_journalentry DROP CONSTRAINT journalentry_reference")
    bank.change("DROP TRIGGER transfer_transition ON transfers_transfer")
    ((post,),) = bank.rows("SELECT pg_get_functiondef('ledger_post'::regproc)")
    assert "IS NOT NULL ORDER BY r.i" in post
    bank.change(post.replace("IS NOT NULL ORDER BY r.i", "IS NOT NULL AND false ORDER BY r.i"))
    assert bank.rows(entries, f"transfer:{transfer}") == [(1,)]

    sabotage.on(broken.NO_GUARD)
    bank.send("posting-0", "transfers.post_transfers", [transfer])
    assert eventually(lambda: bank.rows(entries, f"transfer:{transfer}") == [(2,)])

    verdict = bank.verdict()

    assert (verdict.duplicated, verdict.books) == (1, "violated")


def test_a_balance_changed_by_hand_does_not_balance(bank, accounts):
    bank.change("UPDATE accounts_account SET posted_minor = posted_minor + 1 WHERE id = %s", accounts[3])

    verdict = bank.verdict(whole=True)

    assert verdict.books == "violated"
    named = verdict.details["books"]
    assert any(accounts[3] in what for what in named)
    assert any(what.startswith("prove_books") for what in named)
