"""The dead-letter desk in the admin: buttons that ask first, a dry run, many at once, and a second person."""

import re
from types import SimpleNamespace

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

from accounts.models import Account
from bankcore.messaging.models import AuditEntry, DeadLetter, DeskRequest
from tests.pages.conftest import make_transfer
from transfers.models import Transfer
from transfers.parking import park_transfer

pytestmark = pytest.mark.django_db
LIST = "admin:messaging_deadletter_changelist"


def staff(name: str, *rights: str) -> Client:
    user = User.objects.create_user(name, password="a long enough password", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=rights))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def olga() -> Client:
    return staff("olga", "view_deadletter", "change_deadletter")


@pytest.fixture
def otto() -> Client:
    return staff("otto", "view_deadletter", "change_deadletter")


@pytest.fixture
def letter(accounts: SimpleNamespace) -> DeadLetter:
    return park(accounts)


def park(accounts: SimpleNamespace, error: Exception | None = None) -> DeadLetter:
    transfer = make_transfer(accounts)
    park_transfer(transfer.pk, task="transfers.check_risk", error=error or KeyError("a bug"), attempts=4)
    return DeadLetter.objects.get(subject=str(transfer.pk))


def address(letter: DeadLetter, verb: str = "change") -> str:
    return reverse(f"admin:messaging_deadletter_{verb}", args=[letter.pk])


def press(client: Client, letter: DeadLetter, button: str, **form: str) -> str:
    """Press a button of the letter's page and confirm its dialog; answer the text of the page it leads to."""
    answer = client.post(address(letter, button), {"_form_submitted": "True", **form})
    assert answer.status_code == 200
    return client.get(answer.headers["HX-Redirect"]).content.decode()


def buttons(client: Client, letter: DeadLetter) -> set[str]:
    text = client.get(address(letter)).content.decode()
    return set(re.findall(rf"deadletter/{letter.pk}/([a-z-]+)", text)) - {"history", "change", "delete"}


def status(letter: DeadLetter) -> tuple[str, str]:
    letter.refresh_from_db()
    return letter.state, Transfer.objects.get(pk=letter.subject).status


def shown(client: Client, query: str = "") -> set[int]:
    return {letter.pk for letter in client.get(reverse(LIST) + query).context["cl"].result_list}


def test_the_list_opens_with_what_is_open_and_is_filtered(olga: Client, accounts: SimpleNamespace) -> None:
    first, second = park(accounts), park(accounts, ValueError("another"))
    message = DeadLetter.objects.create(cause="undeliverable: rejected", body=b"x")
    press(olga, first, "replay")

    assert shown(olga) == {second.pk, message.pk}
    assert shown(olga, "?state=open") == {second.pk, message.pk}
    assert shown(olga, "?state=replayed") == {first.pk}
    assert shown(olga, "?state=all") == {first.pk, second.pk, message.pk}
    assert shown(olga, "?kind=message") == {message.pk}
    assert shown(olga, "?kind=parked") == {second.pk}
    assert shown(olga, "?cause=ValueError%3A+another") == {second.pk}
    assert shown(olga, "?age=hour") == set()


def test_a_letter_leads_to_its_transfer(olga: Client, letter: DeadLetter) -> None:
    link = reverse("admin:transfers_transfer_change", args=[letter.subject])
    nonsense = DeadLetter.objects.create(cause="a", subject="no id/at all", task="transfers.post_transfers")

    assert link in olga.get(address(letter)).content.decode()
    assert link in olga.get(reverse(LIST)).content.decode()
    assert olga.get(address(nonsense)).status_code == 200


def test_an_empty_desk_says_so(olga: Client) -> None:
    text = olga.get(reverse(LIST)).content.decode()

    assert "Nothing waits here" in text
    assert "Create a new item" not in text


def test_the_replay_button_shows_what_would_happen_and_asks(
    olga: Client, letter: DeadLetter, accounts: SimpleNamespace
) -> None:
    Account.objects.filter(pk=accounts.payer.pk).update(status="frozen")

    asked = olga.get(address(letter, "replay")).content.decode()

    assert "Replay this letter?" in asked
    assert ("be refused" in asked, "account_frozen" in asked) == (True, True)
    assert status(letter) == ("open", "parked")
    assert "1 letter(s) replayed." in press(olga, letter, "replay")
    assert status(letter) == ("replayed", "accepted")
    assert "dead_letter.replay" in olga.get(address(letter)).content.decode()
    assert buttons(olga, letter) == set()


def test_the_dry_run_button_changes_nothing(olga: Client, letter: DeadLetter) -> None:
    text = olga.get(address(letter, "dry_run"), follow=True).content.decode()

    assert "A replay would now post." in text
    assert (status(letter), AuditEntry.objects.count()) == (("open", "parked"), 0)


def test_a_discard_needs_a_reason(olga: Client, letter: DeadLetter) -> None:
    olga.post(address(letter, "discard"), {"_form_submitted": "True", "reason": ""})
    assert status(letter) == ("open", "parked")

    assert "1 letter(s) discarded." in press(olga, letter, "discard", reason="Paid by card.")

    assert status(letter) == ("discarded", "rejected")
    assert letter.resolution == "olga: Paid by card."


def test_a_refusal_is_said_on_the_page(olga: Client, letter: DeadLetter) -> None:
    Transfer.objects.filter(pk=letter.subject).update(status="cancelled")

    assert "not parked but cancelled" in press(olga, letter, "replay")
    assert status(letter) == ("open", "cancelled")


