"""A process with bankcore's own code on one database that is told over a pipe what to do and to time.

One JSON object per line comes in ({"do": "post", ...}), one goes out. It calls the code that the workers and the web
call, without broker and sockets, so that what is timed is the work and the database alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from random import Random
from typing import Any
from uuid import UUID

import django

from bankcore.identifiers import new_id
from compose.client import percentile

AMOUNT_MINOR = 1


class Probe:
    """The accounts to work with, and what can be timed on them."""

    def __init__(self, accounts: list[str], currency: str, token: str, seed: int) -> None:
        # Only now: Django must have been set up before its apps can be imported.
        from rest_framework.test import APIClient

        self._accounts = [UUID(account) for account in accounts]
        self._currency = currency
        self._random = Random(seed)
        self._ready: list[list[Any]] = []
        self._client = APIClient(headers={"Authorization": f"Bearer {token}"}, SERVER_NAME="127.0.0.1")

    def prepare(self, *, batch: int, hot: bool, batches: int) -> dict[str, Any]:
        """Make up so many batches for the next `post`: that is the driver's work, not the engine's."""
        from accounts.ledger import Movement

        self._ready = [[self._movement(Movement, hot) for _ in range(batch)] for _ in range(batches)]
        return {"prepared": batches}

    def post(self) -> dict[str, Any]:
        """Post what was prepared through the ledger, one batch after the other; each is one transaction."""
        from accounts import ledger

        times, posted = list[float](), 0
        for movements in self._ready:
            began = time.perf_counter()
            outcomes = ledger.post(movements)
            times.append(time.perf_counter() - began)
            posted += outcomes.count(ledger.POSTED)
        # A movement counts once: what was posted must not be posted again.
        self._ready = []
        return {"posted": posted, "p50_ms": percentile(times, 50, scale=1000.0),
                "p99_ms": percentile(times, 99, scale=1000.0)}  # fmt: skip

    def read(self, *, path: str, times: int) -> dict[str, Any]:
        """GET a path (`{account}` is drawn anew each time) through the whole view."""
        taken = []
        for _ in range(times):
            address = path.format(account=self._random.choice(self._accounts))
            began = time.perf_counter()
            answer = self._client.get(address)
            taken.append(time.perf_counter() - began)
            if answer.status_code != 200:
                raise RuntimeError(f"GET {address} was answered {answer.status_code}: {answer.content[:300]!r}")
        return {"p50_ms": percentile(taken, 50, scale=1000.0)}

    def prove(self) -> dict[str, Any]:
        """One increment of the books proof."""
        from transfers.books import prove_increment

        began = time.perf_counter()
        result = prove_increment()
        return {"seconds": time.perf_counter() - began, "balanced": result is not None and result.balanced}

    def _movement(self, movement: Callable[..., Any], hot: bool) -> Any:
        """One movement. Its reference is in the order of time, as those of transfers are."""
        if hot:
            debit, credit = self._random.choice(self._accounts[1:]), self._accounts[0]
        else:
            debit, credit = self._random.sample(self._accounts, 2)
        return movement(f"transfer:{new_id()}", debit, credit, AMOUNT_MINOR, self._currency)


def main() -> int:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bankcore.settings")
    django.setup()
    probe: Probe | None = None
    for line in sys.stdin:
        order: Mapping[str, Any] = json.loads(line)
        wanted = {key: value for key, value in order.items() if key != "do"}
        if order["do"] == "begin":
            probe, answer = Probe(**wanted), {"ready": True}
        else:
            answer = getattr(probe, order["do"])(**wanted)
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
