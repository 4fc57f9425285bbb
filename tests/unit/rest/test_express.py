"""The fast path: it answers what aiohttp's way answers, byte for byte, and leaves to it whatever is not plain."""

import asyncio
import random
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from kvnode.node.api import WriteResult
from kvnode.node.errors import OutcomeUnknown, Overloaded, RecordDamaged, StorageFull
from kvnode.node.rest import heads
from kvnode.node.rest.connection import Connection
from kvnode.node.rest.express import ExpressConnection
from support.rest_rig import MakeRig, RestRig, Wire

GET = b"GET /read/a HTTP/1.1\r\nHost: test\r\n\r\n"
BODY = b'{"key":"a","value":1}'
PUT = b"POST /put HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)

_DATE = re.compile(rb"Date: [^\r]*\r\n")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What went the fast way."""
    found: list[bytes] = []
    take = ExpressConnection._take

    def spy(self: ExpressConnection, data: bytes) -> bool:
        is_taken = take(self, data)
        if is_taken:
            found.append(data)
        return is_taken

    monkeypatch.setattr(ExpressConnection, "_take", spy)
    return found


class Client(asyncio.Transport):
    """The other end of a connection without a network.

    Attributes:
        sent: what the node sent.
        is_ended: whether the node ended the connection, in order or not.
        is_reset: whether it did not.
        on_write: called whenever the node has sent something.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.is_ended = False
        self.is_reset = False
        self.on_write: Callable[[], None] | None = None
        self.sockets = socket.socketpair()

    def write(self, data: Any) -> None:
        assert not self.is_ended
        self.sent += bytes(data)
        if self.on_write is not None:
            self.on_write()

    def is_closing(self) -> bool:
        return self.is_ended

    def close(self) -> None:
        self.is_ended = True

    def abort(self) -> None:
        self.is_ended = self.is_reset = True

    def write_eof(self) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.sockets[0] if name == "socket" else default

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


@contextmanager
def connected(rig: RestRig) -> Iterator[tuple[Connection, Client]]:
    """A connection of a front, and its client."""
    connection, client = rig.front._connect(), Client()
    connection.connection_made(client)
    try:
        yield connection, client
    finally:
        connection.connection_lost(None)
        for end in client.sockets:
            end.close()


async def settle() -> None:
    """Let the loop do all that can be done at once."""
    for _ in range(12):
        await asyncio.sleep(0)


async def converse(rig: RestRig, chunks: list[bytes]) -> tuple[bytes, bool]:
    """What the node sends to a client that sends these, and whether it ends the connection."""
    with connected(rig) as (connection, client):
        await settle()
        for chunk in chunks:
            if not client.is_ended:
                connection.data_received(chunk)
                await settle()
        return _DATE.sub(b"", client.sent), client.is_ended


# ---- the same answers ------------------------------------------------------------------------------------------------

KEYS = [
    "a",
    "b/c",
    "x-._~:/,@=+!$'()*;&y",
    "%61",
    "%C3%A4",
    "a b",
    "a\tb",
    'q"q',
    "a?min_seq=0",
    "a#b",
    "",
    "missing",
    "k" * 40,
]
HEADERS = [
    b"",
    b"User-Agent: x\r\nAccept: */*\r\n",
    b"Connection: keep-alive\r\n",
    b"Connection: close\r\n",
    b"If-None-Match: *\r\n",
    b"Origin: http://elsewhere\r\n",
    b"X-Unknown: 1\r\n",
    b"Content-Encoding: gzip\r\n",
    b"Expect: 100-continue\r\n",
    b"broken header\r\n",
]
BODIES = [
    BODY,
    b'{"key":"b/c","value":"\xc3\xa4"}',
    b'{"key":"q\\"q","value":[1, 2]}',
    b'{"key":"","value":1}',
    b"{",
    b"",
    b'{"key":"a","valeu":1}',
]