def test_many_are_shown_what_would_happen_and_confirmed(olga: Client, accounts: SimpleNamespace) -> None:
    letters = [park(accounts), park(accounts)]
    message = DeadLetter.objects.create(cause="undeliverable: rejected", body=b"\xff")
    keys = [str(one.pk) for one in [*letters, message]]
    form = {"action": "replay_selected", "_selected_action": keys}

    for name in ("dry_run_selected", "replay_selected"):
        asked = olga.post(reverse(LIST), {**form, "action": name}).content.decode()
        assert "Replay 3 letter(s)?" in asked
        assert len(re.findall(r">\s*post\s*<", asked)) == 2
        assert "can never be read" in asked
    assert status(letters[0]) == ("open", "parked")
    said = olga.post(reverse(LIST), {**form, "confirmed": "yes"}, follow=True).content.decode()

    assert "2 letter(s) replayed." in said
    assert f"Letter {message.pk}" in said
    assert [status(one) for one in letters] == [("replayed", "accepted")] * 2


def test_there_is_no_button_where_no_replay_would_happen(olga: Client, letter: DeadLetter) -> None:
    messages = [DeadLetter.objects.create(cause="undeliverable: rejected", body=b"\xff") for _ in range(2)]
    hopeless = {"_selected_action": [str(one.pk) for one in messages]}
    mixed = {"_selected_action": [str(messages[0].pk), str(letter.pk)]}
    button = re.compile(r'<button[^>]*type="submit"[^>]*>\s*(?:Replay|Discard) 2 letter')

    for name in ("dry_run_selected", "replay_selected"):
        asked = olga.post(reverse(LIST), {**hopeless, "action": name}).content.decode()
        assert "There is nothing to replay: every one of these would be refused" in asked
        assert not button.search(asked)
        asked = olga.post(reverse(LIST), {**mixed, "action": name}).content.decode()
        assert "There is nothing to replay" not in asked
        assert button.search(asked)
    assert button.search(olga.post(reverse(LIST), {**hopeless, "action": "discard_selected"}).content.decode())
    assert "A replay would be refused now" in olga.get(address(messages[0], "replay")).content.decode()
    assert "A replay would be refused now" not in olga.get(address(letter, "replay")).content.decode()


def test_many_are_discarded_with_one_reason(olga: Client, accounts: SimpleNamespace) -> None:
    letters = [park(accounts), park(accounts)]
    form = {"action": "discard_selected", "_selected_action": [str(one.pk) for one in letters], "confirmed": "yes"}

    olga.post(reverse(LIST), form)
    assert status(letters[0]) == ("open", "parked")
    olga.post(reverse(LIST), {**form, "reason": "A test run."})

    assert [status(one) for one in letters] == [("discarded", "rejected")] * 2


def test_much_money_takes_two_people(
    olga: Client, otto: Client, letter: DeadLetter, settings: pytest.FixtureRequest
) -> None:
    settings.DESK_SECOND_PERSON_AMOUNT_MINOR = 1_000  # type: ignore[attr-defined]

    assert "wait for a second person" in press(olga, letter, "replay")

    assert buttons(olga, letter) == {"dry-run", "withdraw"}
    assert buttons(otto, letter) == {"dry-run", "withdraw", "approve-replay"}
    assert "A second person has to approve" in press(olga, letter, "approve_replay")
    assert status(letter) == ("open", "parked")
    assert "1 letter(s) replayed." in press(otto, letter, "approve_replay")
    assert status(letter) == ("replayed", "accepted")
    assert DeskRequest.objects.get().decided_by == User.objects.get(username="otto")


def test_a_request_is_withdrawn_on_the_page(
    olga: Client, otto: Client, letter: DeadLetter, settings: pytest.FixtureRequest
) -> None:
    settings.DESK_SECOND_PERSON_AMOUNT_MINOR = 0  # type: ignore[attr-defined]
    press(olga, letter, "discard", reason="No.")

    assert buttons(otto, letter) == {"dry-run", "withdraw", "approve-discard"}
    press(otto, letter, "withdraw")

    assert buttons(otto, letter) == {"replay", "dry-run", "discard"}
    assert DeskRequest.objects.get().decision == "withdrawn"


def test_resolving_needs_the_right(letter: DeadLetter) -> None:
    eve = staff("eve", "view_deadletter")
    selected = {"action": "replay_selected", "_selected_action": [str(letter.pk)], "confirmed": "yes"}

    assert eve.get(address(letter)).status_code == 200
    for button in ("replay", "discard", "approve_replay", "approve_discard", "withdraw", "dry_run"):
        assert eve.post(address(letter, button), {"_form_submitted": "True", "reason": "No."}).status_code == 403
    eve.post(reverse(LIST), selected)

    assert status(letter) == ("open", "parked")
    assert buttons(eve, letter) == set()


def test_what_came_in_a_message_is_escaped(olga: Client) -> None:
    body, headers = b"<script>alert(1)</script>", {"task": "<script>alert(2)</script>"}
    letter = DeadLetter.objects.create(cause="<script>alert(3)</script>", body=body, headers=headers, detail="<b>")

    text = olga.get(address(letter)).content.decode() + olga.get(reverse(LIST)).content.decode()

    assert "<script>alert(" not in text
    assert "&lt;script&gt;alert(1)" in text
