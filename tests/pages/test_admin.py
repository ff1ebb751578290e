"""Every staff page opens, what is read-only stays so, and nothing counts a whole table."""

from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group, Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.html import escape

from accounts import books as ledger_books
from accounts.models import Account, ApiToken, Customer, JournalEntry, JournalLine, Proof
from accounts.proofs import meaning_of
from bankcore.messaging import seal_checks
from bankcore.messaging.models import AuditEntry, BreakerSwitch, DeadLetter, Event
from bankcore.pages import COUNT_MAX, BoundedPaginator, ReadOnlyAdmin
from notifications.models import Notification, Subscription, WebhookDelivery, WebhookEndpoint
from tests.pages.conftest import make_transfer
from transfers import books as transfer_books
from transfers.models import Batch, DeniedAccount, Review, Transfer

READ_ONLY = [
    Account,
    JournalEntry,
    JournalLine,
    Proof,
    Event,
    DeadLetter,
    AuditEntry,
    BreakerSwitch,
    Notification,
    WebhookDelivery,
    Batch,
    Transfer,
    Review,
]
# Made and removed by the API; staff only switch them off and on.
SWITCHED = [WebhookEndpoint]
EDITABLE = [Customer, Subscription, DeniedAccount, ApiToken, User, Group]
pytestmark = pytest.mark.django_db


def page(model: type[Any], kind: str, *args: Any) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{kind}", args=args)


def test_every_model_has_a_page() -> None:
    assert set(READ_ONLY + SWITCHED + EDITABLE) == set(admin.site._registry)


@pytest.mark.parametrize("model", READ_ONLY + SWITCHED + EDITABLE)
def test_every_list_and_every_object_open(model: type[Any], desk: Client, rows: SimpleNamespace) -> None:
    Group.objects.create(name="Desk")
    first = model.objects.first()

    assert desk.get(page(model, "changelist")).status_code == 200
    assert desk.get(page(model, "changelist"), {"q": str(first.pk)}).status_code == 200
    assert desk.get(page(model, "changelist"), {"q": "nothing like it"}).status_code == 200
    assert desk.get(page(model, "change", first.pk)).status_code == 200
    assert desk.get(page(model, "history", first.pk)).status_code == 200


@pytest.mark.parametrize("model", READ_ONLY + SWITCHED + EDITABLE)
def test_a_list_without_rows_opens(model: type[Any], desk: Client) -> None:
    assert desk.get(page(model, "changelist")).status_code == 200


@pytest.mark.parametrize("model", EDITABLE)
def test_what_may_be_added_has_a_form(model: type[Any], desk: Client) -> None:
    assert desk.get(page(model, "add")).status_code == 200


@pytest.mark.parametrize("model", READ_ONLY)
def test_read_only_refuses_add_change_and_delete(model: type[Any], desk: Client, rows: SimpleNamespace) -> None:
    first = model.objects.first()
    before = list(model.objects.values())

    assert isinstance(admin.site._registry[model], ReadOnlyAdmin)
    assert desk.post(page(model, "add"), {}).status_code == 403
    assert desk.post(page(model, "change", first.pk), {"status": "posted"}).status_code == 403
    assert desk.post(page(model, "delete", first.pk), {"post": "yes"}).status_code == 403
    assert list(model.objects.values()) == before


@pytest.mark.parametrize("model", [Transfer, Review, Account, JournalLine, DeadLetter, ApiToken])
def test_a_longer_list_asks_no_more_questions(model: type[Any], desk: Client, rows: SimpleNamespace) -> None:
    desk.get(page(model, "changelist"))
    with CaptureQueriesContext(
        connection,
    ) as few:
        desk.get(page(model, "changelist"))
    for _ in range(5):
        transfer = make_transfer(rows, status="in_review")
        Review.objects.create(transfer=transfer)
        Account.objects.create(customer=Customer.objects.create(name="Grace"), currency="EUR")
        DeadLetter.objects.create(cause="Again", subject=str(transfer.pk))
        ApiToken.objects.create_key(name="more", customer=Customer.objects.create(name="Joan"))

    with CaptureQueriesContext(connection) as many:
        desk.get(page(model, "changelist"))

    assert len(many) == len(few)