def some_request(chance: random.Random) -> bytes:
    """A request, plain in half of the cases."""
    if chance.random() < 0.5:
        return chance.choice([GET, PUT])
    version = chance.choice([b"1.1"] * 8 + [b"1.0"])
    headers = b"Host: test\r\n" + chance.choice([b""] * 6 + HEADERS)
    if chance.random() < 0.5:
        key = chance.choice(["a"] * 5 + KEYS).encode()
        method = chance.choice([b"GET"] * 6 + [b"HEAD", b"POST"])
        if chance.random() < 0.1:
            headers += b"Content-Length: 2\r\n\r\n{}"
        else:
            headers += b"\r\n"
        return b"%b /read/%b HTTP/%b\r\n%b" % (method, key, version, headers)
    body = chance.choice([BODY] * 5 + BODIES)
    path = chance.choice([b"/put"] * 6 + [b"/put?acks=0", b"/delete", b"/put/"])
    if chance.random() < 0.1:
        return b"POST %b HTTP/%b\r\n%bTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
            path, version, headers, len(body), body,
        ) if body else b"\r\n"  # fmt: skip
    length = len(body) + chance.choice([0] * 20 + [1, -1])
    return b"POST %b HTTP/%b\r\n%bContent-Length: %d\r\n\r\n%b" % (path, version, headers, max(length, 0), body)


