"""Sends the plan through the REST API as ordinary concurrent clients would, and keeps the clients' own record of it.

The record is the demo's evidence: it holds what the API answered, and nothing that was read from the database.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from compose.client import Answer, Connection, Target
from compose.demo_workload import Kind, Planned

ACCEPTED, BAD_REQUEST, CONFLICT, UNPROCESSABLE, TOO_MANY, UNAVAILABLE = 202, 400, 409, 422, 429, 503
ATTEMPTS_MAX = 60
PAUSE_SECONDS = 0.2
RETRY_AFTER_SECONDS_MAX = 30.0
BATCH_CLIENTS = 2
SURPRISES_SHOWN = 5


@dataclass
class Record:
    """What the clients know: which transfers got a 202, under which id, and every answer that was not as promised."""

    accepted: dict[str, Planned] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def accept(self, planned: Planned, transfer_id: str | None = None) -> None:
        self.accepted[planned.reference] = planned
        if transfer_id is not None:
            self.ids[planned.reference] = transfer_id


class Unanswered(Exception):
    """The API took neither a yes nor a no out of many attempts at the same request."""


@dataclass
class Sender:
    """Concurrent clients of one API."""

    api: str
    token: str
    record: Record = field(default_factory=Record)

    async def send(self, singles: list[Planned], batches: Iterable[list[Planned]], *, clients: int) -> None:
        """Send everything; `clients` are at work on single transfers while two more send batches."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        one_by_one, in_batches = iter(singles), iter(batches)
        target = self._target()
        # Two for each client: it may send the same order twice at once.
        pairs = [(Connection(target), Connection(target)) for _ in range(clients)]
        for_batches = [Connection(target) for _ in range(BATCH_CLIENTS)]
        try:
            await asyncio.gather(
                *(self._send_singles(first, second, one_by_one) for first, second in pairs),
                *(self._send_batches(connection, in_batches) for connection in for_batches),
            )
        finally:
            for connection in itertools.chain(*pairs, for_batches):
                connection.close()
        self.record.seconds = loop.time() - began

    def _target(self) -> Target:
        return Target(self.api, (("Authorization", f"Bearer {self.token}"),))

    async def _send_singles(self, http: Connection, other: Connection, plan: Iterator[Planned]) -> None:
        for planned in plan:
            key = str(uuid4())
            match planned.kind:
                case Kind.INVALID:
                    await self._expect_invalid(http, planned, key)
                case Kind.TWICE_AT_ONCE:
                    both = (self._post(one, "transfers", planned.body, key) for one in (http, other))
                    self._judge_repeat(planned, *await asyncio.gather(*both))
                case Kind.REPEATED:
                    first = await self._post(http, "transfers", planned.body, key)
                    self._judge_repeat(planned, first, await self._post(http, "transfers", planned.body, key))
                case Kind.KEY_REUSED:
                    self._judge_accepted(planned, await self._post(http, "transfers", planned.body, key))
                    await self._expect_key_reused(http, planned, key)
                case _:
                    self._judge_accepted(planned, await self._post(http, "transfers", planned.body, key))

    async def _send_batches(self, http: Connection, plan: Iterator[list[Planned]]) -> None:
        for rows in plan:
            body = {"atomic": False, "transfers": [row.body for row in rows]}
            answer = await self._post(http, "batches", body, str(uuid4()))
            if answer.status != ACCEPTED:
                self._surprise("a batch", answer)
                continue
            self.record.answers["batches accepted"] += 1
            taken = json.loads(answer.body)
            refused = {int(error["field"].split(".")[1]) for error in taken["refused"]}
            if refused:
                self._surprise(f"{len(refused)} rows of a batch", answer)
            good = [row for place, row in enumerate(rows) if place not in refused]
            self.record.batches[str(taken["id"])] = len(good)
            for row in good:
                self.record.accept(row)

    async def _post(self, http: Connection, path: str, body: dict[str, Any], key: str) -> Answer:
        """Post until there is an answer to keep: when busy or cut off, try again under the same key."""
        headers = (("Idempotency-Key", key),)
        request = self._target().post(f"/api/v1/{path}", json.dumps(body).encode(), headers)
        for attempt in itertools.count(1):
            pause = PAUSE_SECONDS
            try:
                answer = await http.send(request)
            except OSError as error:
                self.record.answers["connection broken"] += 1
                if attempt >= ATTEMPTS_MAX:
                    raise Unanswered(f"{path}: {error!r}") from error
            else:
                busy = answer.status in (TOO_MANY, UNAVAILABLE)
                # 409 without a body of its own: the first request under this key has not been answered yet.
                in_flight = answer.status == CONFLICT
                if attempt >= ATTEMPTS_MAX or not (busy or in_flight):
                    return answer
                self.record.answers["asked to come back later" if busy else "still in flight"] += 1
                pause = _retry_after_seconds(answer)
            await asyncio.sleep(pause)
        raise Unanswered(path)

    def _judge_accepted(self, planned: Planned, answer: Answer) -> bool:
        if answer.status != ACCEPTED:
            self._surprise(planned.kind, answer)
            return False
        self.record.accept(planned, str(json.loads(answer.body)["id"]))
        self.record.answers["singles accepted"] += 1
        return True

    def _judge_repeat(self, planned: Planned, first: Answer, second: Answer) -> None:
        if not self._judge_accepted(planned, first):
            return
        replays = [a for a in (first, second) if a.header("Idempotent-Replayed") == "true"]
        same = second.status == ACCEPTED and json.loads(second.body)["id"] == json.loads(first.body)["id"]
        if same and replays:
            self.record.answers["repeats recognised"] += 1
        else:
            self._surprise(planned.kind, second)

    async def _expect_invalid(self, http: Connection, planned: Planned, key: str) -> None:
        answer = await self._post(http, "transfers", planned.body, key)
        if answer.status in (BAD_REQUEST, UNPROCESSABLE):
            self.record.answers["invalid refused"] += 1
        else:
            self._surprise(planned.kind, answer)

    async def _expect_key_reused(self, http: Connection, planned: Planned, key: str) -> None:
        other = planned.body | {"amount_minor": planned.amount_minor + 1}
        answer = await self._post(http, "transfers", other, key)
        code = json.loads(answer.body).get("code") if answer.status == UNPROCESSABLE else None
        if code == "idempotency_key_reused":
            self.record.answers["reused keys refused"] += 1
        else:
            self._surprise(planned.kind, answer)

    def _surprise(self, what: str, answer: Answer) -> None:
        self.record.answers["surprise"] += 1
        if len(self.record.surprises) < SURPRISES_SHOWN:
            self.record.surprises.append(f"{what}: {answer.status} {answer.body.decode(errors='replace')[:300]}")


def _retry_after_seconds(answer: Answer) -> float:
    value = answer.header("Retry-After") or ""
    return min(float(value), RETRY_AFTER_SECONDS_MAX) if value.isdigit() else PAUSE_SECONDS
