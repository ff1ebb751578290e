"""The posting engine alone: what the ledger takes in when nothing is in front of it and nothing behind."""

from __future__ import annotations

from collections.abc import Sequence

from compose.bench_driver import Driver

BATCH = 1000
SMALL_BATCH = 100
WARM_UP_SECONDS = 1.0


def measure(drivers: Sequence[Driver], *, seconds: float) -> dict[str, float | None]:
    """Posted per second by all drivers together, as the posting workers run: in batches of 1,000 and of 100."""
    _run(drivers, batch=BATCH, hot=False, seconds=WARM_UP_SECONDS)
    uniform, _ = _run(drivers, batch=BATCH, hot=False, seconds=seconds)
    hot, _ = _run(drivers, batch=BATCH, hot=True, seconds=seconds)
    small, p99_ms = _run(drivers, batch=SMALL_BATCH, hot=False, seconds=seconds)
    return {"engine_tps": uniform, "engine_hot_tps": hot, "engine_100_tps": small, "engine_100_p99_ms": p99_ms}


def _run(drivers: Sequence[Driver], *, batch: int, hot: bool, seconds: float) -> tuple[float, float]:
    for driver in drivers:
        driver.tell("post", batch=batch, hot=hot, seconds=seconds)
    results = [driver.hear() for driver in drivers]
    rate = sum(one["posted"] / one["seconds"] for one in results)
    return rate, max(one["p99_ms"] for one in results)
