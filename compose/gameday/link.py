"""One proxied link: the connections through it, and what the weather does to them.

Order within a direction is always kept. A connection that lost bytes (HALF_OPEN) is reset when the weather changes, as
a host that was away would answer; one that was only held back (CUT) goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter, deque

from compose.gameday.weather import FAIR, Mode, Weather

HELD_BYTES_MAX = 256 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Link:
    """A listener on one port whose connections go on to another, through the weather of the moment."""

    def __init__(self, name: str, target: int, seed: int) -> None:
        self.name = name
        self.target = target
        self.weather = FAIR
        self.counts: Counter[str] = Counter()
        self.random = random.Random(f"{seed}:{name}")
        self._connections: set[Connection] = set()

    async def listen(self, port: int) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: Connection(self).client, "127.0.0.1", port, backlog=512)

    def change(self, weather: Weather) -> None:
        """Let other weather begin, for the connections that there are and those to come."""
        self.weather = weather
        self.counts["changes"] += 1
        for connection in list(self._connections):
            connection.weather_changed()

    def stats(self) -> dict[str, object]:
        return {"open": len(self._connections), "weather": self.weather.mode.value, **self.counts}

    def add(self, connection: Connection) -> None:
        self._connections.add(connection)
        self.counts["accepted"] += 1

    def discard(self, connection: Connection) -> None:
        self._connections.discard(connection)


class Connection:
    """Two sockets and what lies between them."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.loop = asyncio.get_running_loop()
        self.client = Side(self)
        self.server = Side(self)
        self.client.other, self.server.other = self.server, self.client
        self.is_struck = False
        self.lost_bytes = False
        self._dialling: asyncio.Task[None] | None = None
        self._reset: asyncio.TimerHandle | None = None

    @property
    def weather(self) -> Weather:
        return self.link.weather if self.is_struck else FAIR

    def opened(self) -> None:
        self.link.add(self)
        self._be_struck()
        if self.weather.mode is not Mode.CUT:
            self._dial()
        # Otherwise the handshake of the protocol above waits, as it would for a host that cannot be reached.

    def weather_changed(self) -> None:
        if self.lost_bytes:
            self.abort()
            return
        self._be_struck()
        if self.weather.mode is not Mode.CUT:
            self._dial()
            self.client.release()
            self.server.release()

    def _be_struck(self) -> None:
        weather = self.link.weather
        self.is_struck = weather.mode is Mode.STALL or self.link.random.random() < weather.share
        if self._reset is not None:
            self._reset.cancel()
            self._reset = None
        if self.weather.mode is Mode.RESET:
            wait = self.weather.seconds * self.link.random.random()
            self._reset = self.loop.call_later(wait, self.abort)

    def _dial(self) -> None:
        if self._dialling is None:
            self._dialling = self.loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await self.loop.create_connection(lambda: self.server, "127.0.0.1", self.link.target)
        except OSError:
            self.link.counts["refused"] += 1
            self.abort()

    def abort(self) -> None:
        """Reset both ends."""
        self.link.counts["resets"] += 1
        for side in (self.client, self.server):
            side.reset()
        self.forget()

    def forget(self) -> None:
        if self._reset is not None:
            self._reset.cancel()
        self.link.discard(self)


class Side(asyncio.Protocol):
    """One end of a connection: what it receives leaves at the other end, when the weather lets it."""

    other: Side

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.transport: asyncio.Transport | None = None
        self.was_connected = False
        # What was received here and has not left there yet, each with the moment it may; None is the close.
        self._waiting: deque[tuple[float, bytes | None]] = deque()
        self._waiting_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_congested = False

    # -- what asyncio calls --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 the loop makes no other for a TCP connection
        self.transport = transport
        self.was_connected = True
        if self.other.transport is None and self is self.connection.client:
            self.connection.opened()
        else:
            self.other.release()

    def data_received(self, data: bytes) -> None:
        counts, weather = self.connection.link.counts, self.connection.weather
        counts["bytes"] += len(data)
        if weather.mode is Mode.HALF_OPEN:
            self.connection.lost_bytes = True
            counts["swallowed"] += len(data)
            return
        moment = self._moment(data, weather)
        is_clear = weather.mode is not Mode.CUT and moment == 0
        if is_clear and not self._waiting and self.other.transport is not None:
            self.other.transport.write(data)
            return
        self._enqueue(moment, data)

    def connection_lost(self, exc: Exception | None) -> None:
        weather = self.connection.weather
        self.transport = None
        if self.other.transport is None:
            self.connection.forget()
            if self.other.was_connected:
                return
        if weather.mode is Mode.HALF_OPEN:
            # The other end never hears of it: what it has is half a connection.
            self.connection.lost_bytes = True
            return
        late = weather.seconds if weather.mode is Mode.SLOW_CLOSE else 0.0
        if late:
            self.connection.link.counts["closed_late"] += 1
        self._enqueue(self.connection.loop.time() + late if late else 0, None)

    def pause_writing(self) -> None:
        self._is_congested = True
        self.other.hold_or_go()

    def resume_writing(self) -> None:
        self._is_congested = False
        self.other.hold_or_go()

    # -- the way to the other end --------------------------------------------------------------------------------------

    def _moment(self, data: bytes, weather: Weather) -> float:
        """When these bytes may leave; 0: at once."""
        link, now = self.connection.link, self.connection.loop.time()
        if weather.mode is Mode.LATENCY:
            link.counts["delayed"] += 1
            return now + weather.seconds + link.random.random() * weather.jitter_seconds
        if weather.mode is Mode.STALL and link.random.random() < weather.share:
            link.counts["stalled"] += 1
            return now + weather.seconds
        if weather.mode is Mode.BANDWIDTH:
            link.counts["throttled"] += 1
            began = self._waiting[-1][0] if self._waiting else now
            return max(began, now) + len(data) / weather.bytes_per_second
        return 0

    def _enqueue(self, moment: float, data: bytes | None) -> None:
        if self._waiting:
            moment = max(moment, self._waiting[-1][0])
        self._waiting.append((moment, data))
        self._waiting_bytes += len(data or b"")
        if self.connection.weather.mode is Mode.CUT:
            self.connection.link.counts["held"] += len(data or b"")
        self.release()

    def release(self) -> None:
        """Send on what is due, and look again when the next is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and self.connection.weather.mode is not Mode.CUT:
            moment, data = self._waiting[0]
            wait = moment - self.connection.loop.time()
            # In fair weather nothing waits any longer for a moment that foul weather had set.
            if wait > 0 and self.connection.weather.mode is not Mode.PASS:
                self._timer = self.connection.loop.call_later(wait, self.release)
                break
            if not self.other.was_connected:
                break
            self._waiting.popleft()
            self._waiting_bytes -= len(data or b"")
            self._send(data)
        self.hold_or_go()

    def _send(self, data: bytes | None) -> None:
        if self.other.transport is None:
            return
        if data is None:
            self.other.transport.close()
        else:
            self.other.transport.write(data)

    def hold_or_go(self) -> None:
        """Read no more than the other end, or the memory, can take."""
        if self.transport is None or self.transport.is_closing():
            return
        if self.other._is_congested or self._waiting_bytes > HELD_BYTES_MAX:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def reset(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._waiting.clear()
        if self.transport is None:
            return
        with contextlib.suppress(OSError):
            socket_ = self.transport.get_extra_info("socket")
            socket_.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()
