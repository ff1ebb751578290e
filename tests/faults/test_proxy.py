"""The proxy of a game day: each kind of weather strikes as it says, and what it draws comes from the seed."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from compose.gameday.link import Link
from compose.gameday.mapper import ALIVE_REQUEST, NAMES_REQUEST, PORT_REQUEST, Mapper
from compose.gameday.weather import FAIR, Mode, Weather

NEVER = 0.2


class Echo:
    """A server that sends back what it gets, and says how its connections ended."""

    def __init__(self) -> None:
        self.ended: asyncio.Queue[str] = asyncio.Queue()
        self.received = bytearray()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.received += data
                writer.write(data)
                await writer.drain()
            self.ended.put_nowait("closed")
        except ConnectionResetError:
            self.ended.put_nowait("reset")
        finally:
            writer.close()


@asynccontextmanager
async def through(seed: int = 1) -> AsyncIterator[tuple[Link, Echo, int]]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    link = Link("a link", server.sockets[0].getsockname()[1], seed)
    listener = await link.listen(0)
    try:
        yield link, echo, listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        server.close()


def play(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 120))


async def until(check: Callable[[], bool]) -> None:
    """Give the others their turns until it is so."""
    async with asyncio.timeout(60):
        while not check():
            await asyncio.sleep(0.002)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes, seconds: float = 60) -> bytes:
    writer.write(data)
    return await asyncio.wait_for(reader.readexactly(len(data)), seconds)


def test_fair_weather_passes_everything_on_in_order_both_ways() -> None:
    async def test() -> None:
        async with through() as (link, _, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            content = bytes(range(256)) * 20_000
            assert await ask(reader, writer, content) == content
            assert link.stats()["open"] == 1
            writer.close()
            await until(lambda: link.stats()["open"] == 0)

    play(test)


def test_latency_delays_each_way_and_keeps_the_order() -> None:
    async def test() -> None:
        async with through() as (link, _, port):
            link.change(Weather(Mode.LATENCY, seconds=0.1, jitter_seconds=0.05))
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            began = time.monotonic()
            for number in range(20):
                writer.write(b"%03d" % number)
                await until(lambda number=number: link.counts["delayed"] > number)
            assert await reader.readexactly(60) == b"".join(b"%03d" % number for number in range(20))
            assert time.monotonic() - began > 0.2
            assert int(str(link.stats()["delayed"])) > 20

    play(test)


def test_a_stall_holds_some_chunks_and_nothing_overtakes_them() -> None:
    async def test() -> None:
        async with through() as (link, _, port):
            link.change(Weather(Mode.STALL, seconds=0.3, share=0.2))
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            sent = b""
            for number in range(20):
                writer.write(b"%03d" % number)
                sent += b"%03d" % number
                await asyncio.sleep(0.01)
            assert await asyncio.wait_for(reader.readexactly(60), 60) == sent
            assert 1 <= int(str(link.stats()["stalled"])) < 40

    play(test)


def test_bandwidth_takes_its_time() -> None:
    async def test() -> None:
        async with through() as (link, _, port):
            link.change(Weather(Mode.BANDWIDTH, bytes_per_second=10_000))
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            began = time.monotonic()
            await ask(reader, writer, b"x" * 4_000)
            assert time.monotonic() - began > 0.7

    play(test)


def test_a_cut_holds_what_was_sent_and_delivers_it_when_it_heals() -> None:
    async def test() -> None:
        async with through() as (link, echo, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await ask(reader, writer, b"before") == b"before"
            link.change(Weather(Mode.CUT))
            with pytest.raises(TimeoutError):
                await ask(reader, writer, b"during", NEVER)
            await until(lambda: link.counts["held"] == 6)
            assert bytes(echo.received) == b"before"
            link.change(FAIR)
            assert await asyncio.wait_for(reader.readexactly(6), 60) == b"during"

    play(test)


def test_a_connection_made_during_a_cut_is_answered_when_it_heals() -> None:
    async def test() -> None:
        async with through() as (link, echo, port):
            link.change(Weather(Mode.CUT))
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with pytest.raises(TimeoutError):
                await ask(reader, writer, b"hello", NEVER)
            assert bytes(echo.received) == b""
            link.change(FAIR)
            assert await asyncio.wait_for(reader.readexactly(5), 60) == b"hello"

    play(test)


def test_a_half_open_connection_swallows_and_is_reset_when_the_host_is_back() -> None:
    async def test() -> None:
        async with through() as (link, echo, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await ask(reader, writer, b"before")
            link.change(Weather(Mode.HALF_OPEN))
            with pytest.raises(TimeoutError):
                await ask(reader, writer, b"lost", NEVER)
            await until(lambda: link.counts["swallowed"] == 4)
            link.change(FAIR)
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.readexactly(1), 60)
            assert (bytes(echo.received), await asyncio.wait_for(echo.ended.get(), 60)) == (b"before", "reset")

    play(test)


def test_resets_end_connections_the_hard_way() -> None:
    async def test() -> None:
        async with through() as (link, echo, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await ask(reader, writer, b"before")
            link.change(Weather(Mode.RESET, seconds=0.05))
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.readexactly(1), 60)
            assert await asyncio.wait_for(echo.ended.get(), 60) == "reset"
            assert link.stats()["resets"] == 1

    play(test)


def test_a_slow_close_is_passed_on_late() -> None:
    async def test() -> None:
        async with through() as (link, echo, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await ask(reader, writer, b"before")
            link.change(Weather(Mode.SLOW_CLOSE, seconds=0.4))
            began = time.monotonic()
            writer.close()
            assert await asyncio.wait_for(echo.ended.get(), 60) == "closed"
            assert time.monotonic() - began > 0.35
            assert link.stats()["closed_late"] == 1

    play(test)


def test_weather_strikes_its_share_of_the_connections_and_the_seed_says_which() -> None:
    async def struck(seed: int) -> list[bool]:
        async with through(seed) as (link, echo, port):
            link.change(Weather(Mode.HALF_OPEN, share=0.5))
            swallowed = []
            for number in range(1, 13):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"?")
                # Each arrives, or is swallowed on its way.
                await until(lambda number=number: len(echo.received) + link.counts["swallowed"] == number)
                swallowed.append(link.counts["swallowed"] > sum(swallowed))
                writer.close()
            return swallowed

    async def test() -> None:
        first, again, other = await struck(1), await struck(1), await struck(2)
        assert first == again != other
        assert 0 < sum(first) < 12

    play(test)


def test_a_server_that_is_away_resets_whoever_comes() -> None:
    async def test() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            link = Link("to nobody", unused.getsockname()[1], 1)
        listener = await link.listen(0)
        reader, _ = await asyncio.open_connection("127.0.0.1", listener.sockets[0].getsockname()[1])
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.readexactly(1), 60)
        assert link.stats()["refused"] == 1
        listener.close()

    play(test)


def _request(code: int, rest: bytes) -> bytes:
    return (1 + len(rest)).to_bytes(2, "big") + bytes((code,)) + rest


def _alive(name: bytes, port: int) -> bytes:
    facts = port.to_bytes(2, "big") + bytes((77, 0)) + b"\0\6\0\6"
    return _request(ALIVE_REQUEST, facts + len(name).to_bytes(2, "big") + name + b"\0\0")


def test_a_mapper_sends_a_node_to_its_peers_through_the_links_and_tells_the_truth_about_itself() -> None:
    async def test() -> None:
        registered: dict[str, bytes] = {}
        ports = []
        for node, routes in (("one", {"two": 1002}), ("two", {"one": 2001})):
            listener = await Mapper(node, routes, registered).listen(0)
            ports.append(listener.sockets[0].getsockname()[1])

        async def told(mapper: int, code: int, rest: bytes) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", ports[mapper])
            writer.write(_request(code, rest))
            return await asyncio.wait_for(reader.read(), 60)

        assert await told(0, PORT_REQUEST, b"two") == bytes((119, 1))
        _, staying = await asyncio.open_connection("127.0.0.1", ports[1])
        staying.write(_alive(b"two", 4242))
        await until(lambda: "two" in registered)
        assert (await told(0, PORT_REQUEST, b"two"))[:4] == bytes((119, 0)) + (1002).to_bytes(2, "big")
        assert (await told(1, PORT_REQUEST, b"two"))[:4] == bytes((119, 0)) + (4242).to_bytes(2, "big")
        assert b"name two at port 4242" in await told(1, NAMES_REQUEST, b"")
        staying.close()
        await until(lambda: not registered)
        assert await told(0, PORT_REQUEST, b"two") == bytes((119, 1))

    play(test)