def test_an_estimate_stands_for_a_large_table() -> None:
    sql = "INSERT INTO messaging_event (type, partition_key, subject) SELECT 'a', 'p', 's' FROM generate_series(1, %s)"
    with connection.cursor() as cursor:
        cursor.execute(sql, [COUNT_MAX + 5000])
        cursor.execute("ANALYZE messaging_event")

    assert BoundedPaginator(Event.objects.order_by("-id"), 50).count == COUNT_MAX + 5000
    assert BoundedPaginator(Event.objects.order_by("-id"), 50).num_pages == 200
    assert BoundedPaginator(Event.objects.filter(subject="x"), 50).count == 0


def test_a_filtered_count_ends_at_its_limit() -> None:
    sql = "INSERT INTO messaging_event (type, partition_key, subject) SELECT 'a', 'p', 's' FROM generate_series(1, %s)"
    with connection.cursor() as cursor:
        cursor.execute(sql, [COUNT_MAX + 100])

    assert BoundedPaginator(Event.objects.filter(subject="s"), 50).count == COUNT_MAX + 1


def test_the_transfer_page_tells_the_whole_story(desk: Client, rows: SimpleNamespace) -> None:
    text = desk.get(page(Transfer, "change", rows.transfer.pk)).content.decode()
    parked = desk.get(page(Transfer, "change", rows.parked.pk)).content.decode()

    for words in ("1,234.56 EUR", "transfer.accepted", f"transfer:{rows.transfer.pk}", "3,765.44 EUR", "request-1"):
        assert words in text
    assert "ZeroDivisionError" in parked


def test_the_account_page_shows_balance_and_lines(desk: Client, rows: SimpleNamespace) -> None:
    text = desk.get(page(Account, "change", rows.payer.pk)).content.decode()

    assert "3,765.44 EUR" in text
    assert f"opening:{rows.payer.pk}" in text


def test_a_dead_letter_shows_its_traceback_and_headers(desk: Client, rows: SimpleNamespace) -> None:
    text = desk.get(page(DeadLetter, "change", rows.letter.pk)).content.decode()

    assert "Traceback:\n  line 1" in text
    assert "x-death" in text
    assert "00000000  5b 5b 22 ff 22 5d 5d" in text
    assert "Cannot be replayed." in text


def test_what_came_from_outside_is_escaped(desk: Client, accounts: SimpleNamespace) -> None:
    transfer = make_transfer(accounts, reference="<script>alert(1)</script>", metadata={"<b>": "<script>"})

    text = desk.get(page(Transfer, "change", transfer.pk)).content.decode()

    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_an_account_is_frozen_and_unfrozen_once(desk: Client, accounts: SimpleNamespace) -> None:
    url = reverse("admin:accounts_account_freeze", args=[accounts.payer.pk])

    asked = desk.get(url)
    accounts.payer.refresh_from_db()
    assert (asked.status_code, accounts.payer.status) == (200, "open")
    for _ in range(2):
        assert "HX-Redirect" in desk.post(url, {"_form_submitted": "True"}).headers
    accounts.payer.refresh_from_db()
    assert accounts.payer.status == "frozen"
    selected = {"action": "unfreeze_selected", "_selected_action": [str(accounts.payer.pk), str(accounts.payee.pk)]}
    desk.post(page(Account, "changelist"), selected)

    accounts.payer.refresh_from_db()
    assert accounts.payer.status == "open"
    events = Event.objects.filter(subject=str(accounts.payer.pk)).order_by("id").values_list("type", "actor")
    assert list(events) == [("account.frozen", "root"), ("account.unfrozen", "root")]
    assert not Event.objects.filter(subject=str(accounts.payee.pk)).exists()


