"""The native path beside REST: pipelined WRITE and READ on one connection, as a ratio of what REST gives a connection.

Run it as ``.venv/bin/python tests/bench/native.py [--rounds N] [--seconds S]``; it needs Debian's wrk.

REST's sides are wrk with one connection, one request at a time, and with 64, for the whole node, and `Client`,
Python's client, with one connection. The native sides have one connection with many requests in flight. *Frames* are
made before and counted as they come back, so that this load, like wrk's, takes little of the machine: they show the
node. *NativeClient* shows what a program in Python gets, most of which is the time of the client itself; by
*get_many* it reads 64 keys with one call.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from struct import Struct

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.harness import TABLE_HEAD, Comparison, kvnode
from bench.load import Load, NotAnswered, from_pool, http_request, wrk
from bench.results import Measure, take_turns

from kvnode.cli.client import Client, JsonText, NativeClient
from kvnode.cli.peer import make_hello
from kvnode.node.config import Address
from kvnode.protocol.codec import FrameDecoder, encode
from kvnode.protocol.messages import FrameType, Message, Purpose, Read, Welcome, Write
from kvnode.protocol.types import Epoch, put
from support.node_process import NodeProcess

#: Keys that are written and read; they fit the cache.
KEYS = 10_000
VALUE = b'"%b"' % (b"v" * 62)

#: Requests in flight.
WINDOW = 512

#: Keys of one `get_many`.
_MANY = 64

_LENGTH = Struct(">I")
_READ_BYTES = 256 * 1024
#: Request ids begin here: all are of one length then, and so are the frames.
_FIRST_ID = 1_000_000
#: No error: the last three fields of WRITE_RESULT and of READ_RESULT.
_FINE = b"\xc0\xc0\xc0"


def key_of(number: int) -> str:
    """A key; in no order, as users' keys come."""
    return f"key-{number * 7919 % KEYS:08d}"


