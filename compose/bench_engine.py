"""The posting engine alone: what the ledger takes in when nothing is in front of it and nothing behind."""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import ceil

from compose.bench_driver import Driver

BATCH = 1000
SMALL_BATCH = 100
WARM_UP_TRANSFERS = 10_000


def measure(drivers: Sequence[Driver], *, seconds: float) -> dict[str, float | None]:
    """Posted per second by all drivers together, as the posting workers run: in batches of 1,000 and of 100.

    Each rate is that of so many transfers as the rate before it lets expect in `seconds`.
    """
    warm, _ = _run(drivers, batch=BATCH, hot=False, transfers=WARM_UP_TRANSFERS)
    uniform, _ = _run(drivers, batch=BATCH, hot=False, transfers=warm * seconds)
    hot, _ = _run(drivers, batch=BATCH, hot=True, transfers=uniform * seconds)
    # Small batches have their costs spread over fewer transfers, and take the longer.
    small, p99_ms = _run(drivers, batch=SMALL_BATCH, hot=False, transfers=uniform * seconds / 2)
    return {"engine_tps": uniform, "engine_hot_tps": hot, "engine_100_tps": small, "engine_100_p99_ms": p99_ms}


def _run(drivers: Sequence[Driver], *, batch: int, hot: bool, transfers: float) -> tuple[float, float]:
    """Transfers per second from the common start until the last driver has ended, and the worst driver's p99."""
    batches = max(ceil(transfers / batch / len(drivers)), 1)
    for driver in drivers:
        driver.tell("prepare", batch=batch, hot=hot, batches=batches)
    for driver in drivers:
        driver.hear()
    began = time.perf_counter()
    for driver in drivers:
        driver.tell("post")
    results = [driver.hear() for driver in drivers]
    took = time.perf_counter() - began
    return sum(one["posted"] for one in results) / took, max(one["p99_ms"] for one in results)
