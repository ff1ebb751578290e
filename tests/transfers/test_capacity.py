"""The capacity forecast: the arithmetic by hand on small cases, the rates from real events, and the command."""

import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command

from bankcore.messaging.backpressure import Priority
from bankcore.messaging.models import Event
from transfers.capacity import Arrivals, factor_needed, forecast, measured_rates

RATES = {"risk": 1000.0, "posting": 500.0}


def test_a_burst_waits_for_the_slowest_stage_and_drains_at_its_rate():
    seen = forecast([Arrivals(0, 2000)], until_seconds=10, rates=RATES, promise_seconds=None)
    assert seen.offered == pytest.approx(20_000)
    assert seen.refused == pytest.approx(0)
    # 2000 come and 500 leave, for ten seconds: 15,000 wait in all, and drain in 30 seconds.
    assert seen.peak_waiting["risk"] == pytest.approx(10_000, rel=0.02)
    assert seen.peak_backlog == pytest.approx(15_000, rel=0.02)
    assert seen.longest_wait_seconds == pytest.approx(30, rel=0.02)
    assert seen.drained_after_seconds == pytest.approx(40, rel=0.02)


def test_with_a_promise_what_would_wait_longer_is_refused():
    seen = forecast([Arrivals(0, 2000)], until_seconds=60, rates=RATES, promise_seconds=10)
    assert seen.longest_wait_seconds == pytest.approx(10, abs=0.5)
    # What is taken is what drains in the minute, and what waits at its end.
    assert seen.accepted == pytest.approx(60 * 500 + 10 * 500, rel=0.03)
    assert seen.refused == pytest.approx(seen.offered - seen.accepted)


def test_arrivals_change_at_their_moments_and_end():
    profile = [Arrivals(0, 100), Arrivals(10, 2000), Arrivals(20, 0)]
    seen = forecast(profile, until_seconds=60, rates=RATES, promise_seconds=None, transfer_bytes=1000)
    assert seen.offered == pytest.approx(1_000 + 20_000, rel=0.01)
    assert seen.database_bytes == pytest.approx(21_000_000, rel=0.01)
    assert seen.drained_after_seconds == pytest.approx(60, abs=1)


def test_what_never_drains_is_said_to_never_drain():
    seen = forecast([Arrivals(0, 1)], until_seconds=1, rates={"risk": 1e-6, "posting": 1.0}, promise_seconds=None)
    assert seen.drained_after_seconds is None


def test_the_factor_makes_the_longest_wait_the_promise():
    arrivals = [Arrivals(0, 2000)]
    factor = factor_needed(arrivals, until_seconds=60, rates=RATES, promise_seconds=10)
    faster = {stage: rate * factor for stage, rate in RATES.items()}
    seen = forecast(arrivals, until_seconds=60, rates=faster, promise_seconds=None)
    assert 9 < seen.longest_wait_seconds <= 10
    assert factor_needed(arrivals, until_seconds=60, rates={"risk": 1e4, "posting": 1e4}, promise_seconds=10) <= 1


def test_work_of_a_kind_is_taken_up_to_its_part_of_the_promise():
    longest, factors = {}, {}
    for priority in Priority:
        load = {"until_seconds": 60, "rates": RATES, "promise_seconds": 10, "priority": priority}
        longest[priority] = forecast([Arrivals(0, 2000)], **load).longest_wait_seconds
        factors[priority] = factor_needed([Arrivals(0, 2000)], **load)
    assert longest == {priority: pytest.approx(10 * priority.value, abs=0.5) for priority in Priority}
    assert factors[Priority.INTERACTIVE] < factors[Priority.BATCH] < factors[Priority.BULK]


def test_what_no_number_of_workers_bears_is_said_to_be_so():
    assert factor_needed([Arrivals(0, 1e9)], until_seconds=60, rates=RATES, promise_seconds=10) is None


