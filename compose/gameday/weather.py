"""What can befall a link: the modes of the proxy and their numbers. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Mode(StrEnum):
    """PASS is fair weather. CUT drops nothing, as TCP would not: what was sent arrives when the cut has healed."""

    PASS = "pass"  # noqa: S105 no password
    LATENCY = "latency"
    STALL = "stall"
    BANDWIDTH = "bandwidth"
    HALF_OPEN = "half_open"
    RESET = "reset"
    SLOW_CLOSE = "slow_close"
    CUT = "cut"


@dataclass(frozen=True)
class Weather:
    """A mode and its numbers.

    `seconds` is the delay (LATENCY, with up to `jitter_seconds` more), the length of a stall, how long after its
    beginning a connection is reset, or how late a close is passed on. `share` is the part of the chunks that stall, or
    of the connections that everything else befalls. `bytes_per_second` is for BANDWIDTH, per connection and direction.
    """

    mode: Mode = Mode.PASS
    seconds: float = 0.0
    jitter_seconds: float = 0.0
    share: float = 1.0
    bytes_per_second: float = 8_000.0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Weather:
        """Raises ValueError for a mode that there is not, TypeError for a number that no mode has."""
        return cls(**{**values, "mode": Mode(values["mode"])})

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "mode": self.mode.value}


FAIR = Weather()
