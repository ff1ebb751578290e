"""Migrations beside the work: they take as long as the tables are large and as others' transactions last."""

import threading
import time

import pytest
from django.core.management import call_command
from django.db import connection

from bankcore.database import open_session
from tests.messaging.broker_view import eventually

BUILDING = "SELECT count(*) FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting%'"
VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'webhookdelivery_in_hand'::regclass"


@pytest.mark.django_db(transaction=True)
def test_an_index_that_is_built_beside_the_work_waits_for_a_long_transaction():
    call_command("migrate", "notifications", "0008", verbosity=0)
    with open_session("a long proof") as proof, open_session("a look") as look, connection.cursor() as cursor:
        proof.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        proof.execute("SELECT count(*) FROM messaging_event")
        waited = []

        def end_the_proof():
            waited.append(eventually(lambda: look.execute(BUILDING).fetchone()[0]))
            # Longer than a statement, or a wait for a lock, may last in this session.
            time.sleep(1.0)
            proof.execute("ROLLBACK")

        thread = threading.Thread(target=end_the_proof)
        thread.start()
        cursor.execute("SET lock_timeout = '300ms'")
        cursor.execute("SET statement_timeout = '600ms'")
        try:
            call_command("migrate", "notifications", verbosity=0)
        finally:
            thread.join()

        cursor.execute(VALID)
        assert (waited, cursor.fetchall()) == ([1], [(True,)])
        cursor.execute("SELECT current_setting('statement_timeout'), current_setting('lock_timeout')")
        assert cursor.fetchall() == [("30s", "10s")]


FUNCTION = "SELECT to_regprocedure('transfers_lost_before(uuid[], text, int)')::oid"


@pytest.mark.django_db(transaction=True)
def test_what_workers_of_the_release_before_call_is_there_all_the_time():
    """One that is dropped and made anew is another one, and fails who has just looked the first one up."""
    found = []
    with open_session("a worker") as worker:
        for target in ("0008", "0009", "0008", "0009"):
            call_command("migrate", "transfers", target, verbosity=0)
            found += worker.execute(FUNCTION).fetchone()
    call_command("migrate", verbosity=0)

    assert found == found[:1] * 4
    assert found[0]
