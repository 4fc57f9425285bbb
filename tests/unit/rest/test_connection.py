"""HTTP by the byte: malformed input, pipelining, old clients, half-closed and stalled connections."""

from __future__ import annotations

import asyncio
import socket
from random import Random
from typing import Any

import pytest
from aiohttp import web

from kvnode.node.api import Record, WriteResult
from kvnode.node.clock import RealClock
from kvnode.node.rest.connection import Connection
from kvnode.node.rest.response import DateStamp
from support.rest_rig import HttpAnswer, MakeRig, RestRig, TracedEvents

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
PUT = b'{"key":"k","value":1}'


def check_refused(answer: HttpAnswer) -> None:
    assert answer.status == 400
    assert answer.error["code"] == "invalid_request"
    assert answer.error["message"].startswith("malformed HTTP: ")
    assert len(answer.error["message"]) < 300
    assert answer.headers["connection"] == "close"
    assert answer.headers["server"] == "kvnode"


MALFORMED = {
    "garbage": b"\x00\x01\x02garbage\r\n\r\n",
    "tls": bytes.fromhex("16030100a5010000a10303") + bytes(range(160)),
    "words": b"hello\r\n\r\n",
    "method": b"PUTT /put HTTP/1.1\r\nHost: x\r\n\r\n",
    "lower case method": b"get /health HTTP/1.1\r\nHost: x\r\n\r\n",
    "version": b"GET /health HTTP/3.7\r\nHost: x\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "relative target": b"GET health HTTP/1.1\r\nHost: x\r\n\r\n",
    "no target": b"GET  HTTP/1.1\r\nHost: x\r\n\r\n",
    "bad port": b"GET http://x:99999/health HTTP/1.1\r\nHost: x\r\n\r\n",
    "bad host": b"GET http://[::1/health HTTP/1.1\r\nHost: x\r\n\r\n",
    "raw bytes in target": b"GET /read/\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
    "space in target": b"GET /read/a b HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL in target": b"GET /read/\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "star": b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
    "header name": b"GET /health HTTP/1.1\r\nHost: x\r\nB@d: 1\r\n\r\n",
    "header without colon": b"GET /health HTTP/1.1\r\nHost: x\r\nBad\r\n\r\n",
    "header with NUL": b"GET /health HTTP/1.1\r\nHost: x\r\nBad: \x00\r\n\r\n",
    "folded header": b"GET /health HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "space before colon": b"GET /health HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n",
    "bare line feeds": b"GET /health HTTP/1.1\nHost: x\n\n",
    "long line": b"GET /" + b"x" * 50_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "very long line": b"GET /" + b"x" * 5_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "long header": b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 9000 + b"\r\n\r\n",
    "long header name": b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"x" * 9000 + b": a\r\n\r\n",
    "many headers": b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200 + b"\r\n",
    "negative length": b"POST /put HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "length is no number": b"POST /put HTTP/1.1\r\nHost: x\r\nContent-Length: 1x\r\n\r\n1",
    "huge length": b"POST /put HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n1",
    "two lengths": b"POST /put HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n11",
    "length and chunks": b"POST /put HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1",
    "unknown transfer coding": b"POST /put HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: nonsense\r\n\r\n",
    "chunks": b"POST /put HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
async def test_malformed_http_is_answered_in_json_and_not_logged(rig: RestRig, data: bytes) -> None:
    async with rig.connect() as wire:
        wire.send(data)
        check_refused(await wire.answer())
        assert await wire.at_end()
    assert rig.store.writes == []


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
async def test_malformed_http_behind_a_good_request(rig: RestRig, data: bytes) -> None:
    async with rig.connect() as wire:
        assert (await wire.ask("GET", "/health")).status == 200
        wire.send(data)
        check_refused(await wire.answer())
        assert await wire.at_end()


@pytest.mark.parametrize("data", [MALFORMED["garbage"], MALFORMED["chunks"], MALFORMED["long line"]])
async def test_malformed_http_while_a_request_is_handled(rig: RestRig, data: bytes) -> None:
    rig.store.hold = True
    async with rig.connect() as wire:
        wire.request("POST", "/put", PUT)
        await rig.store.wrote.wait()
        wire.send(data)
        assert (await rig.ask("GET", "/health")).status == 200
        rig.store.held[0].set_result(WriteResult(rig.store.applied, 0))
        assert (await wire.answer()).status == 200
        check_refused(await wire.answer())
        assert await wire.at_end()


async def test_a_client_that_goes_on_after_malformed_http_still_gets_the_answer(rig: RestRig) -> None:
    """It sends all that it has before it reads: closing at once would reset the connection under it."""
    async with rig.connect() as wire:
        wire.send(b"nonsense\r\n\r\n")
        for _ in range(20):
            wire.send(b"x" * 1_000_000)
            await wire.writer.drain()
        check_refused(await wire.answer())
        assert await wire.at_end()


async def test_a_client_that_never_leaves_after_malformed_http_is_left(make_rig: MakeRig) -> None:
    rig = await make_rig(linger_timeout_s=0.05)
    async with rig.connect() as wire:
        wire.send(b"nonsense\r\n\r\n")
        check_refused(await wire.answer())
        # The orderly end comes at once, the rest of the connection goes after a while: then writing fails.
        assert await wire.at_end()
        while not wire.writer.transport.is_closing():
            wire.send(b"x")
            await rig.ask("GET", "/health")


@pytest.mark.parametrize("seed", range(8))
async def test_random_damage_never_hurts_the_front(rig: RestRig, seed: int) -> None:
    """Whatever comes, the client gets answers or the connection's end, and the next one is served."""
    rng = Random(seed)
    seeds = [
        *MALFORMED.values(),
        GET,
        b"POST /put HTTP/1.1\r\nHost: x\r\nContent-Length: 21\r\n\r\n" + PUT,
        b"POST /put HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n15\r\n" + PUT + b"\r\n0\r\n\r\n",
        b"GET /readrange?prefix=%C3%A9 HTTP/1.0\r\nConnection: keep-alive\r\nAccept: a,b;q=c\r\n\r\n",
    ]
    seeds = [data for data in seeds if len(data) < 20_000]
    for _ in range(60):
        data = bytearray(b"".join(rng.choices(seeds, k=rng.randint(1, 3))))
        for _ in range(rng.randint(0, 4)):
            place = rng.randrange(len(data))
            match rng.randrange(3):
                case 0:
                    data[place] = rng.randrange(256)
                case 1:
                    del data[place : place + rng.randint(1, 9)]
                case 2:
                    data[place:place] = rng.randbytes(rng.randint(1, 4))
        async with rig.connect() as wire:
            cut = rng.randrange(len(data) + 1)
            wire.send(bytes(data[:cut]))
            if rng.random() < 0.5:
                await rig.ask("GET", "/health")
            wire.send(bytes(data[cut:]))
            wire.half_close()
            try:
                received = await wire.read_to_end()
            except ConnectionResetError:
                received = b""
            assert received == b"" or received.startswith(b"HTTP/1.1 ")
            assert b"Traceback" not in received
            assert b"<html" not in received
    assert (await rig.ask("GET", "/health")).status == 200


async def test_requests_in_one_packet_are_answered_in_order(rig: RestRig) -> None:
    for number in range(100):
        rig.store.records[b"k%d" % number] = Record(rig.store.applied, 0, b"%d" % number)
    async with rig.connect() as wire:
        wire.send(b"".join(b"GET /read/k%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(100)))
        for number in range(100):
            assert (await wire.answer()).json == {"key": f"k{number}", "value": number}


async def test_a_request_that_comes_byte_by_byte(rig: RestRig) -> None:
    async with rig.connect() as wire:
        for byte in GET:
            wire.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await wire.answer()).status == 200


@pytest.mark.parametrize(
    ("version", "connection", "is_kept", "says"),
    [
        ("1.1", None, True, None),
        ("1.1", "keep-alive", True, None),
        ("1.1", "close", False, "close"),
        ("1.1", "Close", False, "close"),
        ("1.0", None, False, "close"),
        ("1.0", "keep-alive", True, "keep-alive"),
        ("1.0", "Keep-Alive", True, "keep-alive"),
        ("1.0", "close", False, "close"),
    ],
)
async def test_keep_alive(rig: RestRig, version: str, connection: str | None, is_kept: bool, says: str | None) -> None:
    headers = {} if connection is None else {"Connection": connection}
    for method, target, body in (("GET", "/health", None), ("POST", "/put", PUT), ("GET", "/nowhere", None)):
        async with rig.connect() as wire:
            wire.request(method, target, body, version=version, **headers)
            answer = await wire.answer()
            assert answer.headers.get("connection") == says
            if is_kept:
                assert (await wire.ask("GET", "/health")).status == 200
            else:
                assert await wire.at_end()


async def test_a_request_of_the_first_web_is_answered(rig: RestRig) -> None:
    async with rig.connect() as wire:
        wire.send(b"GET /health\r\n\r\n")
        assert (await wire.answer()).status == 200
        assert await wire.at_end()


async def test_http_1_0_needs_no_host(rig: RestRig) -> None:
    async with rig.connect() as wire:
        wire.send(b"GET /health HTTP/1.0\r\n\r\n")
        assert (await wire.answer()).status == 200


async def test_an_idle_connection_ends(make_rig: MakeRig) -> None:
    rig = await make_rig(keepalive_timeout_s=0.05)
    async with rig.connect() as wire:
        assert await wire.at_end()
    async with rig.connect() as wire:
        assert (await wire.ask("GET", "/health")).status == 200
        assert await wire.at_end()
    async with rig.connect() as wire:
        wire.send(b"GET /health HTTP/1.1\r\nHost:")
        assert await wire.at_end()


@pytest.mark.parametrize("behind", ["", "in the same packet", "later"])
async def test_tunnels_are_refused(rig: RestRig, behind: str) -> None:
    async with rig.connect() as wire:
        tunnelled = b"\x16\x03garbage\r\n\r\n"
        wire.send(b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n" + (tunnelled if "packet" in behind else b""))
        answer = await wire.answer()
        assert (answer.status, answer.error["code"]) == (404, "route_not_found")
        if behind:
            wire.send(tunnelled if behind == "later" else b"")
            check_refused(await wire.answer())
        else:
            assert (await wire.ask("GET", "/health")).status == 200


async def test_upgrades_are_not_taken(rig: RestRig) -> None:
    async with rig.connect() as wire:
        for protocol in ("websocket", "h2c"):
            answer = await wire.ask("GET", "/health", Connection="Upgrade", Upgrade=protocol)
            assert answer.status == 200
            assert "upgrade" not in answer.headers
        assert (await wire.ask("GET", "/health")).status == 200


@pytest.mark.parametrize("count", [1, 3, 100])
async def test_a_client_that_half_closes_gets_all_its_answers(rig: RestRig, count: int) -> None:
    """As `printf ... | nc HOST PORT` does."""
    async with rig.connect() as wire:
        for number in range(count):
            wire.request("POST", "/put", b'{"key":"k%d","value":1}' % number)
        wire.half_close()
        for number in range(count):
            assert (await wire.answer()).json["key"] == f"k{number}"
        assert await wire.at_end()


async def test_a_client_that_half_closes_waits_for_a_write(rig: RestRig) -> None:
    rig.store.hold = True
    async with rig.connect() as wire:
        wire.request("POST", "/put", PUT)
        wire.half_close()
        await rig.store.wrote.wait()
        assert (await rig.ask("GET", "/health")).status == 200
        rig.store.held[0].set_result(WriteResult(rig.store.applied, 0))
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await wire.at_end()


@pytest.mark.parametrize("sent", [b"", b"GET /hea", GET[:-2]])
async def test_a_client_that_half_closes_without_a_request_gets_the_end(rig: RestRig, sent: bytes) -> None:
    async with rig.connect() as wire:
        wire.send(sent)
        wire.half_close()
        assert await wire.at_end()


async def test_a_client_that_takes_no_answers_is_given_up(make_rig: MakeRig) -> None:
    """It pipelines reads of a large value; what waits for it stays bounded, and it loses the connection."""
    rig = await make_rig(stall_timeout_s=0.1)
    await rig.put("k", b'"%b"' % (b"x" * 1_000_000))
    async with rig.connect() as other, rig.connect(receive_bytes=1024) as wire:
        assert (await other.ask("GET", "/health")).status == 200
        wire.send(b"GET /read/k HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        while rig.front.connection_count > 1:
            assert (await other.ask("GET", "/health")).status == 200
        with pytest.raises(ConnectionResetError):
            await wire.read_to_end()


async def test_dates_are_those_of_the_clock() -> None:
    class Clock:
        ms = 784_111_777_999

        def now_ms(self) -> int:
            return self.ms

        def monotonic_s(self) -> float:
            raise AssertionError("not needed")

    clock = Clock()
    stamp = DateStamp(clock)
    assert stamp.lines() == b"Server: kvnode\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
    clock.ms += 1
    # The clock is looked at again when its second is over, a millisecond after it was looked at: before this timer.
    await asyncio.sleep(0.05)
    assert b"Date: Sun, 06 Nov 1994 08:49:38 GMT\r\n" in stamp.lines()


class StubTransport(asyncio.Transport):
    """A transport whose client takes as much as the test says, between two looks."""

    def __init__(self, waiting_bytes: list[int]) -> None:
        super().__init__()
        self.waiting_bytes = waiting_bytes
        self.is_aborted = False
        self.socket, self.other_end = socket.socketpair()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.socket if name == "socket" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high is not None
        assert low is not None
        assert 0 < low < high

    def get_write_buffer_size(self) -> int:
        return self.waiting_bytes.pop(0)

    def is_closing(self) -> bool:
        return self.is_aborted

    def close(self) -> None:
        self.socket.close()
        self.other_end.close()

    def abort(self) -> None:
        self.is_aborted = True


def make_connection(transport: StubTransport, log: TracedEvents) -> Connection:
    async def handle(request: Any) -> Any:
        raise AssertionError("no request was sent")

    loop = asyncio.get_running_loop()
    connection = Connection(
        web.Server(handle),
        loop=loop,
        log=log,
        stamp=DateStamp(RealClock()),
        stall_timeout_s=0.01,
        linger_timeout_s=0.01,
        on_malformed=lambda: None,
        on_lost=lambda: None,
    )
    connection.connection_made(transport)
    return connection


async def test_taking_little_is_progress_and_taking_nothing_is_not() -> None:
    # Looked at before and after each of three waits; the third brings nothing.
    transport = StubTransport([1000, 999, 999, 500, 500, 500])
    connection = make_connection(transport, TracedEvents())
    connection.pause_writing()
    with pytest.raises(ConnectionAbortedError):
        await connection.drained()
    assert transport.is_aborted
    assert transport.waiting_bytes == []
    connection.connection_lost(None)


async def test_waiting_for_a_client_ends_when_it_takes_enough_or_leaves() -> None:
    transport = StubTransport([1000] * 4)
    connection = make_connection(transport, TracedEvents())
    await connection.drained()
    connection.pause_writing()
    waiting = asyncio.create_task(connection.drained())
    await asyncio.sleep(0)
    connection.resume_writing()
    await waiting
    connection.pause_writing()
    waiting = asyncio.create_task(connection.drained())
    await asyncio.sleep(0)
    connection.connection_lost(None)
    with pytest.raises(ConnectionResetError):
        await waiting
    with pytest.raises(ConnectionResetError):
        await connection.drained()


async def test_errors_beside_the_handlers_are_logged_in_one_place() -> None:
    """The parser or aiohttp's loop failing would be bugs; the connection ends, and one event tells."""
    transport = StubTransport([])
    log = TracedEvents()
    connection = make_connection(transport, log)
    error = ZeroDivisionError()
    connection.log_exception("Unhandled exception", exc_info=error)
    connection._parser = None
    connection.data_received(b"GET")
    assert log.names() == ["connection_failed", "http_parser_failed"]
    assert log.traced[0] is error
    assert transport.is_aborted
    connection.connection_lost(None)
    answer = connection.handle_error(None, 500, error)
    assert answer.status == 500
    assert log.names()[2:] == ["request_failed"]
