"""What people do by hand is written down with it, and stays as it was written."""

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.urls import reverse

from accounts.freezing import freeze_account, unfreeze_account
from accounts.models import ApiToken
from bankcore.messaging import audit
from bankcore.messaging.models import AuditEntry
from transfers.models import DeniedAccount, Review
from transfers.reviews import decide

pytestmark = pytest.mark.django_db


@pytest.fixture
def olga():
    return get_user_model().objects.create_superuser("olga", password="a long enough password")


@pytest.fixture
def pages(olga):
    client = Client()
    client.force_login(olga)
    return client


def entries():
    return list(AuditEntry.objects.order_by("id").values_list("actor", "action", "subject", "reason"))


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE messaging_auditentry SET reason = 'another'",
        "DELETE FROM messaging_auditentry",
        "TRUNCATE messaging_auditentry",
    ],
)
def test_an_entry_is_never_changed_or_removed(sql):
    audit.record(actor="olga", action="account.freeze", subject="a", reason="A court order.")

    with pytest.raises(IntegrityError, match="is refused"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql)

    assert entries() == [("olga", "account.freeze", "a", "A court order.")]


def test_an_entry_goes_with_what_it_tells():
    with transaction.atomic():
        audit.record(actor="olga", action="account.freeze", subject="a")
        transaction.set_rollback(True)

    assert entries() == []


def test_freezing_is_audited_once(accounts):
    (alice,) = accounts(0)

    freeze_account(alice.pk, actor="olga")
    freeze_account(alice.pk, actor="olga")
    unfreeze_account(alice.pk, actor="otto")

    key = str(alice.pk)
    assert entries() == [("olga", "account.freeze", key, ""), ("otto", "account.unfreeze", key, "")]


@pytest.mark.parametrize("decision", Review.Decision)
def test_a_decision_is_audited(accounts, make_transfer, olga, decision):
    transfer = make_transfer(*accounts(500, 0), 300, "in_review")
    Review.objects.create(transfer=transfer)

    decide(transfer.pk, staff=olga, decision=decision, note="Called.")

    assert entries() == [("olga", f"review.{decision.value}", str(transfer.pk), "Called.")]


def test_the_deny_list_is_audited(accounts, pages):
    (alice,) = accounts(0)
    key = str(alice.pk)

    pages.post(reverse("admin:transfers_deniedaccount_add"), {"account": key, "why": "A court order."})
    pages.post(reverse("admin:transfers_deniedaccount_delete", args=[key]), {"post": "yes"})

    assert not DeniedAccount.objects.exists()
    assert entries() == [("olga", "account.deny", key, "A court order."), ("olga", "account.allow", key, "")]


def test_tokens_are_audited_without_the_secret(pages, capsys):
    call_command("issue_token", client="shop", scopes="transfers:read")
    secret = capsys.readouterr().out.strip()
    pages.post(reverse("admin:accounts_apitoken_add"), {"name": "till", "scopes": ["transfers:read"]})
    till = ApiToken.objects.get(name="till")
    form = {"name": "till", "scopes": ["transfers:read"], "revoked": "on"}
    pages.post(reverse("admin:accounts_apitoken_change", args=[till.pk]), form)

    found = list(AuditEntry.objects.order_by("id").values_list("actor", "action", "subject"))
    assert found == [
        (audit.operator(), "token.issue", secret.partition(".")[0]),
        ("olga", "token.issue", till.prefix),
        ("olga", "token.revoke", till.prefix),
    ]
    assert secret.partition(".")[2] not in str(list(AuditEntry.objects.values()))


def test_the_log_is_searched_by_subject_and_by_person(pages):
    for actor, subject in (("olga", "a"), ("otto", "b")):
        audit.record(actor=actor, action="account.freeze", subject=subject)
    address = reverse("admin:messaging_auditentry_changelist")

    def found(term):
        return [entry.actor for entry in pages.get(address, {"q": term}).context["cl"].result_list]

    assert (found("a"), found("otto"), found("nobody")) == (["olga"], ["otto"], [])
    assert found("account.freeze") == ["otto", "olga"]
    assert pages.get(reverse("admin:messaging_auditentry_add")).status_code == 403
