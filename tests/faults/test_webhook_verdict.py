"""The verdict on webhooks: at least once is all right; missing, made up, unsigned or changing is named."""

from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from standardwebhooks import Webhook

from compose.gameday.receiver import Mood, Wish, read_arrivals, receiving
from tests.faults.small_run import ALICE, BOB, POOR, SmallRun

SECRET = "whsec_" + "c2VjcmV0" * 4


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    run = SmallRun(tmp_path)
    run.order("a-1")
    run.order("b-1", debit=BOB, credit=ALICE)
    run.order("p-1", "rejected", "insufficient_funds", debit=POOR, amount_minor=500)
    run.tell_alice()
    run.hook(ALICE)
    run.hook(POOR)
    return run


def damage(run: SmallRun) -> dict[str, int]:
    return {kind: number for kind, number in run.verdict().damage.items() if number}


def test_every_event_told_once_or_again_is_clean(run):
    run.arrivals.append(run.arrivals[0])
    # Refused once, and taken when it came again.
    run.arrivals.insert(0, run.arrivals[1]._replace(answer=503))

    assert damage(run) == {}
    assert len(run.arrivals) == 5


def test_an_event_without_a_delivery_is_missing(run):
    del run.deliveries[0], run.arrivals[0]

    assert damage(run) == {"notifications_missing": 1}


@pytest.mark.parametrize("state", ["pending", "failed"])
def test_a_delivery_without_its_end_is_missing(run, state):
    run.deliveries[1] = run.deliveries[1]._replace(state=state)

    assert damage(run) == {"notifications_missing": 1}


@pytest.mark.parametrize("answer", [503, 0])
def test_a_delivery_that_nobody_took_is_missing(run, answer):
    run.arrivals[1] = run.arrivals[1]._replace(answer=answer)

    assert damage(run) == {"notifications_missing": 1}


def test_an_event_that_never_was_is_false(run):
    run.arrivals.append(run.arrivals[0]._replace(id="evt_9999"))

    assert damage(run) == {"notifications_false": 1}


def test_an_event_of_somebody_else_is_false(run):
    run.arrivals.append(run.arrivals[0]._replace(endpoint=f"/{POOR}"))

    assert damage(run) == {"notifications_false": 1}


def test_a_call_that_is_not_signed_or_says_another_thing_is_false(run):
    run.arrivals[0] = run.arrivals[0]._replace(signed=False)
    run.arrivals[1] = run.arrivals[1]._replace(
        body=run.arrivals[1].body.replace('"amount_minor": 10', '"amount_minor": 1')
    )
    run.arrivals.append(run.arrivals[2]._replace(body="{}"))

    assert damage(run) == {"notifications_false": 3}


def call(client: httpx.Client, path: str, arrival_id: str, secret: str = SECRET) -> int:
    now, body = datetime.now(UTC), "{}"
    headers = {
        "webhook-id": arrival_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(arrival_id, now, body),
    }
    try:
        return client.post(path, content=body, headers=headers).status_code
    except httpx.RemoteProtocolError:
        return 0


class Registrar:
    """Takes the place of the load, which asks the bank."""

    def ask(self, path: str, body: object = None) -> dict[str, str]:
        return {"customer": "c"} if body is None else {"secret": SECRET}


def test_the_receiver_writes_down_each_call_and_repeats_are_taken(tmp_path):
    with receiving(tmp_path, 1) as receiver, httpx.Client(base_url=receiver.url, timeout=60) as client:
        receiver.register(Registrar(), [Wish("/hot", "account", True)])
        answers = [call(client, "/hot", f"evt_{number}") for number in range(150)]
        again = [call(client, "/hot", f"evt_{number}") for number in range(150) if answers[number] != 204]
        forged = call(client, "/hot", "evt_200", "whsec_" + "Zm9yZ2Vk" * 4)
        receiver.mood = Mood.REFUSES
        refused = call(client, "/hot", "evt_0")

    arrivals = read_arrivals(tmp_path / "webhooks.jsonl")
    assert again, "some first calls fail"
    assert set(again) == {204}
    assert [arrival.answer for arrival in arrivals[:150]] == answers
    assert [arrival.signed for arrival in arrivals] == [True] * (150 + len(again)) + [False, True]
    assert (refused, receiver.met[Mood.REFUSES]) == (503, 1)
    assert forged in (0, 204, 503)
