"""How fast a stage works off what waits for it, measured while something waits. Arithmetic only: no clock, no database.

The throughput of a stage that has little to do says nothing about what it can do. So a rate counts as the stage's
capacity only while a backlog stood there all along; else it can only raise what is known. Nor does a moment in which
nothing is done yet: a worker was replaced, or a batch is under way. That is an outage when it lasts, and until then no
news.

Where intake works on the same machines, a stage is slower while much comes in and quicker when it stops. So what was
taken in counts as work too (`intake_cost` of a transfer each), and the rate means: while as many come in as are done.
"""

from collections import deque
from dataclasses import dataclass

WINDOW_SECONDS = 5.0
LEARN_SECONDS = 1.0
# What was seen for so long counts alone; what was seen for less counts as if the rate before filled up the time.
FIRM_SECONDS = 3.0
# A stage that is quicker lately than in the window, or much quicker than it was taken for, is believed at once.
LATELY_SECONDS = 2.0
MUCH_QUICKER = 1.5
SMOOTHING_SECONDS = 2.0
# A stage is busy while this much of its work waits: less may be what is in its hands.
BUSY_SECONDS = 0.25
BUSY_TRANSFERS_MIN = 100
# Without progress for this long although something new waits, the stage stands still.
STALL_SECONDS = 2.0
# So few that stand there all along may be stuck by themselves (a dead partition's): no outage.
STUCK_TRANSFERS_MAX = 100
RATE_MIN = 1.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What waited for a stage at a moment (seconds of a monotonic clock).

    `done` is how many the stage had done since some start, up to `done_at`, which is a little earlier than `at`;
    `taken` is how many transfers had been taken in by then.
    """

    at: float
    waiting: int
    done: int
    done_at: float
    taken: int = 0


class Drain:
    """The capacity of one stage in transfers a second, learnt from readings."""

    def __init__(self, start_rate: float, intake_cost: float = 0.0) -> None:
        self.rate = max(start_rate, RATE_MIN)
        self._intake_cost = intake_cost
        self.stalled_since: float | None = None
        # The rate before the backlog that stands there now.
        self._before = self.rate
        self._busy: deque[Reading] = deque()
        self._recent: deque[Reading] = deque()
        self._last: Reading | None = None
        # How much waited when the stage last moved, if it is so little that it may be stuck.
        self._level = 0
        self._still_since: float | None = None

    def observe(self, reading: Reading) -> None:
        """Take the next reading; readings come in the order of time."""
        last, self._last = self._last, reading
        if last is None:
            self._level = min(reading.waiting, STUCK_TRANSFERS_MAX)
        elif reading.done > last.done or reading.waiting < last.waiting:
            self._moved(reading)
        elif reading.waiting > self._level:
            self._stood_still(reading)
        if self.stalled_since is None:
            self._learn(reading, is_progress=last is not None and reading.done > last.done)

    def _moved(self, reading: Reading) -> None:
        self._level = min(reading.waiting, STUCK_TRANSFERS_MAX)
        self._still_since = None
        if self.stalled_since is not None:
            self.stalled_since = None
            self._busy.clear()
            self._recent.clear()

    def _stood_still(self, reading: Reading) -> None:
        if self._still_since is None:
            self._still_since = reading.at
        if self.stalled_since is None and reading.at - self._still_since >= STALL_SECONDS:
            self.stalled_since = self._still_since

    def _learn(self, reading: Reading, *, is_progress: bool) -> None:
        if reading.waiting < max(BUSY_TRANSFERS_MIN, BUSY_SECONDS * self.rate):
            self._busy.clear()
            self._before = self.rate
        else:
            self._busy.append(reading)
        self._recent.append(reading)
        for kept in (self._busy, self._recent):
            while kept and reading.done_at - kept[0].done_at > WINDOW_SECONDS:
                kept.popleft()
        if not is_progress:
            return
        # Only what was done while a backlog stood there.
        busy = [r for r in self._busy if r.done_at >= self._busy[0].at]
        if len(busy) > 1 and reading.done_at - busy[0].done_at >= LEARN_SECONDS:
            self._take(busy)
        elif not self._busy and reading.done_at - self._recent[0].done_at >= LEARN_SECONDS:
            self.rate = max(self.rate, self._speed(self._recent[0], reading))

    def _take(self, busy: list[Reading]) -> None:
        reading = busy[-1]
        seen_seconds = reading.done_at - busy[0].done_at
        measured = self._speed(busy[0], reading)
        if seen_seconds < FIRM_SECONDS:
            share = seen_seconds / FIRM_SECONDS
            self.rate = max(self._before + (measured - self._before) * share, RATE_MIN)
            return
        lately = next(r for r in busy if reading.done_at - r.done_at <= LATELY_SECONDS)
        if reading.done_at - lately.done_at >= LEARN_SECONDS:
            measured = max(measured, self._speed(lately, reading))
        passed_seconds = reading.done_at - busy[-2].done_at
        is_first = reading.done_at - passed_seconds - busy[0].done_at < FIRM_SECONDS
        share = 1.0 if is_first or measured > MUCH_QUICKER * self.rate else min(1.0, passed_seconds / SMOOTHING_SECONDS)
        self.rate = max(self.rate + (measured - self.rate) * share, RATE_MIN)

    @property
    def rate_alone(self) -> float:
        """What is done a second when nothing more comes in."""
        return self.rate * (1.0 + self._intake_cost)

    def wait_seconds(self, ahead: int) -> float:
        """Predict how long a transfer waits that comes now, behind so many others, while more come behind it."""
        return ahead / self.rate

    def _speed(self, first: Reading, last: Reading) -> float:
        """What would have been done a second from one reading to another, had as many come in as were done."""
        work = last.done - first.done + self._intake_cost * (last.taken - first.taken)
        return work / (last.done_at - first.done_at) / (1.0 + self._intake_cost)
