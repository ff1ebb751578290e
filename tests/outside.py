"""Systems outside, as small real servers: an HTTP server that behaves as told, and a mail server that may hang."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class HttpServer:
    """Answers every POST by `answer(body) -> (status, headers, content)`; `requests` are (headers, body) in order."""

    def __init__(self, answer: Callable[[bytes], tuple[int, dict[str, str], bytes]]) -> None:
        self.answer = answer
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.url = ""


@contextmanager
def http_server(answer: Callable[[bytes], tuple[int, dict[str, str], bytes]]) -> Iterator[HttpServer]:
    server = HttpServer(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            server.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
            status, headers, content = server.answer(body)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def handle(self) -> None:
            # A client may have had enough of waiting.
            with suppress(ConnectionError):
                super().handle()

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        listener.daemon_threads = True
        server.url = f"http://127.0.0.1:{listener.server_port}/"
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join()


def as_json(content: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()


def slowly(seconds: float, then: tuple[int, dict[str, str], bytes]) -> tuple[int, dict[str, str], bytes]:
    time.sleep(seconds)
    return then


class MailServer:
    """A mail server on the loopback. `mood`: well, hangs (says nothing), slow, refuses (421), failing (554).

    Or it dribbles a byte at a time, or babbles line after line: a reply takes three seconds and never falls silent.
    """

    def __init__(self) -> None:
        self.mood = "well"
        self.messages: list[str] = []
        self.connections = 0
        self.port = 0
        self._started = threading.Event()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1

        async def say(line: str) -> None:
            while self.mood == "hangs":
                await asyncio.sleep(0.05)
            if self.mood == "slow":
                await asyncio.sleep(0.5)
            if self.mood == "dribbles":
                writer.write(line[:4].encode())
                line = line[4:]
            for _ in range(60):
                if self.mood not in ("dribbles", "babbles"):
                    break
                # A reply of many lines says so in each but the last. Either one is valid, once it has come to its end.
                writer.write(b"." if self.mood == "dribbles" else line[:3].encode() + b"-wait\r\n")
                await writer.drain()
                await asyncio.sleep(0.05)
            writer.write(f"{line}\r\n".encode())
            await writer.drain()

        try:
            await say("421 busy" if self.mood == "refuses" else "220 test ready")
            while line := await reader.readline():
                word = line[:4].upper().strip()
                if word == b"DATA" and self.mood == "failing":
                    await say("554 transaction failed")
                elif word == b"DATA":
                    await say("354 go on")
                    message = await reader.readuntil(b"\r\n.\r\n")
                    self.messages.append(message.decode())
                    await say("250 taken")
                elif word == b"QUIT":
                    await say("221 bye")
                    break
                else:
                    await say("250 ok")
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    def run(self, stop: threading.Event) -> None:
        async def serve() -> None:
            server = await asyncio.start_server(self._converse, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            self._started.set()
            while not stop.is_set():
                await asyncio.sleep(0.05)
            server.close()

        asyncio.run(serve())


@contextmanager
def mail_server() -> Iterator[MailServer]:
    server, stop = MailServer(), threading.Event()
    thread = threading.Thread(target=server.run, args=(stop,), daemon=True)
    thread.start()
    assert server._started.wait(60)
    try:
        yield server
    finally:
        stop.set()
        thread.join(10)
