"""The dead-letter desk at the command line: what it prints, what it does, and how it exits."""

import io
import json

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.db.models.functions import Now

from bankcore.messaging import audit
from bankcore.messaging.models import AuditEntry, DeadLetter
from transfers import posting
from transfers.models import Transfer
from transfers.parking import park_transfer

pytestmark = pytest.mark.django_db
PASSWORD = "a long enough password"


@pytest.fixture
def parked(accounts, make_transfer):
    alice, bob = accounts(1000, 0)

    def make(amount_minor=300, error=None):
        transfer = make_transfer(alice, bob, amount_minor)
        error = error or KeyError("a bug")
        park_transfer(transfer.pk, task="transfers.post_transfers", error=error, attempts=4)
        return DeadLetter.objects.get(subject=str(transfer.pk))

    return make


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command; answer its exit code and its output, read as JSON with --json."""

    def call(*args, password=None):
        if password is not None:
            monkeypatch.setattr("sys.stdin", io.StringIO(password + "\n"))
        try:
            call_command("dead_letters", *map(str, args))
            code = 0
        except SystemExit as exit_:
            code = exit_.code
        except CommandError as error:
            return error.returncode, str(error)
        out = capsys.readouterr().out
        return code, json.loads(out) if "--json" in args else out

    return call


@pytest.fixture
def person():
    def make(name):
        get_user_model().objects.create_superuser(name, password=PASSWORD)
        return ["--user", name, "--password-stdin"]

    return make


def status(letter):
    letter.refresh_from_db()
    return letter.state, Transfer.objects.get(pk=letter.subject).status


def test_letters_are_listed(parked, run):
    assert run("list") == (0, "No dead letters here: every attempt found its end.\n")
    letters = [parked(), parked(1, ValueError("another"))]
    assert run("list", "--older-than", "1h") == (0, "No letter fits.\n")

    code, shown = run("list", "--json")
    assert (code, [one["id"] for one in shown]) == (0, [letters[1].pk, letters[0].pk])
    text = run("list")[1]
    assert [str(letters[0].pk) in text, letters[0].subject in text, "KeyError" in text] == [True] * 3
    assert [one["id"] for one in run("list", "--cause", "ValueError", "--json")[1]] == [letters[1].pk]
    assert run("list", "--older-than", "1h", "--json")[1] == []
    assert len(run("list", "--newer-than", "1h", "--json")[1]) == 2
    assert run("list", "--state", "replayed", "--json")[1] == []


def test_a_letter_is_shown(parked, run):
    letter = parked()

    assert run("show", letter.pk, "--json")[1]["subject"] == letter.subject
    assert "Traceback" in run("show", letter.pk)[1] or "KeyError" in run("show", letter.pk)[1]
    text = run("show", letter.pk)[1]
    assert ("null" in text, " resolved at  -\n" in text) == (False, True)
    # What belongs together stands under each other.
    assert [line for line in text.splitlines() if not line.startswith(" ")] == []
    assert run("show", letter.pk + 1) == (1, f"There is no dead letter {letter.pk + 1}: see `dead_letters list`.")


def test_a_dry_run_and_then_the_replay(parked, run):
    first, second = parked(600), parked(600)

    code, forecasts = run("replay", first.pk, second.pk, "--dry-run", "--json")
    assert (code, [(f["would"], f["reason"]) for f in forecasts]) == (
        0,
        [("post", ""), ("be_refused", "insufficient_funds")],
    )
    assert "insufficient_funds" in run("replay", "--all", "--dry-run")[1]
    assert (status(first), AuditEntry.objects.count()) == (("open", "parked"), 0)

    code, outcomes = run("replay", "--all", "--rate", 50, "--json")

    assert (code, [o["outcome"] for o in outcomes]) == (0, ["replayed", "replayed"])
    assert (status(first), status(second)) == (("replayed", "approved"),) * 2
    assert {entry.actor for entry in AuditEntry.objects.all()} == {audit.operator()}


def test_a_dry_run_of_what_would_fail_again_ends_in_4(parked, run, monkeypatch):
    good, bad = parked(1), parked(2)
    whole = posting._movement
    monkeypatch.setattr(posting, "_movement", lambda one: 1 / 0 if str(one.id) == bad.subject else whole(one))

    code, forecasts = run("replay", good.pk, bad.pk, "--dry-run", "--json")

    assert (code, [f["would"] for f in forecasts]) == (4, ["post", "fail_again"])
    assert run("replay", good.pk, "--dry-run")[0] == 0
    # A replay that would be refused outweighs it.
    DeadLetter.objects.filter(pk=good.pk).update(state="discarded", resolved_at=Now())
    assert run("replay", good.pk, bad.pk, "--dry-run")[0] == 1


def test_what_is_refused_is_said_and_ends_in_1(parked, run):
    letter = parked()
    run("replay", letter.pk)

    code, outcomes = run("replay", letter.pk, "--json")
    assert (code, outcomes[0]["outcome"], outcomes[0]["code"]) == (1, "refused", "dead_letter_resolved")
    code, text = run("replay", letter.pk)
    assert (code, "dead_letter_resolved" in text) == (1, True)
    assert run("replay", letter.pk, "--dry-run")[0] == 1
    assert run("replay", 999, "--dry-run", "--json") == (1, [])


def test_a_bulk_replay_is_capped(parked, run):
    letters = [parked(1) for _ in range(3)]

    assert len(run("replay", "--cause", "KeyError", "--limit", 2, "--json")[1]) == 2
    assert [status(one)[0] for one in letters] == ["replayed", "replayed", "open"]
    assert run("replay", "--cause", "nothing like it") == (0, "No open letter fits: nothing to do.\n")


@pytest.mark.parametrize(
    "args",
    [
        ["replay"],
        ["replay", "1", "--all"],
        ["replay", "--all", "--rate", "0"],
        ["discard", "1", "--reason", "x"],
        ["discard", "1", "--reason", "a\nb c"],
        ["list", "--older-than", "soon"],
        ["list", "--limit", "0"],
        ["approve", "1"],
        ["nonsense"],
    ],
)
def test_wrong_usage_is_said(run, args):
    code, text = run(*args)

    assert code in (1, 2)
    assert text


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["list", "--older-than", "soon"], "'soon' is no age: give one such as 90s, 15m, 2h or 7d"),
        (["list", "--limit", "0"], "'0' is not a number from 1 to 10,000"),
        (["replay", "--all", "--limit", "many"], "'many' is not a number from 1 to 10,000"),
    ],
)
def test_what_an_option_takes_is_said(run, args, said):
    code, text = run(*args)

    assert (code in (1, 2), said in text) == (True, True)


def test_a_discard_by_a_named_person(parked, run, person):
    letter, olga = parked(), person("olga")

    assert run("discard", letter.pk, "--reason", "No money.", *olga, password="wrong")[0] == 1
    assert status(letter) == ("open", "parked")
    assert run("discard", letter.pk, "--reason", "No money.", *olga, password=PASSWORD)[0] == 0

    assert status(letter) == ("discarded", "rejected")
    assert (letter.resolved_by.username, letter.resolution) == ("olga", "olga: No money.")


def test_a_user_without_the_right_does_not_act(parked, run):
    get_user_model().objects.create_user("eve", password=PASSWORD, is_staff=True)
    letter = parked()

    code, text = run("replay", letter.pk, "--user", "eve", "--password-stdin", password=PASSWORD)

    assert (code, "without the right" in text) == (1, True)
    assert status(letter) == ("open", "parked")


def test_much_money_takes_two_people(parked, run, person, settings):
    settings.DESK_SECOND_PERSON_AMOUNT_MINOR = 299
    letter, olga, otto = parked(300), person("olga"), person("otto")

    # Whoever sits at the shell is nobody in particular.
    assert run("replay", letter.pk, "--json")[1][0]["code"] == "person_needed"
    assert run("replay", letter.pk, *olga, password=PASSWORD)[0] == 3
    assert "replay by olga" in run("show", letter.pk)[1]
    own = run("approve", letter.pk, "--action", "replay", "--json", *olga, password=PASSWORD)
    assert (own[0], own[1][0]["code"]) == (1, "same_person")
    assert run("withdraw", letter.pk, *otto, password=PASSWORD)[0] == 0
    assert run("withdraw", letter.pk, *otto, password=PASSWORD)[0] == 1
    assert run("replay", letter.pk, *olga, password=PASSWORD)[0] == 3
    assert status(letter) == ("open", "parked")

    assert run("approve", letter.pk, "--action", "replay", *otto, password=PASSWORD)[0] == 0

    assert status(letter) == ("replayed", "approved")


def test_every_verb_has_help(capsys):
    for verb in ("list", "show", "replay", "discard", "approve", "withdraw"):
        with pytest.raises(SystemExit) as exit_:
            call_command("dead_letters", verb, "--help")
        assert exit_.value.code == 0
        assert "Exit codes" in capsys.readouterr().out
