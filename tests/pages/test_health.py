"""What machines ask: alive, ready, and the numbers, whether the database is there or not."""

import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.db import OperationalError, connection
from django.test import Client
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from bankcore import health
from bankcore.messaging import seals
from bankcore.messaging.models import DeadLetter, Event
from notifications.models import Notification, SweepPosition, WebhookDelivery
from tests.pages.conftest import make_transfer

DATABASE_METRICS = {
    "bankcore_backlog_transfers",
    "bankcore_oldest_seconds",
    "bankcore_outbox_events",
    "bankcore_outbox_oldest_seconds",
    "bankcore_dead_letters",
    "bankcore_dead_letters_oldest_seconds",
    "bankcore_books_violations",
    "bankcore_books_proved_timestamp_seconds",
    "bankcore_books_proof_seconds",
    "bankcore_books_full_proved_timestamp_seconds",
    "bankcore_seal_lag_seconds",
    "bankcore_seal_lag_rows",
    "bankcore_notifications_oldest_seconds",
    "bankcore_notifications_sweep_lag_seconds",
    "bankcore_clock_ahead_seconds",
}


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "DATABASE_CACHE_SECONDS", 0.0)


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OperationalError("connection refused by secret-host")

    monkeypatch.setattr(health, "_limit_statements", refuse)


def scrape(client: Client) -> dict[tuple[str, str], float]:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    samples = [s for family in text_string_to_metric_families(answer.content.decode()) for s in family.samples]
    return {(s.name, ",".join(s.labels.values())): s.value for s in samples}


def test_livez_asks_nobody(client: Client) -> None:
    answer = client.get("/livez")

    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.django_db
def test_ready_with_the_database_and_its_migrations(client: Client) -> None:
    answer = client.get("/readyz")

    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "reasons": []})
    assert "no-store" in answer.headers["Cache-Control"]


@pytest.mark.django_db
def test_not_ready_without_a_migration(client: Client) -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'transfers' AND name = '0001_initial'")

    answer = client.get("/readyz")

    assert answer.status_code == 503
    assert answer.json()["reasons"] == ["migration_missing:transfers.0001_initial"]


@pytest.mark.django_db
def test_not_ready_without_the_database(client: Client, away: None) -> None:
    answer = client.get("/readyz")

    assert answer.status_code == 503
    assert answer.json() == {"status": "unavailable", "reasons": ["database_unavailable"]}


@pytest.mark.django_db
def test_metrics_tell_what_the_database_knows(client: Client, rows: SimpleNamespace) -> None:
    make_transfer(rows)

    found = scrape(client)

    assert {name for name, _ in found} >= DATABASE_METRICS
    backlog = {stage: found["bankcore_backlog_transfers", stage] for stage in health.STAGE_OF_STATUS.values()}
    assert backlog == {"risk": 2, "posting": 0, "review": 1, "parked": 1, "scheduled": 0}
    assert found["bankcore_oldest_seconds", "posting"] == 0
    assert 0 <= found["bankcore_oldest_seconds", "risk"] < 60
    assert found["bankcore_outbox_events", ""] == Event.objects.filter(published_at=None).count()
    assert found["bankcore_dead_letters", "open"] == 1
    assert found["bankcore_dead_letters", "discarded"] == 0
    assert found["bankcore_books_violations", "entries_balanced"] == 0
    assert abs(time.time() - found["bankcore_books_proved_timestamp_seconds", ""]) < 60
    assert abs(time.time() - found["bankcore_books_full_proved_timestamp_seconds", ""]) < 60
    assert found["bankcore_books_proof_seconds", "full"] == 0
    assert found["bankcore_seal_lag_seconds", "messaging_event"] == float("inf")
    assert found["bankcore_seal_lag_rows", "messaging_event"] > 0


@pytest.mark.django_db
def test_metrics_tell_how_long_who_waits_to_be_told(client: Client, rows: SimpleNamespace) -> None:
    def ages() -> list[int]:
        found, name = scrape(client), "bankcore_notifications_oldest_seconds"
        told = (found[name, "email"], found[name, "webhook"], found["bankcore_notifications_sweep_lag_seconds", ""])
        # To the hour, so that a slow machine changes nothing.
        return [round(age / 3600) for age in told]

    now, hour = timezone.now(), timedelta(hours=1)
    first = Event.objects.earliest("id").pk
    Notification.objects.create(
        event=first, recipient=rows.customer.pk, channel="email", transfer=rows.transfer.pk, title="Paid", text="Paid.",
        state="pending",
    )  # fmt: skip
    Notification.objects.filter(state="pending").update(created_at=now - 2 * hour)
    Notification.objects.filter(state="delivered").update(created_at=now - 9 * hour)
    WebhookDelivery.objects.update(created_at=now - 3 * hour)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE messaging_event DISABLE TRIGGER USER")
        cursor.execute("UPDATE messaging_event SET created_at = %s WHERE id = %s", [now - 4 * hour, first])

    SweepPosition.objects.update_or_create(id=1, defaults={"event": first - 1})
    assert ages() == [2, 3, 4]
    Notification.objects.update(state="delivered")
    WebhookDelivery.objects.update(state="failed")
    SweepPosition.objects.update(event=first)
    assert ages() == [0, 0, 0]
    SweepPosition.objects.update(event=Event.objects.latest("id").pk)
    assert scrape(client)["bankcore_notifications_sweep_lag_seconds", ""] == 0