def test_no_more_are_frozen_at_once_than_a_page_shows(desk: Client, accounts: SimpleNamespace) -> None:
    Account.objects.bulk_create(Account(customer=accounts.customer, currency="EUR") for _ in range(100))
    everything = {"action": "freeze_selected", "_selected_action": [str(accounts.payer.pk)], "select_across": "1"}

    said = desk.post(page(Account, "changelist"), everything, follow=True).content.decode()

    assert "At most 100 at a time." in said
    assert not Account.objects.filter(status="frozen").exists()


@pytest.mark.parametrize("model", READ_ONLY + SWITCHED + EDITABLE)
def test_no_list_counts_its_filters(model: type[Any]) -> None:
    assert admin.site._registry[model].show_facets == admin.ShowFacets.NEVER
    assert not admin.site._registry[model].show_full_result_count


def test_freezing_needs_the_right(accounts: SimpleNamespace, reviewer: User) -> None:
    client = Client()
    client.force_login(reviewer)

    url = reverse("admin:accounts_account_freeze", args=[accounts.payer.pk])
    assert client.post(url, {"_form_submitted": "True"}).status_code == 403
    accounts.payer.refresh_from_db()
    assert accounts.payer.status == "open"


def test_a_token_is_shown_once_and_works(desk: Client, accounts: SimpleNamespace) -> None:
    form = {"name": "shop", "customer": str(accounts.customer.pk), "staff_user": "", "scopes": ["transfers:read"]}

    made = desk.post(page(ApiToken, "add"), form)

    token = ApiToken.objects.get()
    secret = made.content.decode().split('id="secret">')[1].split("<")[0]
    assert ApiToken.objects.get_from_key(secret) == token
    assert (token.scopes, token.customer) == (["transfers:read"], accounts.customer)
    assert "no-store" in made.headers["Cache-Control"]
    assert secret not in desk.get(page(ApiToken, "change", token.pk)).content.decode()
    assert secret not in str(dict(desk.cookies)) + str(dict(desk.session))


def test_a_clients_name_has_no_place_for_another_customers(desk: Client) -> None:
    form = {"name": "shop@0123456789ab", "customer": "", "staff_user": "", "scopes": ["transfers:read"]}

    assert "no @" in desk.post(page(ApiToken, "add"), form).content.decode()
    assert not ApiToken.objects.exists()


def test_a_token_is_revoked_for_good(desk: Client, rows: SimpleNamespace) -> None:
    form = {"name": "test", "scopes": ["transfers:read"], "revoked": "on", "expiry_date_0": "", "expiry_date_1": ""}
    assert desk.post(page(ApiToken, "change", rows.token.pk), form).status_code == 302
    assert desk.post(page(ApiToken, "change", rows.token.pk), {**form, "revoked": ""}).status_code == 302

    rows.token.refresh_from_db()
    assert rows.token.revoked
    assert rows.token.scopes == ["transfers:read"]


def test_a_token_with_a_name_from_before_the_rule_is_revoked(desk: Client, rows: SimpleNamespace) -> None:
    ApiToken.objects.filter(pk=rows.token.pk).update(name="import@bank")
    form = {
        "name": "import@bank",
        "scopes": ["transfers:read"],
        "revoked": "on",
        "expiry_date_0": "",
        "expiry_date_1": "",
    }

    assert desk.post(page(ApiToken, "change", rows.token.pk), form).status_code == 302

    rows.token.refresh_from_db()
    assert rows.token.revoked


def test_denying_an_account_records_who_did(desk: Client, accounts: SimpleNamespace, superuser: User) -> None:
    form = {"account": str(accounts.payer.pk), "why": "Fraud."}

    assert desk.post(page(DeniedAccount, "add"), form).status_code == 302

    assert DeniedAccount.objects.values_list("account", "created_by").get() == (accounts.payer.pk, superuser.pk)


