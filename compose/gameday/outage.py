"""The whole broker is away: every order is taken until the backlog is full or the time is over, then refused honestly.

Two clients order by turns a batch and a single transfer, as fast as they are answered or at a pace, and write down
each answer. Once both have been refused for good the broker comes back; what was refused is ordered again under its
key, all drains, and the usual verdict looks for every accepted transfer.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg

from compose.gameday.clients import Load
from compose.gameday.cluster import NODES
from compose.gameday.drain import await_drain
from compose.gameday.faults.fault import wait_until
from compose.gameday.faults.nodes import await_whole
from compose.gameday.history import History, digest, problem_of
from compose.gameday.rig import Rig, rig
from compose.gameday.timeline import Timeline
from compose.gameday.verdict import Verdict, judge
from compose.gameday.workload import Cast
from compose.instance import STATE, make_folder, write_private

# So many refusals in a row, and a client takes it for an answer.
REFUSED_MAX = 20
CLIENTS = 2
REFUSED_PAUSE_SECONDS = 0.2
ATTEMPT_SECONDS_MAX = 60.0
DRAIN_SECONDS_MAX = 1_800.0
STALL_SECONDS_MAX = 240.0
_WAITING = "SELECT count(*) FROM transfers_transfer WHERE status IN ('accepted', 'approved')"


@dataclass(frozen=True)
class Plan:
    """Orders of `rows` transfers each (and single ones between them) until `backlog` wait or `minutes` have passed."""

    seed: int
    backlog: int = 50_000
    minutes: float = 10.0
    rows: int = 500
    # Transfers in a second; 0: as many as are answered.
    pace: float = 0.0


@dataclass
class Seen:
    """What the clients were answered while the broker was away."""

    accepted: int = 0
    answers: dict[int, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    # Those that say "not now" in another way than with 503, retryable and Retry-After.
    dishonest: list[str] = field(default_factory=list)
    first_refusal: dict[str, float] = field(default_factory=dict)
    refused: list[_Order] = field(default_factory=list)
    retry_after: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class _Order:
    name: str
    kind: str
    body: dict[str, Any]
    rows: int


@dataclass
class Outcome:
    plan: Plan
    seen: Seen
    verdict: Verdict
    away_seconds: float
    first_posted_seconds: float
    drain_seconds: float
    left: dict[str, int]

    @property
    def clean(self) -> bool:
        """Nothing but 202 up to the cap, nothing but honest refusals beyond it, and everything taken has its end."""
        refusal = self.seen.first_refusal
        is_full = refusal.get("waiting", 0) + self.plan.rows * CLIENTS >= self.plan.backlog
        is_over = refusal.get("seconds", 0.0) >= self.plan.minutes * 60
        answers = set(self.seen.answers) <= {202, 503} and not self.seen.dishonest
        return bool(refusal) and (is_full or is_over) and answers and self.verdict.clean and not self.left

    def as_json(self) -> dict[str, Any]:
        latency = sorted(self.seen.seconds)
        return {
            "broker_down": True,
            "backlog_max": self.plan.backlog,
            "minutes_max": self.plan.minutes,
            "pace": self.plan.pace,
            "accepted_while_away": self.seen.accepted,
            "answers": self.seen.answers,
            "first_refusal": self.seen.first_refusal,
            "dishonest": len(self.seen.dishonest),
            "retry_after_seconds": [min(self.seen.retry_after, default=0), max(self.seen.retry_after, default=0)],
            "answer_p50_ms": round(1000 * latency[len(latency) // 2], 1) if latency else None,
            "answer_p99_ms": round(1000 * latency[int(len(latency) * 0.99)], 1) if latency else None,
            "away_seconds": round(self.away_seconds, 1),
            "first_posted_seconds": round(self.first_posted_seconds, 1),
            "drain_seconds": round(self.drain_seconds, 1),
            "left": sum(self.left.values()),
            "accepted": self.verdict.accepted,
            **self.verdict.damage,
            "books": self.verdict.books,
            "clean": self.clean,
        }


def play(plan: Plan, timeline: Timeline) -> Outcome:
    """Play it once on a private stack. Raises StackError, LoadError, or TookNoHold if the broker does not go."""
    folder = STATE / "gameday" / f"broker-down-{plan.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    make_folder(folder.parent)
    make_folder(folder)
    environment = {
        "BACKLOG_MAX": str(plan.backlog),
        "OUTAGE_ACCEPT_SECONDS": str(plan.minutes * 60),
        "STUCK_SECONDS": "10",
    }
    with rig(seed=plan.seed, environment=environment) as running:
        load = Load(running.api_urls, running.environment, plan.seed, folder, rate=0)
        cast, token = load.seed_accounts(), load.token
        timeline.say("up", f"a transfer was posted {load.probe():.1f} s after it was accepted")
        running.stop(*NODES)
        wait_until("no node of the broker answers", lambda: not running.cluster.running(), seconds=30)
        away_at = time.monotonic()
        timeline.say("away", f"{', '.join(NODES)} stopped")
        seen = _order_until_refused(plan, running, cast, token, folder, timeline)
        away_seconds = time.monotonic() - away_at
        running.start(*NODES)
        await_whole(running)
        back_at = time.monotonic()
        timeline.say("back", f"the broker runs again after {away_seconds:.0f} s")
        load.probe(seconds_max=DRAIN_SECONDS_MAX)
        first_posted_seconds = time.monotonic() - back_at
        timeline.say("recovered", f"a new transfer was taken and posted {first_posted_seconds:.1f} s after that")
        _order_again(seen, running, token, folder)
        _, left = await_drain(running, STALL_SECONDS_MAX, lambda text: timeline.say("drain", text))
        drain_seconds = time.monotonic() - back_at
        timeline.say("judge", f"drained {drain_seconds:.1f} s after the broker came back")
        verdict = judge(folder, running.api_urls, running.database_url, running.mail)
        outcome = Outcome(plan, seen, verdict, away_seconds, first_posted_seconds, drain_seconds, left)
        report = {**outcome.as_json(), "details": verdict.details, "complaints": seen.dishonest}
        write_private(folder / "report.json", json.dumps(report, indent=2, default=str) + "\n")
    return outcome


def _order_until_refused(plan: Plan, running: Rig, cast: Cast, token: str, folder: Path, timeline: Timeline) -> Seen:
    seen, lock, began = Seen(), threading.Lock(), time.monotonic()

    def client(number: int) -> None:
        history = History(folder / f"history-away-{number}.jsonl")
        refused_in_a_row = sent = 0
        with _session(running.api_urls[number % len(running.api_urls)], token) as session:
            for order in _orders(plan, cast, number):
                answer, seconds = _ask(session, history, order)
                with lock:
                    _note(seen, order, answer, seconds, lambda: _refusal(running, began))
                refused_in_a_row = 0 if answer.status_code == 202 else refused_in_a_row + 1
                sent += order.rows
                if plan.pace:
                    time.sleep(max(0.0, began + sent * CLIENTS / plan.pace - time.monotonic()))
                if refused_in_a_row:
                    time.sleep(REFUSED_PAUSE_SECONDS)
                if refused_in_a_row >= REFUSED_MAX:
                    return

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        threads[0].join(10)
        timeline.say("taken", f"{seen.accepted:,} transfers; answers {seen.answers}")
    return seen


def _note(
    seen: Seen, order: _Order, answer: httpx.Response, seconds: float, refusal: Callable[[], dict[str, float]]
) -> None:
    seen.answers[answer.status_code] = seen.answers.get(answer.status_code, 0) + 1
    seen.seconds.append(seconds)
    if answer.status_code == 202:
        seen.accepted += order.rows
        return
    seen.refused.append(order)
    if not seen.first_refusal:
        seen.first_refusal = {**refusal(), "rows": order.rows}
    if retry_after := answer.headers.get("Retry-After"):
        seen.retry_after.add(int(retry_after))
    kind = answer.headers.get("Content-Type", "")
    complaint = problem_of(answer.status_code, kind, answer.content, retry_after)
    if complaint or answer.status_code != 503:
        seen.dishonest.append(f"{order.name}: {complaint or answer.status_code}")


def _refusal(running: Rig, began: float) -> dict[str, float]:
    seconds = time.monotonic() - began
    with psycopg.connect(running.database_url, autocommit=True) as database:
        row = database.execute(_WAITING).fetchone() or (0,)
    return {"seconds": round(seconds, 1), "waiting": row[0]}


def _orders(plan: Plan, cast: Cast, number: int) -> Iterator[_Order]:
    """A batch and a single transfer by turns, each with other accounts; no account is debited by two clients."""
    mine = cast.rich[number::CLIENTS]
    run = f"away{number}-{uuid4().hex[:6]}"
    count = 0
    while True:
        count += 1
        rows = [_body(cast, mine, f"{run}-{count}.{place}", count + place) for place in range(plan.rows)]
        yield _Order(f"{run}-{count}", "batch", {"atomic": False, "transfers": rows}, plan.rows)
        yield _Order(f"{run}-{count}s", "transfer", _body(cast, mine, f"{run}-{count}s", count), 1)


def _body(cast: Cast, mine: Sequence[str], reference: str, turn: int) -> dict[str, Any]:
    debit = mine[turn % len(mine)]
    credit = mine[(turn + 1) % len(mine)]
    return {
        "debit_account": debit,
        "credit_account": credit,
        "amount_minor": 1,
        "currency": cast.currency,
        "reference": reference,
    }


def _session(url: str, token: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=f"{url}/api/v1/", headers=headers, timeout=ATTEMPT_SECONDS_MAX)


def _ask(session: httpx.Client, history: History, order: _Order) -> tuple[httpx.Response, float]:
    """Order once, and write down the attempt and its answer; a refusal leaves it open. Raises httpx.HTTPError."""
    path = {"batch": "batches", "transfer": "transfers"}[order.kind]
    facts = {"kind": order.kind, "purpose": "away", "path": f"/api/v1/{path}", "key": order.name}
    history.write("invoke", op=order.name, expected=[202], body=order.body, **facts)
    began = time.monotonic()
    answer = session.post(path, json=order.body, headers={"Idempotency-Key": order.name})
    seconds = time.monotonic() - began
    if answer.status_code == 202:
        told = answer.json()
        kept = ("id", "accepted", "refused") if order.kind == "batch" else ("id", "status")
        essence = {name: told.get(name) for name in kept}
        history.write("ok", op=order.name, status=202, digest=digest(answer.content), answer=essence)
    else:
        history.write("info", op=order.name, why=str(answer.status_code))
    return answer, seconds


def _order_again(seen: Seen, running: Rig, token: str, folder: Path) -> None:
    """What was refused is ordered again under its key, until it is taken. Raises TookNoHold if it never is."""
    history = History(folder / "history-again.jsonl")
    with _session(running.api_urls[0], token) as session:
        for order in seen.refused:
            wait_until(
                f"{order.name} is taken at last",
                lambda order=order: _ask(session, history, order)[0].status_code == 202,  # type: ignore[misc]
                seconds=DRAIN_SECONDS_MAX,
            )
