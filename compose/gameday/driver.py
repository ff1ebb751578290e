"""The process that is all of a game day's clients: lanes of one account each, one operation at a time in each.

A lane sends its next order only when it knows what became of the last one, so that the order of acceptance is known.
Whatever has no definite answer is asked again under the same key until it has one. Started by `clients.Load`, which
talks to it through standard input: one JSON object a line, {"shift_seconds": s}, {"rate": r} or {"stop": seconds}.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compose.client import Answer, Connection, Target
from compose.gameday.history import History, digest, problem_of
from compose.gameday.workload import (
    CANCELLATION,
    LOOK,
    MALFORMED,
    OTHER_BODY,
    REPLAY,
    WAIT_SECONDS,
    Cast,
    Mix,
    Purpose,
    Request,
    cancellation,
    look,
)

ATTEMPT_SECONDS_MAX = 10.0
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.1, 1.0
RETRY_AFTER_SECONDS_MAX = 5.0
HOT_LANES = 3
LANE_ORDERS_MAX = 3
# Not now, and therefore nobody knows yet: to be asked again.
LATER = frozenset({408, 425, 429})


@dataclass
class Client:
    """One lane's connections. It goes on to the next address when one does not answer."""

    targets: Sequence[Target]
    history: History
    patience: asyncio.Event
    _at: int = 0
    _open: dict[int, Connection] = field(default_factory=dict)

    async def settle(self, name: str, request: Request, *, key: str = "", purpose: str, wait: int = 0) -> Answer | None:
        """Ask until the answer is definite, and write down each attempt. None: the run ended before there was one."""
        pause = PAUSE_SECONDS_MIN
        facts = {"kind": request.kind, "purpose": purpose, "path": request.path, "key": key, "body": request.body}
        while True:
            self.history.write("invoke", op=name, expected=list(request.expected), **facts)
            # Once is enough: later attempts only have to be counted.
            facts = {"kind": request.kind, "path": request.path}
            answer = await self._attempt(name, request, key, wait)
            if answer is not None:
                return answer
            if self.patience.is_set():
                return None
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSE_SECONDS_MAX)

    async def _attempt(self, name: str, request: Request, key: str, wait: int) -> Answer | None:
        target, connection = self._connection()
        headers = [("Idempotency-Key", key)] if key else []
        if wait:
            headers.append(("Prefer", f"wait={wait}"))
        if request.kind == "look":
            content = target.get(request.path, headers)
        else:
            content = target.post(request.path, request.raw, headers, request.content_type)
        try:
            answer = await asyncio.wait_for(connection.send(content), ATTEMPT_SECONDS_MAX + wait)
        except (OSError, TimeoutError, ValueError) as error:
            # A late answer must not be taken for the next one's: this connection is done.
            connection.close()
            self._open.pop(self._at, None)
            self._at = (self._at + 1) % len(self.targets)
            self.history.write("info", op=name, why=f"{type(error).__name__}: {error}"[:120])
            return None
        return await self._read(name, request, answer)

    async def _read(self, name: str, request: Request, answer: Answer) -> Answer | None:
        kind = answer.header("Content-Type") or ""
        if complaint := problem_of(answer.status, kind, answer.body, answer.header("Retry-After")):
            self.history.write("complaint", op=name, what=complaint)
        if answer.status in LATER or answer.status >= 500:
            self.history.write("info", op=name, why=str(answer.status))
            self._at = (self._at + 1) % len(self.targets)
            if answer.header("Retry-After"):
                await asyncio.sleep(min(answer.retry_after_seconds, RETRY_AFTER_SECONDS_MAX))
            return None
        outcome = "ok" if 200 <= answer.status < 300 else "fail"
        facts = {"status": answer.status, "digest": digest(answer.body), "answer": essence(request.kind, answer)}
        self.history.write(outcome, op=name, **facts)
        return answer

    def _connection(self) -> tuple[Target, Connection]:
        target = self.targets[self._at]
        if self._at not in self._open:
            self._open[self._at] = Connection(target)
        return target, self._open[self._at]

    def close(self) -> None:
        for connection in self._open.values():
            connection.close()


def essence(kind: str, answer: Answer) -> dict[str, Any]:
    """What the verdict needs of an answer; the rest is in its digest."""
    try:
        content = json.loads(answer.body)
    except ValueError:
        return {"unreadable": answer.body[:200].decode("utf-8", "replace")}
    if not isinstance(content, dict):
        return {"unreadable": str(content)[:200]}
    kept = ("id", "accepted", "refused") if kind == "batch" else ("id", "status", "status_reason")
    if answer.status >= 400:
        kept = ("code", "retryable", "status")
    return {name: content.get(name) for name in kept}