def test_the_desk_says_what_waits(desk: Client, rows: SimpleNamespace) -> None:
    text = desk.get(reverse("admin:index")).content.decode()

    for words in ("Waiting for review", "Parked", "Open dead letters", "Balanced"):
        assert words in text


def test_people_without_rights_see_an_empty_desk() -> None:
    client = Client()
    client.force_login(User.objects.create_user("new", is_staff=True))

    assert "nothing here for you yet" in client.get(reverse("admin:index")).content.decode()
    assert client.get(page(Transfer, "changelist")).status_code == 403


def test_an_unknown_object_leads_back(desk: Client) -> None:
    assert desk.get(page(Transfer, "change", uuid4())).status_code == 302
    assert desk.get(page(Transfer, "change", "nonsense")).status_code == 302


def test_a_proof_is_told_in_words(desk: Client) -> None:
    checks = [*ledger_books.CHECKS, *transfer_books.CHECKS, *seal_checks.CHECKS]
    named = [["balance_differs", "account-7", "stored 5, lines add up to 4"]]
    proof = Proof.objects.create(entries=2, violations={**dict.fromkeys(checks, 0), "balance_differs": 1}, named=named)

    text = desk.get(page(Proof, "change", proof.pk)).content.decode()

    for check in checks:
        assert escape(meaning_of(check)) in text, check
        assert check not in text
    assert len(set(map(meaning_of, checks))) == len(checks)
    # The broken one comes first.
    assert text.index("1 violation(s)") < text.index("nothing")
    assert "stored 5, lines add up to 4" in text
    assert meaning_of("a_check_of_long_ago") == ""


def test_staff_make_a_new_webhook_secret_that_one_page_shows(desk: Client, rows: SimpleNamespace) -> None:
    endpoint = WebhookEndpoint.objects.get()
    address = reverse("admin:notifications_webhookendpoint_new_secret", args=[endpoint.pk])
    assert address in desk.get(page(WebhookEndpoint, "change", endpoint.pk)).content.decode()

    asked = desk.get(address).content.decode()
    for hours in ("-1", "169", "soon"):
        desk.post(address, {"confirmed": "yes", "hours": hours})
    endpoint.refresh_from_db()
    assert ("Make a new secret" in asked, endpoint.secret) == (True, "whsec_c2VjcmV0")
    made = desk.post(address, {"confirmed": "yes", "hours": "2"}).content.decode()

    endpoint.refresh_from_db()
    assert endpoint.secret in made.split('id="secret">')[1]
    assert endpoint.previous_secret == "whsec_c2VjcmV0"
    assert AuditEntry.objects.get(action="webhook.rotate_secret").actor == "root"
    shown = desk.get(page(WebhookEndpoint, "change", endpoint.pk)).content.decode()
    assert not {secret for secret in (endpoint.secret, endpoint.previous_secret) if secret in shown}
    WebhookEndpoint.objects.update(state="deleted", secret="", previous_secret="", previous_until=None)
    assert desk.post(address, {"confirmed": "yes", "hours": "2"}).status_code == 404
    assert "new-secret" not in desk.get(page(WebhookEndpoint, "change", endpoint.pk)).content.decode()


def test_only_who_may_change_an_endpoint_makes_it_a_new_secret(rows: SimpleNamespace) -> None:
    user = User.objects.create_user("eve", password="a long enough password", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_webhookendpoint"))
    eve, endpoint = Client(), WebhookEndpoint.objects.get()
    eve.force_login(user)
    address = reverse("admin:notifications_webhookendpoint_new_secret", args=[endpoint.pk])

    assert eve.post(address, {"confirmed": "yes", "hours": "2"}).status_code == 403
    assert "new-secret" not in eve.get(page(WebhookEndpoint, "change", endpoint.pk)).content.decode()
    assert WebhookEndpoint.objects.get().secret == "whsec_c2VjcmV0"