def some_chunks(chance: random.Random) -> list[bytes]:
    """What a client sends on one connection, in the pieces in which it arrives."""
    chunks = []
    for _ in range(chance.randint(2, 8)):
        data = b"".join(some_request(chance) for _ in range(chance.choice([1] * 16 + [2, 3])))
        cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice([0] * 12 + [1, 2])))
        chunks += [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return [chunk for chunk in chunks if chunk]


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("seed", range(15))
async def test_every_conversation_is_the_same_without_it(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, taken: list[bytes], seed: int, caching: bool
) -> None:
    chance = random.Random(seed)
    conversations = [some_chunks(chance) for _ in range(40)]
    spy = ExpressConnection._take
    found = []
    for take in (spy, lambda self, data: False):
        monkeypatch.setattr(ExpressConnection, "_take", take)
        rig = await make_rig()
        rig.store.is_caching = caching
        answers = [await converse(rig, chunks) for chunks in conversations]
        counted = {
            path: (sum(route.counts), route.statuses, route.errors) for path, route in rig.front.counters.routes.items()
        }
        found.append((answers, rig.store.writes, counted))
    for chunks, ours, plain in zip(conversations, found[0][0], found[1][0], strict=True):
        assert ours == plain, f"seed {seed}: {chunks}"
    assert found[0][1:] == found[1][1:]
    assert len(taken) > 20


async def test_a_request_is_taken_once_its_head_is_known(rig: RestRig, taken: list[bytes]) -> None:
    first = await converse(rig, [PUT, GET])
    assert taken == []
    second = await converse(rig, [PUT, GET, PUT, GET])
    assert taken == [PUT, GET, PUT, GET]
    assert second[0].startswith(
        first[0].replace(b"Kv-Seq: 1", b"Kv-Seq: 2").replace(b'"seq":1', b'"seq":2').replace(b'-1"', b'-2"')
    )


NEVER_TAKEN = {
    "another header": GET.replace(b"Host: test", b"Host: test\r\nCookie: a=b"),
    "a condition": GET.replace(b"Host: test", b'Host: test\r\nIf-None-Match: "x"'),
    "an end": GET.replace(b"Host: test", b"Host: test\r\nConnection: close"),
    "a query": GET.replace(b"/a", b"/a?min_seq=0"),
    "an escape": GET.replace(b"/a", b"/%61"),
    "no key": GET.replace(b"/a", b"/"),
    "the first web": GET.replace(b"1.1", b"1.0"),
    "another method": GET.replace(b"GET", b"HEAD"),
    "a read with a body": GET.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\n{}"),
    "acks": PUT.replace(b"/put", b"/put?acks=0"),
    "another route": PUT.replace(b"/put", b"/delete"),
    "chunks": b"POST /put HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n15\r\n%b\r\n0\r\n\r\n" % BODY,
    "a page of another site": PUT.replace(b"Host: test", b"Host: test\r\nOrigin: http://elsewhere"),
    "two at a time": GET + GET,
    "a line before it": b"\r\n" + GET,
}  # fmt: skip


@pytest.mark.parametrize("data", NEVER_TAKEN.values(), ids=NEVER_TAKEN)
async def test_what_is_not_plain_is_never_taken(rig: RestRig, taken: list[bytes], data: bytes) -> None:
    await converse(rig, [data])
    sent, _ = await converse(rig, [data])
    assert sent.startswith(b"HTTP/1.1 ")
    await converse(rig, [GET, PUT])
    await converse(rig, [data])
    assert data not in taken


async def test_limits_are_those_of_the_long_way(make_rig: MakeRig, taken: list[bytes]) -> None:
    rig = await make_rig(max_key_bytes=3, max_body_bytes=len(BODY))
    await converse(rig, [GET, PUT])
    for key, status in ((b"abc", 404), (b"abcd", 413)):
        sent, _ = await converse(rig, [GET.replace(b"/a", b"/" + key)])
        assert sent.startswith(b"HTTP/1.1 %d " % status)
    longer = PUT.replace(b'":1', b'": 1').replace(b"Length: 21", b"Length: 22")
    for _ in range(2):
        assert (await converse(rig, [longer]))[0].startswith(b"HTTP/1.1 413 ")
    assert taken == [GET.replace(b"/a", b"/abc")]


# ---- while it answers ------------------------------------------------------------------------------------------------


async def test_what_arrives_before_the_answer_is_answered_behind_it(rig: RestRig, taken: list[bytes]) -> None:
    await converse(rig, [PUT, GET])
    rig.store.hold = True
    with connected(rig) as (connection, client):
        await settle()
        connection.data_received(PUT)
        connection.data_received(GET)
        connection.data_received(GET[:20])
        await settle()
        assert client.sent == b""
        connection.data_received(GET[20:])
        release(rig)
        await settle()
        assert client.sent.count(b"HTTP/1.1 200 OK") == 3
        assert client.sent.index(b'"status":"OK"') < client.sent.index(b'"value":1')
    assert taken == [PUT]


async def test_a_connection_is_fast_again_after_a_body_in_two_pieces(rig: RestRig, taken: list[bytes]) -> None:
    await converse(rig, [PUT, GET])
    await converse(rig, [PUT[:-3], PUT[-3:], GET])
    assert taken == [GET]
    taken.clear()
    # Where a head was cut, or a body with something behind it, the end of what was parsed is not known any more.
    await converse(rig, [PUT[:10], PUT[10:], GET])
    await converse(rig, [PUT[:-3], PUT[-3:] + GET, GET])
    assert taken == []


OUTCOMES: list[tuple[Exception, int]] = [
    (StorageFull("no room"), 507),
    (OutcomeUnknown("who knows"), 504),
    (Overloaded("too much", limit="x", max=1, queued=1, sent=1), 503),
]


@pytest.mark.parametrize(("error", "status"), OUTCOMES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("attribute", ["write_error", "outcome_error"])
async def test_failed_writes(rig: RestRig, taken: list[bytes], attribute: str, error: Exception, status: int) -> None:
    await converse(rig, [PUT])
    setattr(rig.store, attribute, error)
    sent, is_ended = await converse(rig, [PUT])
    assert taken == [PUT]
    assert sent.startswith(b"HTTP/1.1 %d " % status)
    assert not is_ended
    route = rig.front.counters.routes["/put"]
    assert (sum(route.counts), route.statuses) == (2, {status: 1})


async def test_a_record_that_cannot_be_read_is_logged(make_rig: MakeRig, taken: list[bytes]) -> None:
    rig = await make_rig()
    await converse(rig, [GET])
    rig.store.read_error = RecordDamaged("damaged")
    sent, _ = await converse(rig, [GET])
    assert taken == [GET]
    assert sent.startswith(b"HTTP/1.1 500 ")
    assert rig.log.names() == ["request_failed"]
    assert rig.log.traced == []


async def test_a_bug_is_logged_and_answered(make_rig: MakeRig, taken: list[bytes]) -> None:
    rig = await make_rig()
    await converse(rig, [GET])
    rig.store.read_error = ZeroDivisionError()
    sent, _ = await converse(rig, [GET])
    assert taken == [GET]
    assert sent.startswith(b"HTTP/1.1 500 ")
    assert rig.log.traced == [rig.store.read_error]


async def test_a_client_that_leaves_is_not_answered(rig: RestRig, taken: list[bytes]) -> None:
    await converse(rig, [PUT])
    rig.store.hold = True
    with connected(rig) as (connection, client):
        await settle()
        connection.data_received(PUT)
    release(rig)
    await settle()
    assert taken == [PUT]
    assert client.sent == b""
    assert sum(rig.front.counters.routes["/put"].counts) == 2


async def known(rig: RestRig, wire: Wire) -> None:
    """Have the connection served once, so that it waits for its next request."""
    assert (await wire.ask("GET", "/health")).status == 200


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0)


@asynccontextmanager
async def held_put(rig: RestRig, taken: list[bytes]) -> AsyncIterator[Wire]:
    """A connection whose put went the fast way, and is held by the store."""
    await converse(rig, [PUT])
    rig.store.hold = True
    async with rig.connect() as wire:
        await known(rig, wire)
        taken.clear()
        wire.send(PUT)
        await until(lambda: len(taken) == 1)
        yield wire


def release(rig: RestRig) -> None:
    """Let the held put be done."""
    rig.store.held[0].set_result(WriteResult(rig.store.applied, 0))


@pytest.mark.parametrize("behind", [b"", GET])
async def test_a_client_that_half_closes_gets_all_its_answers(rig: RestRig, taken: list[bytes], behind: bytes) -> None:
    async with held_put(rig, taken) as wire:
        wire.send(behind)
        wire.half_close()
        assert (await rig.ask("GET", "/health")).status == 200
        release(rig)
        answer = await wire.answer()
        assert answer.json["status"] == "OK"
        assert answer.headers.get("connection") == (None if behind else "close")
        if behind:
            assert (await wire.answer()).json == {"key": "a", "value": 1}
        assert await wire.at_end()


async def test_an_answer_under_way_at_the_stop_is_the_last_one(make_rig: MakeRig, taken: list[bytes]) -> None:
    rig = await make_rig()
    async with held_put(rig, taken) as wire:
        closing = asyncio.create_task(rig.front.close(20.0))
        await settle()
        assert not closing.done()
        release(rig)
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await wire.at_end()
        await closing


async def test_a_stop_does_not_wait_for_ever_for_an_answer(make_rig: MakeRig, taken: list[bytes]) -> None:
    rig = await make_rig()
    async with held_put(rig, taken) as wire:
        await rig.front.close(0.01)
        assert await wire.at_end()
    release(rig)
    await settle()


async def test_an_idle_connection_ends_and_one_that_waits_for_its_answer_does_not(
    make_rig: MakeRig, taken: list[bytes]
) -> None:
    rig = await make_rig(keepalive_timeout_s=0.05)
    async with held_put(rig, taken) as wire:
        # Another one, begun later, ends for its idleness.
        async with rig.connect() as other:
            assert await other.at_end()
        release(rig)
        assert (await wire.answer()).status == 200
        assert await wire.at_end()


async def test_a_client_that_takes_too_little_waits_for_its_next_answer(rig: RestRig, taken: list[bytes]) -> None:
    await converse(rig, [PUT, GET])
    with connected(rig) as (connection, client):
        await settle()
        client.on_write = connection.pause_writing
        connection.data_received(GET)
        client.on_write = None
        first = client.sent
        assert first.startswith(b"HTTP/1.1 200 ")
        connection.data_received(PUT)
        await settle()
        assert client.sent == first
        connection.resume_writing()
        await settle()
        assert b'"status":"OK"' in client.sent
        connection.data_received(GET)
    assert taken == [GET, GET]


async def test_a_client_that_takes_nothing_is_given_up(make_rig: MakeRig, taken: list[bytes]) -> None:
    rig = await make_rig(stall_timeout_s=0.01)
    await converse(rig, [PUT, GET])
    with connected(rig) as (connection, client):
        await settle()
        client.on_write = connection.pause_writing
        connection.data_received(GET)
        await until(lambda: client.is_ended)
        assert client.is_reset
    assert taken == [GET]


async def test_a_client_that_half_closes_and_takes_nothing_is_given_up(make_rig: MakeRig, taken: list[bytes]) -> None:
    rig = await make_rig(stall_timeout_s=0.01)
    await converse(rig, [PUT])
    rig.store.hold = True
    with connected(rig) as (connection, client):
        await settle()
        connection.data_received(PUT)
        assert connection.eof_received()
        client.on_write = connection.pause_writing
        release(rig)
        await until(lambda: client.is_ended)
        assert b"Connection: close" in client.sent
        assert client.is_reset
    assert taken == [PUT]


@pytest.mark.parametrize("is_ending", [False, True], ids=["answered before", "answered at the stop"])
@pytest.mark.parametrize("request_", [GET, PUT], ids=["read", "put"])
async def test_a_stop_waits_while_a_client_takes_its_answer(
    make_rig: MakeRig, taken: list[bytes], request_: bytes, is_ending: bool
) -> None:
    rig = await make_rig()
    await converse(rig, [PUT, GET])
    rig.store.hold = request_ is PUT
    with connected(rig) as (connection, client):
        await settle()
        connection.data_received(GET)
        client.on_write = connection.pause_writing
        if is_ending and request_ is GET:
            rig.front.stop_accepting()
        connection.data_received(request_)
        if is_ending:
            rig.front.stop_accepting()
        for held in rig.store.held:
            held.set_result(WriteResult(rig.store.applied, 0))
        await settle()
        assert (b"Connection: close" in client.sent) == is_ending
        closing = asyncio.create_task(rig.front.close(20.0))
        await settle()
        assert not client.is_ended
        assert not closing.done()
        connection.resume_writing()
        await closing
        assert client.is_ended
        assert not client.is_reset
    assert taken == [GET, request_]


async def test_what_came_behind_an_answer_that_is_taken_at_the_stop_is_the_last_one(rig: RestRig) -> None:
    await converse(rig, [PUT, GET])
    with connected(rig) as (connection, client):
        await settle()
        client.on_write = connection.pause_writing
        connection.data_received(GET)
        client.on_write = None
        connection.data_received(GET)
        connection.end_soon()
        connection.resume_writing()
        await until(lambda: client.is_ended)
        assert client.sent.count(b'"value":1') == 2
        assert client.sent.count(b"Connection: close") == 1


async def test_a_connection_is_idle_since_its_last_answer(rig: RestRig, monkeypatch: pytest.MonkeyPatch) -> None:
    await converse(rig, [PUT, GET])
    with connected(rig) as (connection, client):
        await settle()
        connection.data_received(GET)
        answered_s = rig.front._express.now_s()
        for idle_s, is_over in ((70.0, False), (80.0, True)):
            monkeypatch.setattr(rig.front._express, "now_s", lambda idle_s=idle_s: answered_s + idle_s)
            # As the connection's timer finds it when it goes off.
            connection._next_keepalive_close_time = 0.0
            connection._process_keepalive()
            assert client.is_ended == is_over


@pytest.mark.parametrize(
    "data",
    [
        PUT[: PUT.index(b"Content")] + b"Transfer-Encoding: chunked\r\n\r\n",
        GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["chunks", "upgrade", "tunnel"],
)
async def test_where_the_end_is_not_known_nothing_more_is_taken(rig: RestRig, taken: list[bytes], data: bytes) -> None:
    await converse(rig, [PUT, GET])
    with connected(rig) as (connection, _):
        await settle()
        for sent in (data, GET, GET):
            connection.data_received(sent)
            await settle()
    assert taken == []


async def test_a_stop_while_a_client_takes_its_answer(rig: RestRig) -> None:
    await converse(rig, [PUT, GET])
    with connected(rig) as (connection, client):
        await settle()
        client.on_write = connection.pause_writing
        connection.data_received(GET)
        connection.end_soon()
        await settle()
        assert not client.is_ended
        connection.resume_writing()
        await until(lambda: client.is_ended)
        assert client.sent.endswith(b'"value":1}')


# ---- heads -----------------------------------------------------------------------------------------------------------


async def test_the_memory_of_heads_is_bounded(
    rig: RestRig, monkeypatch: pytest.MonkeyPatch, taken: list[bytes]
) -> None:
    monkeypatch.setattr(heads, "_MOST_HEADS", 3)
    requests = [GET.replace(b"test", b"test%d" % number) for number in range(5)]
    await converse(rig, requests)
    known = rig.front._express.heads
    assert [head.split()[1] for head in known.gets] == [b"test2", b"test3", b"test4"]
    await converse(rig, requests)
    assert taken == []
    await converse(rig, requests[2:])
    assert taken == requests[2:]


async def test_a_known_head_pushes_no_other_out(rig: RestRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_MOST_HEADS", 2)
    other = GET.replace(b"test", b"other")
    # The last ones have a known head, and are not plain for what they ask.
    await converse(rig, [GET, other, other.replace(b"/a", b"/%61"), other.replace(b"/a", b"/a?min_seq=0")])
    assert [head.split()[1] for head in rig.front._express.heads.gets] == [b"test", b"other"]


async def test_long_heads_are_not_remembered(rig: RestRig) -> None:
    await converse(rig, [GET.replace(b"test", b"t" * 2000), PUT.replace(b"test", b"t" * 2000)])
    assert (rig.front._express.heads.gets, rig.front._express.heads.posts) == ({}, {})
