"""The webhook calls: what may be registered, who sees it, the secret shown once, and replays."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.test import Client as HttpClient
from django.utils import timezone

from bankcore.messaging.models import AuditEntry, Event
from bankcore.moments import format_moment
from notifications.models import WebhookDelivery, WebhookEndpoint
from tests.api.conftest import CUSTOMER_SCOPES, issue

pytestmark = pytest.mark.django_db
BODY = {"url": "https://hooks.example.com/bank", "event_types": ["transfer.posted", "transfer.rejected"]}


@pytest.fixture
def anna(bank):
    return issue("shop", [*CUSTOMER_SCOPES, "webhooks:read", "webhooks:write"], customer=bank.anna)


@pytest.fixture
def bruno(bank):
    return issue("shop", [*CUSTOMER_SCOPES, "webhooks:read", "webhooks:write"], customer=bank.bruno)


def delete(caller, path):
    return HttpClient().delete(f"/api/v1/{path}", headers={"Authorization": f"Bearer {caller.token}"})


@pytest.fixture
def endpoint(anna):
    return anna.post("webhook-endpoints", BODY).json()


def delivery(endpoint, state="failed", event=1, **fields):
    made = WebhookDelivery.objects.create(
        endpoint_id=endpoint["id"], event=event, type="transfer.posted", transfer=uuid4(), state=state, attempts=12,
        failure="the endpoint answered 500", status_code=500, **fields,
    )  # fmt: skip
    Event.objects.create(
        type="webhook.pending", partition_key="x", subject=str(made.pk), published_at=timezone.now(), attempt=0
    )
    return made


def test_an_endpoint_is_registered_and_its_secret_shown_once(bank, anna):
    answer = anna.post("webhook-endpoints", BODY)

    made = answer.json()
    secret = made.pop("secret")
    assert (answer.status_code, answer["Location"]) == (201, f"/api/v1/webhook-endpoints/{made['id']}")
    assert secret.startswith("whsec_")
    assert len(secret) == 50
    shown = anna.get(f"webhook-endpoints/{made['id']}").json()
    assert shown == made
    assert (made["customer"], made["ordered"], made["state"]) == (str(bank.anna.pk), True, "active")
    assert anna.get("webhook-endpoints").json()["results"] == [made]
    assert AuditEntry.objects.get().action == "webhook.register"
    assert secret not in str(AuditEntry.objects.values())


@pytest.mark.parametrize(
    ("changes", "field", "code"),
    [
        ({"url": "http://hooks.example.com/"}, "url", "invalid"),
        ({"url": "https://10.0.0.1/"}, "url", "invalid"),
        ({"url": "https://[::ffff:169.254.169.254]/"}, "url", "invalid"),
        ({"url": "https://localhost/"}, "url", "invalid"),
        ({"event_types": ["transfer.posted", "transfer.nonsense"]}, "event_types.1", "unknown_event_type"),
        ({"event_types": ["notification.pending"]}, "event_types.0", "unknown_event_type"),
        ({"event_types": []}, "event_types", "too_short"),
        ({"secret": "mine"}, "secret", "unknown_field"),
        ({"ordered": "yes"}, "ordered", "bool_type"),
    ],
)
def test_what_cannot_be_registered_is_named(anna, changes, field, code):
    answer = anna.post("webhook-endpoints", {**BODY, **changes})

    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (400, "validation_error")
    assert [(e["field"], e["code"]) for e in problem["errors"]] == [(field, code)]
    assert WebhookEndpoint.objects.count() == 0


def test_nobody_registers_for_another_and_staff_for_anybody(bank, anna):
    for other in (str(bank.bruno.pk), str(uuid4()), "x"):
        assert anna.post("webhook-endpoints", {**BODY, "customer": other}).status_code == 400
    nobody = issue("nobody", ["webhooks:write"])
    assert nobody.post("webhook-endpoints", BODY).json()["errors"][0]["code"] == "required"

    of_all = bank.as_staff.post("webhook-endpoints", BODY).json()
    brunos = bank.as_staff.post("webhook-endpoints", {**BODY, "customer": str(bank.bruno.pk)}).json()

    assert (of_all["customer"], brunos["customer"]) == (None, str(bank.bruno.pk))
    assert anna.get("webhook-endpoints").json()["results"] == []


def test_a_customer_has_at_most_twenty(anna):
    for _ in range(20):
        assert anna.post("webhook-endpoints", BODY).status_code == 201
    assert anna.post("webhook-endpoints", BODY).json()["errors"][0]["code"] == "too_many"


def test_an_endpoint_of_another_is_not_there(anna, bruno, endpoint):
    made = delivery(endpoint)
    for path in ("", "/deliveries"):
        assert bruno.get(f"webhook-endpoints/{endpoint['id']}{path}").status_code == 404
    body = {"from": "2026-01-01T00:00:00Z", "to": "2030-01-01T00:00:00Z"}
    assert bruno.post(f"webhook-endpoints/{endpoint['id']}/replay", body).status_code == 404
    assert bruno.post(f"webhook-endpoints/{endpoint['id']}/deliveries/{made.pk}/replay").status_code == 404
    assert delete(bruno, f"webhook-endpoints/{endpoint['id']}").status_code == 404
    assert WebhookDelivery.objects.get().state == "failed"


def test_every_call_needs_its_scope(bank, endpoint):
    reader = issue("reader", ["webhooks:read"], customer=bank.anna)
    path = f"webhook-endpoints/{endpoint['id']}"
    assert reader.get(path).status_code == 200
    refused = [
        reader.post("webhook-endpoints", BODY),
        reader.post(f"{path}/replay", {}),
        reader.post(f"{path}/deliveries/1/replay"),
        delete(reader, path),
        bank.as_anna.get("webhook-endpoints"),
        bank.as_anna.get(f"{path}/deliveries"),
    ]
    assert [answer.json()["code"] for answer in refused] == ["scope_missing"] * 6


def test_a_new_secret_is_shown_once_and_the_old_one_stays_for_a_time(anna, endpoint):
    path = f"webhook-endpoints/{endpoint['id']}"

    answer = anna.post(f"{path}/secret", {"keep_old_seconds": 3600})

    made = answer.json()
    new = made.pop("secret")
    assert (answer.status_code, anna.get(path).json()) == (200, made)
    assert (len(new), new != endpoint["secret"]) == (50, True)
    kept = WebhookEndpoint.objects.get()
    assert (kept.secret, kept.previous_secret) == (new, endpoint["secret"])
    assert timedelta(minutes=59) < kept.previous_until - timezone.now() <= timedelta(hours=1)
    assert made["previous_secret_until"] == format_moment(kept.previous_until)
    entry = AuditEntry.objects.get(action="webhook.rotate_secret")
    assert (entry.actor, entry.details["keep_old_seconds"]) == ("shop", 3600)
    assert new not in str(AuditEntry.objects.values())


def test_a_second_rotation_ends_the_oldest_secret_and_0_ends_the_old_one_at_once(anna, endpoint):
    path = f"webhook-endpoints/{endpoint['id']}/secret"

    second = anna.post(path, {}).json()["secret"]
    third = anna.post(path, {}).json()["secret"]
    assert list(WebhookEndpoint.objects.values_list("secret", "previous_secret")) == [(third, second)]
    answer = anna.post(path, {"keep_old_seconds": 0}).json()

    assert answer["previous_secret_until"] is None
    assert list(WebhookEndpoint.objects.values_list("secret", "previous_secret")) == [(answer["secret"], "")]


@pytest.mark.parametrize("seconds", [-1, 7 * 24 * 3600 + 1, "3600", 1.5, None])
def test_how_long_an_old_secret_stays_is_bounded(anna, endpoint, seconds):
    answer = anna.post(f"webhook-endpoints/{endpoint['id']}/secret", {"keep_old_seconds": seconds})

    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "keep_old_seconds")
    assert WebhookEndpoint.objects.get().secret == endpoint["secret"]


def test_nobody_rotates_for_another_or_without_the_scope(bank, anna, bruno, endpoint):
    path = f"webhook-endpoints/{endpoint['id']}/secret"
    reader = issue("shop", [*CUSTOMER_SCOPES, "webhooks:read"], customer=bank.anna)

    assert [bruno.post(path, {}).status_code, reader.post(path, {}).status_code] == [404, 403]
    delete(anna, f"webhook-endpoints/{endpoint['id']}")
    assert anna.post(path, {}).status_code == 404


def test_a_removed_endpoint_is_gone_and_forgets_its_secret(anna, endpoint):
    anna.post(f"webhook-endpoints/{endpoint['id']}/secret", {})
    assert delete(anna, f"webhook-endpoints/{endpoint['id']}").status_code == 204

    assert anna.get(f"webhook-endpoints/{endpoint['id']}").status_code == 404
    assert delete(anna, f"webhook-endpoints/{endpoint['id']}").status_code == 404
    assert list(WebhookEndpoint.objects.values_list("state", "secret", "previous_secret")) == [("deleted", "", "")]


def test_deliveries_are_listed_newest_first_and_by_state(anna, endpoint):
    made = [delivery(endpoint, "failed" if n % 2 else "delivered", event=n) for n in range(5)]
    path = f"webhook-endpoints/{endpoint['id']}/deliveries"

    first = anna.get(f"{path}?page_size=3").json()
    rest = anna.get(first["next"].partition("/api/v1/")[2]).json()
    failed = anna.get(f"{path}?state=failed").json()["results"]

    assert [d["id"] for d in first["results"] + rest["results"]] == [str(d.pk) for d in reversed(made)]
    assert [d["event"] for d in failed] == ["evt_3", "evt_1"]
    assert (failed[0]["status_code"], failed[0]["failure"]) == (500, "the endpoint answered 500")
    assert anna.get(f"{path}?state=lost").status_code == 400


def test_one_delivery_is_sent_again(anna, endpoint):
    made = delivery(endpoint)
    path = f"webhook-endpoints/{endpoint['id']}/deliveries/{made.pk}/replay"

    answer = anna.post(path)

    assert (answer.status_code, answer.json()) == (202, {"replayed": 1, "more": False})
    made.refresh_from_db()
    assert (made.state, made.attempts, made.failure) == ("pending", 0, "")
    assert Event.objects.get(subject=str(made.pk)).published_at is None
    assert anna.post(path).json() == {"replayed": 0, "more": False}
    assert anna.post(f"webhook-endpoints/{endpoint['id']}/deliveries/{made.pk + 1}/replay").status_code == 404
    assert anna.post(f"webhook-endpoints/{endpoint['id']}/deliveries/x/replay").status_code == 404
    assert list(AuditEntry.objects.order_by("id").values_list("action", flat=True)) == [
        "webhook.register",
        "webhook.replay",
    ]


def test_a_span_of_time_is_sent_again(anna, endpoint):
    now = timezone.now()
    old = delivery(endpoint, event=1, created_at=now - timedelta(hours=3))
    failed = delivery(endpoint, event=2, created_at=now - timedelta(hours=1))
    fine = delivery(endpoint, "delivered", event=3, created_at=now - timedelta(hours=1))
    path = f"webhook-endpoints/{endpoint['id']}/replay"
    span = {"from": format_moment(now - timedelta(hours=2)), "to": format_moment(now)}

    assert anna.post(path, {**span, "state": "failed"}).json() == {"replayed": 1, "more": False}
    assert anna.post(path, span).json() == {"replayed": 1, "more": False}

    states = dict(WebhookDelivery.objects.values_list("pk", "state"))
    assert states == {old.pk: "failed", failed.pk: "pending", fine.pk: "pending"}
    assert anna.post(path, {"from": span["from"]}).status_code == 400
    assert anna.post(path, {**span, "to": "yesterday"}).status_code == 400
