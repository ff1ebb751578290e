"""How soon money moves again: probes sent from a moment on, until the first of them is posted."""

from __future__ import annotations

import threading
import time

from compose.gameday.clients import Load

# A probe can be among the work that was lost and is only driven again by the sweep; the next one need not be.
PROBE_EVERY_SECONDS = 0.5
PROBES_MAX = 8
# Workers that all start at once on a machine that is busy take two minutes: that is slow, and no loss.
SECONDS_MAX = 300.0


class Recovery:
    """Probes from now on; the recovery counts from `moment` (monotonic) to the first success."""

    def __init__(self, load: Load, moment: float) -> None:
        self._load = load
        self._moment = moment
        self._lock = threading.Lock()
        self._first: float | None = None
        self._threads: list[threading.Thread] = []
        self._done = threading.Event()
        self._starter = threading.Thread(target=self._start_probes, daemon=True)
        self._starter.start()

    def seconds(self) -> float | None:
        """Wait for the first success; None: there was none within SECONDS_MAX."""
        self._done.wait(SECONDS_MAX + 5)
        return self._first

    def settle(self, seconds_max: float = SECONDS_MAX) -> None:
        """Wait until no probe is on its way any more."""
        until = time.monotonic() + seconds_max
        for thread in (self._starter, *self._threads):
            thread.join(max(0.0, until - time.monotonic()))

    def _start_probes(self) -> None:
        for _ in range(PROBES_MAX):
            thread = threading.Thread(target=self._probe, daemon=True)
            self._threads.append(thread)
            thread.start()
            if self._done.wait(PROBE_EVERY_SECONDS):
                return

    def _probe(self) -> None:
        try:
            self._load.probe(seconds_max=SECONDS_MAX)
        except TimeoutError:
            return
        with self._lock:
            if self._first is None:
                self._first = time.monotonic() - self._moment
                self._done.set()
