"""A port mapper for Erlang nodes that sends each node to its peers through the proxy.

Erlang asks the port mapper (epmd) of a host where a node listens. Every broker node of a game day has a mapper of its
own, which tells the truth about that node and, for every peer, the port of the proxied link: so the traffic between
broker nodes can be slowed and cut without privileges. The protocol is Erlang's "EPMD Protocol", in the distribution
protocol's documentation.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from collections.abc import Mapping

ALIVE_REQUEST, ALIVE_ANSWER = 120, 118
PORT_REQUEST, PORT_ANSWER = 122, 119
NAMES_REQUEST = 110


class Mapper:
    """The mapper of one node. `registered` is shared by all mappers, so that a dead peer is known to be away."""

    def __init__(self, node: str, routes: Mapping[str, int], registered: dict[str, bytes]) -> None:
        self.node = node
        self.routes = routes
        self.registered = registered
        self._creations = itertools.count(1)
        self._port = 0

    async def listen(self, port: int) -> asyncio.Server:
        self._port = port
        return await asyncio.start_server(self._serve, "127.0.0.1", port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = ""
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                (length,) = struct.unpack(">H", await reader.readexactly(2))
                request = await reader.readexactly(length)
                if request[0] == ALIVE_REQUEST:
                    name = self._register(request)
                    writer.write(struct.pack(">BBI", ALIVE_ANSWER, 0, next(self._creations)))
                    # A node is registered as long as it holds this connection.
                    await reader.read()
                elif request[0] == PORT_REQUEST:
                    writer.write(self._port_answer(request[1:].decode()))
                elif request[0] == NAMES_REQUEST:
                    writer.write(struct.pack(">I", self._port) + self._names().encode())
                await writer.drain()
        finally:
            if name:
                self.registered.pop(name, None)
            writer.close()

    def _register(self, request: bytes) -> str:
        (length,) = struct.unpack(">H", request[9:11])
        name = request[11 : 11 + length].decode()
        self.registered[name] = request[1:9]
        return name

    def _port_answer(self, name: str) -> bytes:
        facts = self.registered.get(name)
        if facts is None:
            return bytes((PORT_ANSWER, 1))
        if name in self.routes:
            facts = struct.pack(">H", self.routes[name]) + facts[2:]
        return bytes((PORT_ANSWER, 0)) + facts + struct.pack(">H", len(name)) + name.encode() + b"\0\0"

    def _names(self) -> str:
        facts = self.registered.get(self.node)
        return f"name {self.node} at port {struct.unpack('>H', facts[:2])[0]}\n" if facts else ""
