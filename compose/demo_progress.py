"""Watches the transfers move through the stages, read-only in the database, and shows it while the demo runs."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import TracebackType

import psycopg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

LOOK_SECONDS = 0.5
PLAIN_LINE_SECONDS = 2.0
STOP_SECONDS_MAX = 10.0

# One pass over the transfers; the others are answered from what is small.
_COUNTS = """
SELECT count(*),
       count(*) FILTER (WHERE status <> 'accepted'),
       count(*) FILTER (WHERE status = 'posted'),
       count(*) FILTER (WHERE status IN ('accepted', 'approved')),
       (SELECT count(*) FROM notifications_notification WHERE state = 'delivered'),
       (SELECT count(*) FROM notifications_notification WHERE state = 'pending'),
       (SELECT count(*) FROM messaging_owed)
  FROM transfers_transfer
"""


@dataclass(frozen=True)
class Counts:
    """How far the transfers have come. `underway` have neither ended nor reached a waiting room."""

    accepted: int
    screened: int
    posted: int
    underway: int
    notified: int
    to_notify: int
    outbox: int

    @property
    def settled(self) -> bool:
        return not (self.underway or self.to_notify or self.outbox)

    @property
    def line(self) -> str:
        return (
            f"accepted {self.accepted:,} · screened {self.screened:,} · posted {self.posted:,} · "
            f"notified {self.notified:,} · backlog {self.underway:,} · outbox {self.outbox:,}"
        )


class Watcher:
    """A thread that looks at the counts twice a second and shows them: bars on a terminal, else a line now and then.

    What was in the database before it started is left out of the counts.
    """

    def __init__(self, database_url: str, *, total: int, console: Console) -> None:
        self._database = psycopg.connect(database_url, autocommit=True, options="-c default_transaction_read_only=on")
        self._console = console
        self._before = self._read()
        self._stop = threading.Event()
        self._fresh = threading.Condition()
        self._counts = Counts(0, 0, 0, 0, 0, 0, 0)
        self._error: Exception | None = None
        self._bars = _Bars(console, total) if console.is_terminal else None
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> Watcher:
        if self._bars:
            self._bars.progress.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(STOP_SECONDS_MAX)
        self._tell(self._counts)
        if self._bars:
            self._bars.progress.stop()
        self._database.close()

    def await_settled(self, *, quiet_seconds_max: float, seconds_max: float) -> Counts:
        """Wait until nothing is underway. Gives up, and returns what there is, when nothing has moved for too long."""
        began = moved = time.monotonic()
        last = self._next_counts()
        while not last.settled and (now := time.monotonic()) - began < seconds_max and now - moved < quiet_seconds_max:
            counts = self._next_counts()
            if counts != last:
                moved = time.monotonic()
            last = counts
        return last

    def _next_counts(self) -> Counts:
        with self._fresh:
            self._fresh.wait(STOP_SECONDS_MAX)
            if self._error is not None:
                raise self._error
            return self._counts

    def _watch(self) -> None:
        line_due = time.monotonic()
        while not self._stop.wait(LOOK_SECONDS):
            try:
                counts = self._since_start(self._read())
            except psycopg.Error as error:
                with self._fresh:
                    self._error = error
                    self._fresh.notify_all()
                return
            with self._fresh:
                self._counts = counts
                self._fresh.notify_all()
            if self._bars or time.monotonic() >= line_due:
                self._tell(counts)
                line_due = time.monotonic() + PLAIN_LINE_SECONDS

    def _tell(self, counts: Counts) -> None:
        if self._bars:
            self._bars.show(counts)
        else:
            self._console.print(counts.line, highlight=False, soft_wrap=True)

    def _read(self) -> tuple[int, ...]:
        row = self._database.execute(_COUNTS).fetchone()
        return tuple(row) if row else ()

    def _since_start(self, now: tuple[int, ...]) -> Counts:
        accepted, screened, posted, underway, notified, to_notify, outbox = now
        before = self._before
        # What is still to be done is shown as it is: it has to come down to nothing, whoever left it there.
        return Counts(
            accepted=accepted - before[0],
            screened=screened - before[1],
            posted=posted - before[2],
            underway=underway,
            notified=notified - before[4],
            to_notify=to_notify,
            outbox=outbox,
        )


class _Bars:
    def __init__(self, console: Console, total: int) -> None:
        self.progress = Progress(
            TextColumn("{task.description:>9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._stages: dict[str, TaskID] = {
            stage: self.progress.add_task(stage, total=total) for stage in ("accepted", "screened", "posted", "backlog")
        }
        # How many messages there will be depends on who wants to be told: this bar has no end.
        self._stages["notified"] = self.progress.add_task("notified", total=None)

    def show(self, counts: Counts) -> None:
        values = {
            "accepted": counts.accepted,
            "screened": counts.screened,
            "posted": counts.posted,
            "backlog": counts.underway,
            "notified": counts.notified,
        }
        for stage, value in values.items():
            self.progress.update(self._stages[stage], completed=value)
