"""The page of breakers: what it shows, who may switch, and that the switch outlives Redis."""

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from bankcore.messaging import switches
from bankcore.messaging.breaker import Breaker, BreakerOpen, conditions
from bankcore.messaging.models import AuditEntry, BreakerSwitch

PAGE = "/admin/messaging/breakerswitch/"
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("forget_breakers")]


def state(name: str) -> str:
    return {c.name: c.effective for c in conditions([name])}[name]


def test_the_page_shows_state_and_last_error(desk: Client) -> None:
    for name in ("email", "webhook:17", "webhook:18"):
        permit = Breaker(name).admit()
        Breaker(name).settle(permit, ok=name == "webhook:18", error="TimeoutError: no answer")
        for _ in range(4 if name != "webhook:18" else 0):
            Breaker(name).settle(Breaker(name).admit(), ok=False, error="TimeoutError: no answer")

    text = desk.get(PAGE).content.decode()

    assert "TimeoutError: no answer" in text
    assert [name in text for name in ("email", "risk", "webhook:17", "webhook:18")] == [True, True, True, False]
    assert "webhook:18" in desk.get(PAGE, {"q": "webhook:18"}).content.decode()


def test_a_breaker_is_held_open_let_go_and_both_are_audited(desk: Client) -> None:
    desk.post(f"{PAGE}switch/", {"name": "email", "mode": "open", "reason": "The provider moves house"})

    assert state("email") == "open"
    with pytest.raises(BreakerOpen):
        Breaker("email").admit()
    assert "The provider moves house" in desk.get(PAGE).content.decode()

    desk.post(f"{PAGE}switch/", {"name": "email", "mode": "", "reason": "It is done"})

    assert (state("email"), BreakerSwitch.objects.count()) == ("closed", 0)
    entries = AuditEntry.objects.order_by("id").values_list("actor", "action", "subject", "reason")
    assert list(entries) == [
        ("root", "breaker.open", "email", "The provider moves house"),
        ("root", "breaker.automatic", "email", "It is done"),
    ]


def test_no_reason_no_switch(desk: Client) -> None:
    desk.post(f"{PAGE}switch/", {"name": "email", "mode": "open", "reason": ""})

    assert (state("email"), BreakerSwitch.objects.count(), AuditEntry.objects.count()) == ("closed", 0, 0)


def test_who_may_only_look_cannot_switch(client: Client) -> None:
    looker = User.objects.create_user("looker", password="a long enough password", is_staff=True)
    looker.user_permissions.set(Permission.objects.filter(codename="view_breakerswitch"))
    client.force_login(looker)

    assert "Hold open" not in client.get(PAGE).content.decode()
    answer = client.post(f"{PAGE}switch/", {"name": "email", "mode": "open", "reason": "Because"})
    assert (answer.status_code, state("email")) == (403, "closed")


def test_the_page_opens_without_redis(desk: Client, settings) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"

    text = desk.get(PAGE).content.decode()

    assert "Redis does not answer" in text
    assert "unknown" in text


def test_a_switch_outlives_the_loss_of_redis(forget_breakers, settings) -> None:
    switches.switch("email", "open", actor="root", reason="Moving house")
    forget_breakers()
    assert state("email") == "closed"

    assert switches.apply_switches() == 1

    assert state("email") == "open"
    assert switches.apply_switches() == 0

    # Set while Redis is away, it is applied when it is back.
    url, settings.REDIS_URL = settings.REDIS_URL, "redis://127.0.0.1:1/0"
    switches.switch("email", "", actor="root", reason="Done")
    settings.REDIS_URL = url
    assert state("email") == "open"
    assert (switches.apply_switches(), state("email")) == (1, "closed")


def test_the_state_is_in_a_real_scrape(client: Client) -> None:
    for _ in range(5):
        Breaker("email").settle(Breaker("email").admit(), ok=False, error="away")

    text = client.get("/metrics").content.decode()

    assert 'bankcore_breaker_state{breaker="email"} 2.0' in text
    assert 'bankcore_breaker_state{breaker="risk"} 0.0' in text
