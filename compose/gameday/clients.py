"""Clients for a game day: a mixed load in a process of its own, and a probe that says how soon money moves again.

The load writes down what every answer was (history.py); the verdict (verdict.py) reads nothing else of it.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from compose.gameday.history import History, digest
from compose.gameday.workload import POOR_MINOR, REPLAY, REVIEW_AMOUNT_MINOR, RICH_MINOR, Cast
from compose.instance import REPOSITORY

RICH_ACCOUNTS, POOR_ACCOUNTS, PROBE_ACCOUNTS = 41, 10, 2
# Accounts with an odd place in the seed are not told of anything, those with an even one are, in the app.
HOT_PLACE = 2
STOP_SECONDS_MAX = 120.0
PROBE_PAUSE_SECONDS = 0.05
PROBE_ATTEMPT_SECONDS = 3.0
CURRENCY = "EUR"


class LoadError(Exception):
    """The load could not be set up or was not on its feet any more; the message says what to look at."""


class Load:
    """A seeded mixed load on one or more web processes, in a process of its own.

    `api_urls` are base addresses without /api/v1; `environment` is what a manage.py command of the stack needs;
    `folder` takes the histories and the plan (which holds a token, mode 600); `rate` is how many orders begin in a
    second (a batch is one of them).
    """

    def __init__(
        self, api_urls: Sequence[str], environment: Mapping[str, str], seed: int, folder: Path, rate: float
    ) -> None:
        self.api_urls, self.environment, self.seed, self.folder, self.rate = api_urls, environment, seed, folder, rate
        self.history = folder / "history-load.jsonl"
        self._process: subprocess.Popen[bytes] | None = None
        self._counts: Counter[str] = Counter()
        self._read_to = 0
        self.token = ""
        self._probes: list[str] = []
        self._probe_history: History | None = None
        self._cast: Cast | None = None

    def seed_accounts(self) -> Cast:
        """Open the accounts, once. Takes some seconds: the seeding goes through manage.py."""
        if self._cast is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._cast = self._seed()
        return self._cast

    def start(self) -> None:
        """Begin; seed the accounts before if nobody has."""
        cast = self.seed_accounts()
        run = f"gd{self.seed}-{uuid4().hex[:6]}"
        plan = {
            "api_urls": list(self.api_urls),
            "token": self.token,
            "seed": self.seed,
            "rate": self.rate,
            "run": run,
            "cast": {**vars(cast)},
        }
        plan_file = self.folder / "plan.json"
        with os.fdopen(os.open(plan_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(plan, file)
        with (self.folder / "load.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "compose.gameday.driver", str(plan_file), str(self.history)],
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )

    def stop(self, seconds_max: float = STOP_SECONDS_MAX) -> dict[str, int]:
        """Begin no more orders, bring those on their way to a definite end, and return the counts.

        What has no definite answer after `seconds_max` stays unknown; the verdict then allows it either end.

        Raises:
            LoadError: the load had died before it was stopped.
        """
        process = self._process
        if process is None:
            return self.counts()
        self._process = None
        died = process.poll()
        if died is None:
            _say(process, {"stop": seconds_max})
            try:
                process.wait(seconds_max + 30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdin:
            process.stdin.close()
        if died or process.returncode:
            raise LoadError(f"The load ended with {process.returncode}; see {self.folder / 'load.log'}.")
        return self.counts()

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """GET, or POST a body, and return the answer. Raises LoadError unless it is a yes."""
        status, content = self._call(self.api_urls[0], path, body)
        if not 200 <= status < 300:
            raise LoadError(f"{path} answered {status}: {content[:500]!r}")
        answer: dict[str, Any] = json.loads(content)
        return answer

    def shift_clock(self, seconds: float) -> None:
        """Let the clients believe that it is so many seconds later than it is, from now on."""
        self._say({"shift_seconds": seconds})

    def set_rate(self, rate: float) -> None:
        """Begin so many orders a second from now on."""
        self._say({"rate": rate})

    @property
    def pid(self) -> int:
        """The load's process, for faults that freeze or kill a client."""
        return self._process.pid if self._process else 0

    def counts(self) -> dict[str, int]:
        """Count so far: orders `asked`, transfers `accepted` (rows of batches included), `refused`, `retried`."""
        if self.history.exists():
            with self.history.open("rb") as lines:
                lines.seek(self._read_to)
                for raw in lines:
                    if not raw.endswith(b"\n"):
                        break
                    self._read_to += len(raw)
                    self._count(raw)
        return {name: self._counts[name] for name in ("asked", "accepted", "refused", "retried")}

    def probe(self, api_url: str = "", seconds_max: float = 60.0) -> float:
        """Order one transfer between accounts of its own and return the seconds from its acceptance until it is posted.

        Asks every address in turn until one accepts.

        Raises:
            TimeoutError: it was not accepted, or not posted, within `seconds_max`.
        """
        urls = [api_url] if api_url else list(self.api_urls)
        if self._probe_history is None:
            self._probe_history = History(self.folder / "history-probe.jsonl")
        name = f"probe-{uuid4().hex}"
        body = {
            "debit_account": self._probes[0],
            "credit_account": self._probes[1],
            "amount_minor": 1,
            "currency": CURRENCY,
            "reference": name,
        }
        until = time.monotonic() + seconds_max
        transfer_id = self._accepted_probe(urls, name, body, until)
        began = time.monotonic()
        self._posted_probe(urls, transfer_id, until)
        return time.monotonic() - began

    def _accepted_probe(self, urls: Sequence[str], name: str, body: dict[str, Any], until: float) -> str:
        history, facts = self._probe_history, {"kind": "transfer", "path": "/api/v1/transfers"}
        assert history is not None  # noqa: S101  Its only caller has made it.
        attempt = 0
        while time.monotonic() < until:
            history.write("invoke", op=name, purpose="probe", key=name, body=body, expected=[202], **facts)
            status, content = self._call(urls[attempt % len(urls)], "transfers", body, name)
            attempt += 1
            if status == 202:
                answer = {"id": json.loads(content)["id"]}
                history.write("ok", op=name, status=status, digest=digest(content), answer=answer)
                return str(answer["id"])
            history.write("info", op=name, why=str(status or content[:100]))
            time.sleep(PROBE_PAUSE_SECONDS)
        raise TimeoutError(f"no probe was accepted: {status} {content[:200]!r}")

    def _posted_probe(self, urls: Sequence[str], transfer_id: str, until: float) -> None:
        attempt, status = 0, ""
        while time.monotonic() < until:
            code, content = self._call(urls[attempt % len(urls)], f"transfers/{transfer_id}")
            if code == 200:
                status = json.loads(content)["status"]
                if status == "posted":
                    return
            else:
                attempt += 1
            time.sleep(PROBE_PAUSE_SECONDS)
        raise TimeoutError(f"the probe {transfer_id} was not posted in time: {status or 'not to be seen'}")

    def _call(self, api_url: str, path: str, body: dict[str, Any] | None = None, key: str = "") -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        if key:
            headers["Idempotency-Key"] = key
        content = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"{api_url}/api/v1/{path}", content, headers)  # noqa: S310  Our own address.
        try:
            with urllib.request.urlopen(request, timeout=PROBE_ATTEMPT_SECONDS) as answer:  # noqa: S310
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except (OSError, ValueError, http.client.HTTPException) as error:
            return 0, str(error).encode()

    def _say(self, said: dict[str, float]) -> None:
        if self._process is None or self._process.poll() is not None:
            raise LoadError(f"The load is not running; see {self.folder / 'load.log'}.")
        _say(self._process, said)

    def _count(self, raw: bytes) -> None:
        try:
            line = json.loads(raw)
        except ValueError:
            return
        event, answer = line.get("event"), line.get("answer") or {}
        if event == "invoke":
            self._counts["asked" if "body" in line else "retried"] += 1
        elif event == "ok" and line["status"] == 202 and not line["op"].endswith(REPLAY):
            self._counts["accepted"] += 1 if "accepted" not in answer else int(answer["accepted"] or 0)
        elif event == "fail":
            self._counts["refused"] += 1

    def _seed(self) -> Cast:
        review = int(self.environment.get("RISK_REVIEW_AMOUNT_MINOR", REVIEW_AMOUNT_MINOR))
        history = History(self.folder / "history-accounts.jsonl")
        seeded: dict[str, list[str]] = {}
        for group, number, opening in (
            ("rich", RICH_ACCOUNTS, RICH_MINOR),
            ("poor", POOR_ACCOUNTS, POOR_MINOR),
            ("probe", PROBE_ACCOUNTS, RICH_MINOR),
        ):
            made = self._seed_demo(number, opening)
            seeded[group] = made["accounts"]
            self.token = made["token"]
            history.write(
                "accounts",
                group=group,
                accounts=made["accounts"],
                opening_minor=opening,
                review_amount_minor=review,
            )
        history.close()
        self._probes = seeded["probe"]
        return Cast(seeded["rich"], seeded["poor"], seeded["rich"][HOT_PLACE], CURRENCY, review)

    def _seed_demo(self, number: int, opening_minor: int) -> dict[str, Any]:
        amounts = ["--accounts", str(number), "--opening-minor", str(opening_minor), "--currency", CURRENCY]
        done = subprocess.run(
            [sys.executable, "manage.py", "seed_demo", *amounts, "--json"],
            cwd=REPOSITORY,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise LoadError(f"seed_demo failed: {done.stderr.strip()[-1000:]}")
        made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return made


def _say(process: subprocess.Popen[bytes], said: dict[str, float]) -> None:
    assert process.stdin is not None  # noqa: S101  It was made with a pipe.
    try:
        process.stdin.write(json.dumps(said).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        return