class Frames:
    """A connection on which frames that are there are sent, and those that come back are counted.

    Args:
        address: of the node's peer port.
        requests: all of one length and with ids of their own; sent in turn, again and again.
        answer: the type of what comes back.
    """

    def __init__(self, address: str, requests: Sequence[Message], answer: FrameType) -> None:
        frames = [encode(each) for each in requests]
        self._size = len(frames[0])
        assert all(len(each) == self._size for each in frames)
        self._count = len(frames)
        # Twice, so that what is sent at once is one piece also where the turn begins anew.
        self._stream = memoryview(b"".join(frames + frames))
        self._answer = int(answer)
        at = Address.parse(address)
        self._socket = socket.create_connection((at.host, at.port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(encode(make_hello(Purpose.CLIENT)))
        decoder = FrameDecoder()
        while True:
            decoder.feed(self._socket.recv(_READ_BYTES))
            for welcome in decoder:
                assert isinstance(welcome, Welcome)
                return

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def rate(self, seconds: float) -> float:
        """Answers a second, with `WINDOW` requests in flight; one that is not as it should be ends the benchmark."""
        sent = answered = 0
        rest = b""
        began = now = time.perf_counter()
        while now - began < seconds:
            room = answered + WINDOW - sent
            if room:
                first = sent % self._count
                self._socket.sendall(self._stream[first * self._size : (first + room) * self._size])
                sent += room
            found, rest = self._count_answers(rest + self._socket.recv(_READ_BYTES))
            answered += found
            now = time.perf_counter()
        in_time, taken = answered, now - began
        while answered < sent:
            found, rest = self._count_answers(rest + self._socket.recv(_READ_BYTES))
            answered += found
        return in_time / taken

    def _count_answers(self, data: bytes) -> tuple[int, bytes]:
        """(whole frames, what follows them)."""
        at, count, end = 0, 0, len(data)
        while end - at >= 4:
            stop = at + 4 + _LENGTH.unpack_from(data, at)[0]
            if stop > end:
                break
            if data[at + 5] != self._answer or data[stop - 3 : stop] != _FINE:
                raise NotAnswered(f"an answer is not as it should be: {data[at:stop]!r}")
            at = stop
            count += 1
        return count, data[at:]


def frames_rate(address: str, requests: Sequence[Message], answer: FrameType, seconds: float) -> float:
    """Answers a second on a new connection."""
    connection = Frames(address, requests, answer)
    try:
        return connection.rate(seconds)
    finally:
        connection.close()


def client_rate(
    address: str, ask: Callable[[NativeClient, int], Awaitable[object]], seconds: float, callers: int = WINDOW
) -> float:
    """Calls a second of one `NativeClient`, with callers that each call again when the last call has returned."""

    async def run() -> float:
        async with NativeClient(address) as client:
            return await _calls_rate(lambda number: ask(client, number), callers, seconds)

    return uvloop.run(run())


def many_gets_rate(address: str, keys: Sequence[str], seconds: float) -> float:
    """Keys a second that one `NativeClient` reads by `get_many`, with as many of them asked for at a time."""
    parts = [keys[first : first + _MANY] for first in range(0, len(keys) - _MANY + 1, _MANY)]

    async def ask(client: NativeClient, number: int) -> None:
        await client.get_many(parts[number % len(parts)])

    return _MANY * client_rate(address, ask, seconds, WINDOW // _MANY)


def rest_client_rate(url: str, ask: Callable[[Client, int], Awaitable[object]], seconds: float) -> float:
    """Calls a second of one `Client` with one connection."""

    async def run() -> float:
        async with Client(url, connections=1) as client:
            return await _calls_rate(lambda number: ask(client, number), 1, seconds)

    return uvloop.run(run())


async def _calls_rate(ask: Callable[[int], Awaitable[object]], callers: int, seconds: float) -> float:
    done = 0
    began = time.perf_counter()

    async def call_again(number: int) -> None:
        nonlocal done
        while time.perf_counter() - began < seconds:
            await ask(number)
            number += callers
            done += 1

    await asyncio.gather(*[call_again(number) for number in range(callers)])
    return done / (time.perf_counter() - began)


#: The sides of both measures.
FRAMES, CLIENT, MANY = "frames", "NativeClient", "NativeClient.get_many"
REST, REST_64, REST_CLIENT = "REST, 1 connection", "REST, 64 connections", "Client, 1 connection"

#: What is worth a row: ours and theirs.
_PAIRS = (
    (FRAMES, REST),
    (FRAMES, REST_64),
    (CLIENT, REST),
    (CLIENT, REST_64),
    (CLIENT, REST_CLIENT),
    (MANY, REST),
    (MANY, REST_64),
)


def measure_puts(node: NodeProcess, rounds: int, seconds: float) -> Measure:
    """Durable puts of `KEYS` keys, on all sides."""
    keys, value = list(map(key_of, range(KEYS))), JsonText.trusted(VALUE)
    writes = [Write(_FIRST_ID + number, (put(key.encode(), VALUE),), 0, 5000) for number, key in enumerate(keys)]
    requests = [http_request("POST", "/put", b'{"key":"%b","value":%b}' % (key.encode(), VALUE)) for key in keys]
    with _rest_sides(f"{node.url}/put", requests, seconds) as sides:
        sides |= {
            REST_CLIENT: lambda _: rest_client_rate(node.url, lambda to, at: to.put(keys[at % KEYS], value), seconds),
            FRAMES: lambda _: frames_rate(node.peer, writes, FrameType.WRITE_RESULT, seconds),
            CLIENT: lambda _: client_rate(node.peer, lambda to, at: to.put(keys[at % KEYS], value), seconds),
        }
        return take_turns("native-put", "durable put", "requests/s", sides, rounds, warm=True)


def measure_gets(node: NodeProcess, rounds: int, seconds: float) -> Measure:
    """Reads of `KEYS` keys that are there and in the cache, on all sides."""
    keys = list(map(key_of, range(KEYS)))
    reads = [Read(_FIRST_ID + number, key.encode(), Epoch(0), 0, 0) for number, key in enumerate(keys)]
    requests = [http_request("GET", f"/read/{key}") for key in keys]
    with _rest_sides(node.url, requests, seconds) as sides:
        sides |= {
            REST_CLIENT: lambda _: rest_client_rate(node.url, lambda to, at: to.get(keys[at % KEYS]), seconds),
            FRAMES: lambda _: frames_rate(node.peer, reads, FrameType.READ_RESULT, seconds),
            CLIENT: lambda _: client_rate(node.peer, lambda to, at: to.get(keys[at % KEYS]), seconds),
            MANY: lambda _: many_gets_rate(node.peer, keys, seconds),
        }
        return take_turns("native-get", "hot get", "requests/s", sides, rounds, warm=True)


@contextmanager
def _rest_sides(
    url: str, requests: Sequence[bytes], seconds: float
) -> Iterator[dict[str, Callable[[int], Load | float]]]:
    with from_pool(requests) as script:
        yield {
            REST: lambda _: wrk(url, script=script, connections=1, seconds=seconds),
            REST_64: lambda _: wrk(url, script=script, connections=64, seconds=seconds),
        }


def write_all(node: NodeProcess) -> None:
    """Put every key once."""

    async def run() -> None:
        async with NativeClient(node.peer) as client:
            await client.batch({key_of(number): JsonText.trusted(VALUE) for number in range(KEYS)})

    uvloop.run(run())


def _compared(found: Measure, ours: str, theirs: str) -> Comparison:
    name = f"{found.title}: {ours} / {theirs}"
    return Comparison(name, found.sides[ours].figures, found.sides[theirs].figures)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, kvnode(Path(folder) / "data") as node:
        write_all(node)
        found = [measure(node, given.rounds, given.seconds) for measure in (measure_puts, measure_gets)]
    print(TABLE_HEAD)
    for measured in found:
        for ours, theirs in _PAIRS:
            if ours in measured.sides:
                print(_compared(measured, ours, theirs).row(measured.unit))


if __name__ == "__main__":
    main()
