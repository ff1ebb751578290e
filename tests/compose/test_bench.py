"""The verdicts of the benchmark: what went wrong in a burst must show in its figures, whatever the server answers."""

import asyncio
import io
import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rich.console import Console

from compose import bench_burst
from compose.bench_burst import BULK_ROWS, ROWS, Burst, Told
from compose.bench_report import FIGURES, NEVER, print_table, settle, verdicts
from compose.client import Target, drive

ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
REFUSED = b"HTTP/1.1 503 Overloaded\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
SILENT_REFUSAL = b"HTTP/1.1 503 Overloaded\r\nContent-Length: 0\r\n\r\n"
WRONG = b"HTTP/1.1 500 Error\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def answering(answers: dict[bytes, Iterator[bytes]]) -> Iterator[Target]:
    """An HTTP server that answers each path with the next of its answers."""
    started, address, stop = threading.Event(), [], []

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                writer.write(next(answers[head.split()[1]]))
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(converse, "127.0.0.1", 0)
        address.append(server.sockets[0].getsockname())
        ended = asyncio.Event()
        stop.append((asyncio.get_running_loop(), ended))
        started.set()
        await ended.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        yield Target("http://{}:{}".format(*address[0]))
    finally:
        loop, ended = stop[0]
        loop.call_soon_threadsafe(ended.set)
        thread.join(60)


def burst_against(batch: Iterator[bytes], file: Iterator[bytes], *, planned: int) -> Burst:
    """A burst of so many batches, then the asking."""
    with answering({b"/batch": batch, b"/file": file}) as target:
        request = {kind: b"GET /%s HTTP/1.1\r\n\r\n" % kind for kind in (b"batch", b"file")}
        return bench_burst.run(
            target, itertools.repeat(request[b"batch"]), lambda: request[b"file"],
            per_second=planned * ROWS / 0.5, seconds=0.5, posted=lambda: 0,
        )  # fmt: skip


def after(first: list[bytes], rest: bytes) -> Iterator[bytes]:
    return itertools.chain(first, itertools.repeat(rest))


def test_what_is_taken_after_the_burst_counts_as_promised_too():
    burst = burst_against(after([], ACCEPTED), after([REFUSED], ACCEPTED), planned=4)
    assert burst.errors == 0
    assert burst.sent_rows == len(burst.latencies) * ROWS
    assert burst.accepted_rows == burst.sent_rows + ROWS + BULK_ROWS
    assert burst.told["file"].real_seconds is not None
    assert burst.told["file"].off < NEVER


def test_a_wrong_answer_is_not_taken_for_an_acceptance():
    burst = burst_against(after([], ACCEPTED), after([REFUSED], WRONG), planned=1)
    assert burst.statuses[500] == 1
    assert burst.errors == 1
    assert burst.told["file"].real_seconds is None
    assert burst.retry_after_off == NEVER


def test_what_was_told_to_come_again_and_is_never_taken_is_infinitely_off(monkeypatch):
    monkeypatch.setattr(bench_burst, "ASK_AGAIN_SECONDS_MAX", 0.6)
    burst = burst_against(after([], ACCEPTED), after([], REFUSED), planned=4)
    assert burst.errors == 0
    assert burst.retry_after_off == NEVER
    values = settle([{"burst_retry_after_off": burst.retry_after_off}])
    assert verdicts(values)["burst_retry_after_off"] == "RED"
    assert "Infinity" not in json.dumps(values)
    assert "never" in shown(values)


def test_a_refusal_without_retry_after_is_an_error_after_the_burst_too():
    burst = burst_against(after([], ACCEPTED), after([SILENT_REFUSAL], ACCEPTED), planned=1)
    assert burst.errors == 1


@pytest.mark.parametrize(
    ("told", "off"), [(Told(0, 10, 10.9), 0.0), (Told(0, 10, 20), 0.5), (Told(0, 10), NEVER)]
)  # fmt: skip
def test_how_far_a_retry_after_was_off(told, off):
    assert told.off == off


def test_on_a_timetable_the_wait_of_who_is_turned_away_is_latency():
    """A server that turns away whom it cannot serve at once would look the faster for it."""
    with answering({b"/one": after([REFUSED], ACCEPTED)}) as target:
        load = drive(
            target, itertools.repeat(b"GET /one HTTP/1.1\r\n\r\n", 1), clients=1, seconds=60, wanted=202, per_second=1
        )  # fmt: skip
    assert (load.turned_away, load.done) == (1, 1)
    assert load.latencies[0] >= 1.0


def test_a_burst_that_was_not_sent_is_red():
    sent = settle([{"end_to_end_tps": 1000.0, "burst_offered_tps": 9400.0}])
    assert sent["burst_offered_times"] == 9.4
    assert verdicts(sent)["burst_offered_times"] == "RED"
    assert verdicts(settle([{"end_to_end_tps": 1000.0, "burst_offered_tps": 9600.0}]))["burst_offered_times"] == "PASS"


def test_the_quick_run_marks_the_verdicts_of_what_it_cut_short():
    values = {figure.key: 0.0 for figure in FIGURES}
    quick = [line for line in shown(values, quick=True).splitlines() if "│" in line and "(quick)" in line]
    assert {line.split()[1].split("_")[0] for line in quick} == {"burst", "growth"}
    assert "(quick)" not in shown(values)
    assert "tests/notifications/test_webhook_load.py" in shown(values)


def shown(values: dict[str, float | None], *, quick: bool = False) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    print_table(console, values, rounds=1, quick=quick)
    return console.export_text()
