"""Leaving the processors to others on the same machine."""

import os
from contextlib import suppress
from pathlib import Path

NICENESS = 10
# Against the other programs of the machine: half a share, as whoever has much less may never come to its end.
SESSION_NICENESS = 3


def yield_processors() -> None:
    """Let everybody else on this machine go first."""
    os.nice(NICENESS)
    # Where Linux shares out processors by session (autogroup), a niceness counts within the session only; the session
    # has one of its own. It is ours to change if nobody else began it.
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(SESSION_NICENESS))
