"""The proxy of a game day (`python -m compose.gameday.proxy FILE`): every link between the programs of the stack.

FILE holds {"seed": n, "control": port, "links": [{"name", "listen", "target"}], "mappers": [{"node", "listen",
"routes": {peer: port}}]}. Control is one JSON object a line on a loopback port: {"do": "change", "link": name,
"weather": {...}} or {"do": "stats"}; each is answered by a line, {"error": text} if it made no sense. Everything is
drawn from the seed, link by link. Loopback only.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compose.gameday.link import Link
from compose.gameday.mapper import Mapper
from compose.gameday.weather import FAIR, Weather

ANSWER_SECONDS_MAX = 10.0


class Proxy:
    """All links and port mappers of one stack."""

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        self.configuration = configuration
        seed = int(configuration["seed"])
        self.links = {entry["name"]: Link(entry["name"], entry["target"], seed) for entry in configuration["links"]}

    async def serve(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sign, stop.set)
        for entry in self.configuration["links"]:
            await self.links[entry["name"]].listen(entry["listen"])
        registered: dict[str, bytes] = {}
        for entry in self.configuration.get("mappers", ()):
            await Mapper(entry["node"], entry["routes"], registered).listen(entry["listen"])
        # Last: whoever can talk to the proxy can count on all of it.
        await asyncio.start_server(self._control, "127.0.0.1", self.configuration["control"])
        await stop.wait()

    async def _control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(json.dumps(self._answer(line)).encode() + b"\n")
            await writer.drain()
        writer.close()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            order = json.loads(line)
            if order["do"] == "stats":
                return {name: link.stats() for name, link in self.links.items()}
            link = self.links[order["link"]]
            link.change(Weather.of(order["weather"]))
            return link.stats()
        except (ValueError, TypeError, KeyError) as error:
            return {"error": f"{type(error).__name__}: {error}"}


class ProxyControl:
    """A running proxy, from another process. Safe to use from several threads."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()

    def change(self, link: str, weather: Weather) -> dict[str, Any]:
        """Change one link's weather. Raises OSError when the proxy is gone, ValueError when it does not understand."""
        return self._ask({"do": "change", "link": link, "weather": weather.as_json()})

    def heal(self, *links: str) -> None:
        """Let there be fair weather on these links, or on all."""
        for link in links or self.stats():
            self.change(link, FAIR)

    def stats(self) -> dict[str, Any]:
        return self._ask({"do": "stats"})

    def _ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        address = ("127.0.0.1", self._port)
        with self._lock, socket.create_connection(address, timeout=ANSWER_SECONDS_MAX) as connection:
            connection.sendall(json.dumps(order).encode() + b"\n")
            with connection.makefile("rb") as lines:
                answer: dict[str, Any] = json.loads(lines.readline())
        if "error" in answer:
            raise ValueError(f"the proxy did not understand {order}: {answer['error']}")
        return answer


if __name__ == "__main__":
    asyncio.run(Proxy(json.loads(Path(sys.argv[1]).read_text())).serve())