@dataclass
class Lane:
    """The orders of one account, one after another."""

    name: str
    account: str
    client: Client
    mix: Mix
    orders: asyncio.Queue[None] = field(default_factory=lambda: asyncio.Queue(LANE_ORDERS_MAX))
    busy: bool = False
    _count: int = 0

    async def run(self) -> None:
        stopping = asyncio.create_task(self.client.patience.wait())
        try:
            while not stopping.done():
                ready = asyncio.create_task(self.orders.get())
                await asyncio.wait({ready, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not ready.done():
                    ready.cancel()
                    return
                self.busy = True
                await self.order()
                self.busy = False
        finally:
            stopping.cancel()
            self.client.close()

    async def order(self) -> None:
        self._count += 1
        name = f"{self.name}-{self._count}"
        purpose = self.mix.purpose(self.account)
        if purpose is Purpose.BATCH:
            await self.client.settle(name, self.mix.batch(self.account, name), key=name, purpose=purpose)
            return
        body = self.mix.order(self.account, name, purpose)
        if purpose is Purpose.INVALID:
            await self.client.settle(name + MALFORMED, self.mix.malformed(body), key=name, purpose=purpose)
        answer = await self.client.settle(name, self.mix.transfer(body), key=name, purpose=purpose)
        if answer is not None and answer.status == 202:
            await self._follow_up(name, purpose, body, str(json.loads(answer.body)["id"]))

    async def _follow_up(self, name: str, purpose: Purpose, body: dict[str, Any], transfer_id: str) -> None:
        settle = self.client.settle
        if purpose is Purpose.REPLAY:
            await settle(name + REPLAY, self.mix.transfer(body), key=name, purpose="replay")
            await settle(name + OTHER_BODY, self.mix.other_body(body), key=name, purpose="other body")
        elif purpose in (Purpose.CANCEL, Purpose.CANCEL_RISKY):
            await settle(name + CANCELLATION, cancellation(transfer_id), purpose=purpose)
        elif purpose is Purpose.WAIT:
            await settle(name + LOOK, look(transfer_id), purpose=purpose, wait=WAIT_SECONDS)


class Drive:
    """All lanes, the pace, and what the parent says."""

    def __init__(self, plan: Mapping[str, Any], history: History) -> None:
        self.mix = Mix(Cast(**plan["cast"]), plan["seed"])
        self.rate = float(plan["rate"])
        self.stop_seconds = 0.0
        self.stop, self.patience = asyncio.Event(), asyncio.Event()
        headers = (("Authorization", f"Bearer {plan['token']}"),)
        targets = [Target(url, headers) for url in plan["api_urls"]]
        cast, run = self.mix.cast, plan["run"]
        self.poor_lanes = len(cast.poor)
        accounts = [*[cast.hot] * HOT_LANES, *cast.poor, *(a for a in cast.rich if a != cast.hot)]
        self.lanes = [
            Lane(
                name=f"{run}-{place}",
                account=account,
                client=Client(_turned(targets, place), history, self.patience),
                mix=Mix(cast, self.mix.seed * 1000 + place + 1),
            )
            for place, account in enumerate(accounts)
        ]

    async def run(self) -> None:
        listener = asyncio.create_task(self._listen())
        running = [asyncio.create_task(lane.run()) for lane in self.lanes]
        await self._dispatch()
        # What is on its way is brought to a definite end; orders not begun are dropped.
        for lane in self.lanes:
            while not lane.orders.empty():
                lane.orders.get_nowait()
        until = time.monotonic() + self.stop_seconds
        while any(lane.busy for lane in self.lanes) and time.monotonic() < until:
            await asyncio.sleep(0.05)
        self.patience.set()
        await asyncio.wait(running, timeout=ATTEMPT_SECONDS_MAX + WAIT_SECONDS)
        listener.cancel()

    async def _dispatch(self) -> None:
        due = time.monotonic()
        while not self.stop.is_set():
            lane = self.lanes[self.mix.lane(len(self.lanes), HOT_LANES, self.poor_lanes)]
            if not lane.orders.full():
                lane.orders.put_nowait(None)
            due = max(due + 1 / max(self.rate, 0.01), time.monotonic() - 1.0)
            try:
                await asyncio.wait_for(self.stop.wait(), max(due - time.monotonic(), 0))
            except TimeoutError:
                continue

    async def _listen(self) -> None:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            said = json.loads(line)
            for lane in self.lanes:
                lane.mix.shift_seconds = float(said.get("shift_seconds", lane.mix.shift_seconds))
            self.rate = float(said.get("rate", self.rate))
            if "stop" in said:
                self.stop_seconds = float(said["stop"])
                self.stop.set()
        # Nobody is left to say stop.
        self.stop.set()


def _turned(targets: Sequence[Target], by: int) -> list[Target]:
    """Lanes begin at different addresses, so that all web processes are busy."""
    return [*targets[by % len(targets) :], *targets[: by % len(targets)]]


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    history = History(Path(sys.argv[2]))
    asyncio.run(Drive(plan, history).run())
    history.close()


if __name__ == "__main__":
    main()
