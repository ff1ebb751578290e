"""A customer's program that takes webhooks: a small HTTP server that writes down every call that reached it.

It is no perfect one: of a hundred deliveries it refuses the first call of two, and takes one and breaks off before it
answers. So calls are repeated all the time, not only when a worker dies.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

from standardwebhooks import Webhook, WebhookVerificationError

if TYPE_CHECKING:
    from compose.gameday.clients import Load
    from compose.gameday.workload import Cast

FILE = "webhooks.jsonl"
TOLD = ("transfer.posted", "transfer.rejected", "transfer.cancelled", "transfer.in_review", "transfer.parked")
HANGS_SECONDS = 8.0
BROKEN_OFF = 0


class Mood(StrEnum):
    """WELL is the usual one; otherwise every call is refused with 503, kept waiting, or cut off."""

    WELL = "well"
    REFUSES = "refuses"
    HANGS = "hangs"
    BREAKS_OFF = "breaks off"


class Arrival(NamedTuple):
    """One call: who it was for (the path), what it said, and what it was answered (0: the connection was cut)."""

    endpoint: str
    id: str
    signed: bool
    body: str
    answer: int


@dataclass(frozen=True)
class Wish:
    """Which account's customer wants to be told, under which path, and whether in order."""

    path: str
    account: str
    ordered: bool


def wishes(cast: Cast) -> list[Wish]:
    """A rich account and a poor one in order; the hot one all at once, as single calls would not keep up."""
    return [Wish("/hot", cast.hot, False), Wish("/poor", cast.poor[0], True), Wish("/plain", cast.rich[5], True)]


class Receiver:
    """Takes calls for all endpoints; each has a path and a secret of its own."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.mood = Mood.WELL
        # How many calls met it in which mood.
        self.met: Counter[Mood] = Counter()
        self._seed = seed
        self._secrets: dict[str, str] = {}
        self._seen: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._file = (folder / FILE).open("a", buffering=1)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True, name="webhooks").start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def register(self, load: Load, wanted: Sequence[Wish]) -> None:
        """Have the bank tell the customers of these accounts of everything. Raises LoadError."""
        for wish in wanted:
            customer = load.ask(f"accounts/{wish.account}")["customer"]
            order = {
                "url": self.url + wish.path,
                "event_types": list(TOLD),
                "ordered": wish.ordered,
                "customer": customer,
            }
            self._secrets[wish.path] = load.ask("webhook-endpoints", order)["secret"]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._file.close()

    def take(self, path: str, headers: dict[str, str], body: bytes) -> int:
        """Write a call down and return what to answer."""
        arrival_id = headers.get("webhook-id", "")
        with self._lock:
            mood = self.mood
            self.met[mood] += 1
            answer = self._answer(path, arrival_id, mood)
            facts = Arrival(path, arrival_id, self._is_signed(path, headers, body), body.decode(), answer)
            self._file.write(json.dumps({"t": time.time(), **facts._asdict()}) + "\n")
        if mood is Mood.HANGS:
            time.sleep(HANGS_SECONDS)
        return answer

    def _answer(self, path: str, arrival_id: str, mood: Mood) -> int:
        if mood is Mood.REFUSES:
            return 503
        if mood in (Mood.HANGS, Mood.BREAKS_OFF):
            return BROKEN_OFF
        is_first = (path, arrival_id) not in self._seen
        self._seen.add((path, arrival_id))
        drawn = crc32(f"{self._seed}:{path}:{arrival_id}".encode()) % 100 if is_first else 99
        return 503 if drawn < 2 else BROKEN_OFF if drawn < 3 else 204

    def _is_signed(self, path: str, headers: dict[str, str], body: bytes) -> bool:
        try:
            Webhook(self._secrets[path]).verify(body, headers)
        except (KeyError, WebhookVerificationError):
            return False
        return True


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            answer = receiver.take(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            if answer == BROKEN_OFF:
                self.close_connection = True
                return
            self.send_response(answer)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing: the file has it all."""

    return Handler


@contextmanager
def receiving(folder: Path, seed: int) -> Iterator[Receiver]:
    receiver = Receiver(folder, seed)
    try:
        yield receiver
    finally:
        receiver.close()


def read_arrivals(path: Path) -> list[Arrival]:
    """Read what a receiver wrote, in the order of arrival; half a line at the end is left out."""
    arrivals = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            facts = json.loads(line)
        except ValueError:
            continue
        arrivals.append(Arrival(*(facts[name] for name in Arrival._fields)))
    return arrivals