def a_burst(transfers: int, approved_per_second: int, posted_per_second: int) -> None:
    """Events as a burst leaves them: all accepted in the first second, then worked off stage by stage."""
    began = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=5)
    events = []
    for kind, per_second, after in (
        ("accepted", transfers, 0), ("approved", approved_per_second, 1), ("posted", posted_per_second, 2),
    ):  # fmt: skip
        events += [
            Event(
                type=f"transfer.{kind}", partition_key="a", subject=str(uuid4()),
                created_at=began + timedelta(seconds=after + number // per_second, milliseconds=500),
                published_at=began,
            )
            for number in range(transfers)
        ]  # fmt: skip
    Event.objects.bulk_create(events, batch_size=5000)


@pytest.mark.django_db
def test_rates_are_measured_while_work_stood_in_front_of_a_stage():
    assert measured_rates() == {}
    a_burst(transfers=1500, approved_per_second=375, posted_per_second=150)
    rates = measured_rates()
    assert rates["risk"] == pytest.approx(375, rel=0.05)
    assert rates["posting"] == pytest.approx(150, rel=0.05)


@pytest.mark.django_db
def test_the_command_prints_a_forecast_for_people_and_for_programs(capsys):
    with pytest.raises(CommandError, match="no measured rates yet"):
        call_command("capacity", "--arrivals", "0:100")
    call_command(
        "capacity",
        "--arrivals",
        "0:2000",
        "--until",
        "10",
        "--rates",
        "risk=1000,posting=500",
        "--kind",
        "single",
        "--no-admission",
        "--json",
    )
    result = json.loads(capsys.readouterr().out)
    assert result["peak_waiting"]["risk"] == pytest.approx(10_000, rel=0.02)
    assert result["peak_backlog"] == pytest.approx(15_000, rel=0.02)
    assert result["longest_wait_seconds"] == pytest.approx(30, rel=0.02)
    # At most 30 seconds of waiting are promised by default, to single transfers all of them, and that is what it came
    # to: no more workers are needed.
    assert result["workers_needed"] == 2
    call_command("capacity", "--arrivals", "0:50000", "--rates", "risk=1000,posting=500")
    assert "refused (503" in capsys.readouterr().out
    hopeless = ("capacity", "--arrivals", "0:1e9", "--rates", "risk=1000,posting=500", "--kind", "file")
    call_command(*hopeless)
    assert "nothing suffices" in capsys.readouterr().out
    call_command(*hopeless, "--json")
    result = json.loads(capsys.readouterr().out)
    assert (result["workers_needed"], result["partitions_needed"]) == (None, None)
    assert result["longest_wait_seconds"] < 1e9


@pytest.mark.django_db
@pytest.mark.parametrize(
    "arguments",
    [
        ["--arrivals", "much"],
        ["--arrivals", "0:-5"],
        ["--arrivals", "0:inf"],
        ["--arrivals", "nan:5"],
        ["--arrivals", "60:1e400"],
        ["--arrivals", "0:5", "--until", "inf"],
        ["--arrivals", "0:5", "--until", "long"],
        ["--arrivals", "0:5", "--promise", "nan"],
        ["--arrivals", "0:5", "--rates", "risk=inf"],
        ["--arrivals", "0:5", "--rates", "risk=fast"],
        ["--arrivals", "0:5", "--rates", "tea=5"],
        # Cut off after a day, it would ask for too few workers.
        ["--arrivals", "0:5,90000:5000"],
        ["--arrivals", "0:5", "--until", "86401"],
        ["--arrivals", "0:500" * 100],
    ],
)
def test_a_wrong_profile_is_explained(arguments):
    with pytest.raises(CommandError, match=r"is like 0:500|no negative|is like risk=|seconds above 0|A day at most"):
        call_command("capacity", *arguments)


@pytest.mark.django_db
def test_a_profile_can_be_a_file(tmp_path, capsys):
    profile = tmp_path / "payday.csv"
    profile.write_text("seconds,per_second\n0,100\n10,2000\n20,0\n")
    call_command("capacity", "--arrivals", str(profile), "--rates", "risk=1000,posting=500", "--json")
    assert json.loads(capsys.readouterr().out)["offered"] == pytest.approx(21_000, rel=0.01)


@pytest.mark.django_db
def test_a_long_profile_needs_no_file(capsys):
    profile = ",".join(f"{second}:{second % 7}00" for second in range(100))
    call_command("capacity", "--arrivals", profile, "--until", "100", "--rates", "risk=1000,posting=500", "--json")
    assert json.loads(capsys.readouterr().out)["offered"] == 100 * sum(second % 7 for second in range(100))


def test_a_profile_of_a_whole_day_costs_no_more_than_a_short_one():
    """What it costs is the seconds that are simulated, not those times the lines of the profile."""
    minutes = [Arrivals(60.0 * minute, 100.0) for minute in range(24 * 60)]
    steps = CountedSteps(minutes)
    seen = forecast(steps, until_seconds=24 * 3600, rates={"risk": 1000, "posting": 500}, promise_seconds=30)
    assert seen.offered == pytest.approx(24 * 3600 * 100)
    assert seen.drained_after_seconds == pytest.approx(24 * 3600)
    assert steps.reads <= 2 * len(minutes)


class CountedSteps(list):
    """A profile that counts how often a step of it was read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)

    def __iter__(self):
        for step in super().__iter__():
            self.reads += 1
            yield step
