"""The picture of the burst: throughput and latency over time, as a PNG beside the result."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib
from matplotlib import pyplot

from compose.bench_burst import Burst, Sample
from compose.client import percentile

matplotlib.use("Agg")

ACCEPTED_COLOUR, POSTED_COLOUR, WAITING_COLOUR, LATENCY_COLOUR = "#1f6feb", "#1a7f37", "#9a6700", "#cf222e"


def draw(burst: Burst, path: Path, *, offered: float, sustained: float, seconds: float) -> Path:
    """Draw what was offered, accepted, posted and waiting, and how long the 202 took; return where."""
    figure, (rates, waiting, latency) = pyplot.subplots(3, 1, figsize=(10, 9), sharex=True, layout="constrained")
    middles, accepted, posted = _rates(burst.samples)
    rates.plot(middles, accepted, color=ACCEPTED_COLOUR, label="accepted")
    rates.plot(middles, posted, color=POSTED_COLOUR, label="posted")
    rates.axhline(sustained, color="grey", linestyle="--", linewidth=1, label="sustained rate")
    rates.set_ylabel("transfers per second")
    rates.set_title(f"Burst: {offered:,.0f} transfers per second offered for {seconds:.0f} s", loc="left")
    rates.legend(loc="upper right")
    waiting.fill_between(
        [s.seconds for s in burst.samples], [s.accepted - s.posted for s in burst.samples],
        color=WAITING_COLOUR, alpha=0.4,
    )  # fmt: skip
    waiting.set_ylabel("transfers waiting")
    moments, median, worst = _latencies(burst)
    latency.plot(moments, median, color=LATENCY_COLOUR, label="median")
    latency.plot(moments, worst, color=LATENCY_COLOUR, linestyle=":", label="99 of 100")
    latency.set_ylabel("time to the 202 (ms)")
    latency.set_xlabel("seconds since the burst began")
    if moments:
        latency.legend(loc="upper right")
    for axes in (rates, waiting, latency):
        axes.axvspan(0, seconds, color="grey", alpha=0.08)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _rates(samples: Sequence[Sample]) -> tuple[list[float], list[float], list[float]]:
    middles, accepted, posted = list[float](), list[float](), list[float]()
    for before, after in pairwise(samples):
        passed = after.seconds - before.seconds
        middles.append((before.seconds + after.seconds) / 2)
        accepted.append((after.accepted - before.accepted) / passed)
        posted.append((after.posted - before.posted) / passed)
    return middles, accepted, posted


def _latencies(burst: Burst) -> tuple[list[float], list[float], list[float]]:
    """Per second: median and 99th percentile of the time to the 202, in milliseconds."""
    seconds: dict[int, list[float]] = defaultdict(list)
    for moment, took in burst.latencies:
        seconds[int(moment)].append(took)
    moments = sorted(seconds)
    worst = [percentile(seconds[m], 99, scale=1000.0) or 0.0 for m in moments]
    return [m + 0.5 for m in moments], [percentile(seconds[m], 50, scale=1000.0) or 0.0 for m in moments], worst
