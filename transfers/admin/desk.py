"""The page staff start from: what waits for them, and the way to everything else."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.http import HttpRequest
from django.urls import reverse, reverse_lazy
from django.utils import timezone

from accounts.models import Proof
from bankcore.messaging.models import DeadLetter, Event
from bankcore.pages import COUNT_MAX, moment
from transfers.models import OpenTransfer
from transfers.states import Status

PROOF_AGE_MAX = timedelta(hours=1)
BACKLOG_ALARMING = 1_000


@dataclass(frozen=True, slots=True)
class Fact:
    """One number on the desk, with where to look at what it counts; `alarming` draws the eye."""

    title: str
    value: str
    link: str
    note: str = ""
    alarming: bool = False


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """Group the sidebar by what a person came for, and show what they may see."""
    return [
        _group(
            "Desk",
            ("Reviews", "gavel", "transfers_review"),
            ("Dead letters", "report", "messaging_deadletter"),
            ("Transfers", "swap_horiz", "transfers_transfer"),
            ("Batches", "stacks", "transfers_batch"),
        ),
        _group(
            "Money",
            ("Accounts", "account_balance_wallet", "accounts_account"),
            ("Customers", "groups", "accounts_customer"),
            ("Journal", "menu_book", "accounts_journalentry"),
            ("Journal lines", "list_alt", "accounts_journalline"),
            ("Proofs of the books", "verified", "accounts_proof"),
        ),
        _group(
            "Messaging",
            ("Events", "timeline", "messaging_event"),
            ("Notifications", "notifications", "notifications_notification"),
            ("Subscriptions", "mark_email_unread", "notifications_subscription"),
            ("Webhook endpoints", "webhook", "notifications_webhookendpoint"),
            ("Webhook deliveries", "outgoing_mail", "notifications_webhookdelivery"),
            ("Breakers", "electrical_services", "messaging_breakerswitch"),
        ),
        _group(
            "Access",
            ("Users", "person", "auth_user"),
            ("Groups", "group", "auth_group"),
            ("API tokens", "key", "accounts_apitoken"),
            ("Deny list", "block", "transfers_deniedaccount"),
            ("Audit log", "policy", "messaging_auditentry"),
        ),
    ]


def _group(title: str, *items: tuple[str, str, str]) -> dict[str, Any]:
    return {
        "title": title,
        "separator": True,
        "items": [
            {
                "title": name,
                "icon": icon,
                "link": reverse_lazy(f"admin:{model}_changelist"),
                "permission": _may_view(model),
            }
            for name, icon, model in items
        ],
    }


def _may_view(model: str) -> Callable[[HttpRequest], bool]:
    app, name = model.split("_")
    return lambda request: request.user.has_perm(f"{app}.view_{name}") or request.user.has_perm(f"{app}.change_{name}")


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    facts = [*_waiting(request), *_books(request)]
    return {**context, "title": "Desk", "facts": facts}


def _waiting(request: HttpRequest) -> Iterable[Fact]:
    if request.user.has_perm("transfers.view_transfer"):
        transfers = reverse("admin:transfers_transfer_changelist")
        reviews = _number(OpenTransfer.objects.filter(status=Status.IN_REVIEW))
        yield Fact(
            "Waiting for review", _shown(reviews), reverse("admin:transfers_review_changelist"), alarming=reviews > 0
        )
        parked = _number(OpenTransfer.objects.filter(status=Status.PARKED))
        yield Fact("Parked", _shown(parked), f"{transfers}?status__exact=parked", alarming=parked > 0)
        for status, title in ((Status.ACCEPTED, "Waiting for risk"), (Status.APPROVED, "Waiting for posting")):
            number = _number(OpenTransfer.objects.filter(status=status))
            link = f"{transfers}?status__exact={status}"
            yield Fact(title, _shown(number), link, alarming=number > BACKLOG_ALARMING)
    if request.user.has_perm("messaging.view_event"):
        owed = _number(Event.objects.owed().filter(due_at__lte=timezone.now()))
        link = f"{reverse('admin:messaging_event_changelist')}?delivery=owed"
        yield Fact("Events owed to the broker", _shown(owed), link, alarming=owed > BACKLOG_ALARMING)
    if request.user.has_perm("messaging.view_deadletter"):
        letters = _number(DeadLetter.objects.filter(state="open"))
        link = f"{reverse('admin:messaging_deadletter_changelist')}?state=open"
        yield Fact("Open dead letters", _shown(letters), link, alarming=letters > 0)


def _books(request: HttpRequest) -> Iterable[Fact]:
    if not request.user.has_perm("accounts.view_proof"):
        return
    link = reverse("admin:accounts_proof_changelist")
    proof = Proof.objects.first()
    if proof is None:
        yield Fact("Books", "Not proved yet", link, note="Run: manage.py prove_books")
        return
    broken = sum(proof.violations.values())
    late = timezone.now() - proof.proved_at > PROOF_AGE_MAX
    value = f"{broken:,} violation(s)" if broken else "Balanced"
    yield Fact("Books", value, link, note=f"Proved {moment(proof.proved_at)[:16]} UTC", alarming=bool(broken) or late)


def _number(rows: Any) -> int:
    return rows.order_by("pk")[: COUNT_MAX + 1].count()


def _shown(number: int) -> str:
    return f"{number:,}" if number <= COUNT_MAX else f"more than {COUNT_MAX:,}"