@pytest.mark.django_db(transaction=True)
def test_a_chain_that_is_sealed_has_no_lag(client: Client, rows: SimpleNamespace) -> None:
    seals.seal(seals.CHAINS)

    found = scrape(client)
    assert found["bankcore_seal_lag_seconds", "messaging_event"] == 0
    assert found["bankcore_seal_lag_rows", "messaging_event"] == 0

    Event.objects.create(type="transfer.posted", partition_key="key", subject="new")
    found = scrape(client)
    assert 0 < found["bankcore_seal_lag_seconds", "messaging_event"] < 60
    assert found["bankcore_seal_lag_rows", "messaging_event"] == 1


@pytest.mark.django_db
def test_metrics_answer_without_the_database(client: Client, away: None) -> None:
    found = {name for name, _ in scrape(client)}

    assert not found & DATABASE_METRICS
    assert any(name.startswith("python_info") for name in found)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "headers", [{"REMOTE_ADDR": "203.0.113.7"}, {"REMOTE_ADDR": ""}, {"HTTP_X_FORWARDED_FOR": "203.0.113.7"}]
)
def test_metrics_are_not_there_for_strangers(client: Client, headers: dict[str, str]) -> None:
    assert client.get("/metrics", **headers).status_code == 404  # type: ignore[arg-type]


@pytest.mark.django_db
def test_web_processes_add_their_numbers_up(
    client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path_factory.mktemp("metrics")))

    names = {name for name, _ in scrape(client)}

    assert "bankcore_outbox_events" in names
    assert "python_info" not in names


@pytest.mark.django_db
def test_the_database_is_asked_once_a_second(
    client: Client, monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: object
) -> None:
    monkeypatch.setattr(health, "DATABASE_CACHE_SECONDS", 60.0)
    collector = health.DatabaseCollector()
    first = collector.collect()

    with django_assert_num_queries(0):  # type: ignore[operator]
        assert collector.collect() is first


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("sql", "index"),
    [
        (health._OUTBOX, "lot_due"),
        (health._OPEN_DEAD_LETTERS, "deadletter_open"),
    ],
)
def test_the_questions_use_the_small_indexes(sql: str, index: str, accounts: SimpleNamespace) -> None:
    with connection.cursor() as cursor:
        # The tables are tiny here; what counts is that the planner may use the index, not that it must.
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN {sql}")
        plan = "\n".join(line for (line,) in cursor.fetchall())

    assert index in plan
    assert "Seq Scan" not in plan
    # Events are read by ranges of their ids, within the lots.
    assert "_pkey" not in plan.replace("messaging_event_pkey", "")


def test_the_first_page_is_the_documentation(client: Client) -> None:
    answer = client.get("/")

    assert (answer.status_code, answer.headers["Location"]) == (302, "/api/docs/")


def test_documentation_needs_no_other_host(client: Client) -> None:
    page = client.get("/api/docs/").content.decode()

    assert "swagger-ui" in page
    assert "https://" not in page
    assert "http://" not in page


@pytest.mark.django_db
def test_closed_dead_letters_are_counted_by_state(client: Client) -> None:
    for state in ("open", "replayed", "replayed"):
        DeadLetter.objects.create(cause="Boom", state=state)

    found = scrape(client)

    counts = [found["bankcore_dead_letters", state] for state in ("open", "replayed", "discarded")]
    assert counts == [1, 2, 0]


@pytest.mark.django_db
def test_the_age_of_the_oldest_open_dead_letter_is_a_metric(client: Client) -> None:
    now = timezone.now()
    for state, hours in (("discarded", 9), ("open", 2), ("open", 1)):
        DeadLetter.objects.create(cause="Boom", state=state, created_at=now - timedelta(hours=hours))

    assert 7200 <= scrape(client)["bankcore_dead_letters_oldest_seconds", ""] < 7300


@pytest.mark.django_db
@pytest.mark.parametrize("ahead", [0, 3600, -3600])
def test_a_clock_that_is_not_the_databases_is_told(client: Client, monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    monkeypatch.setattr(health, "time", SimpleNamespace(time=lambda: time.time() + ahead, monotonic=time.monotonic))

    assert scrape(client)["bankcore_clock_ahead_seconds", ""] == pytest.approx(ahead, abs=2)
