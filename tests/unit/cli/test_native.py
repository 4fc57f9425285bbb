"""The native client against a node that a test plays frame by frame: what it sends, and how each call ends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from kvnode.cli.client import (
    HistoryLost,
    JsonText,
    NativeClient,
    ServerError,
    Unanswered,
    Unreachable,
)
from kvnode.cli.client import native as native_module
from kvnode.cli.client import pipeline as pipeline_module
from kvnode.cli.errors import ConnectionLost, PeerSilent, Refused
from kvnode.protocol.codec import encode
from kvnode.protocol.errors import RemoteProtocolError
from kvnode.protocol.messages import (
    Error,
    Hello,
    Message,
    Ping,
    Purpose,
    Read,
    ReadResult,
    StatusResult,
    Write,
    WriteResult,
)
from kvnode.protocol.messages import Status as StatusFrame
from kvnode.protocol.types import Epoch, Position, delete, put
from support.holds import turns
from support.peers import EPOCH, Peer, PeerServer, until, welcome

ON_BOTH_LOOPS = True

T = TypeVar("T")


class Scene:
    """A client, and the node that the test plays.

    Attributes:
        node: the node's side of the connection.
    """

    def __init__(self, client: NativeClient, node: Peer) -> None:
        self.client = client
        self.node = node

    async def taken(self, kind: type[T]) -> T:
        """The next request."""
        return await self.node.take(kind)  # type: ignore[type-var]


@asynccontextmanager
async def scene(*, features: tuple[str, ...] = ("read",), **options: Any) -> AsyncIterator[Scene]:
    async with PeerServer() as server:
        client = NativeClient(str(server.address), **options)
        entering = asyncio.ensure_future(client.__aenter__())
        node = await server.accept()
        hello = await node.take(Hello)
        assert (hello.purpose, hello.name, hello.cluster_id) == (Purpose.CLIENT, "", b"")
        node.send(welcome(41, features=features))
        await entering
        try:
            yield Scene(client, node)
        finally:
            await client.__aexit__(None, None, None)


def begin(call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    return asyncio.get_running_loop().create_task(call)


def done(request_id: int, seq: int = 42, *, deleted: int = 0) -> WriteResult:
    return WriteResult(request_id, EPOCH, seq, deleted, None, None, None)


def failed(request_id: int, code: str, fields: bytes | None = None, *, seq: int = 0) -> WriteResult:
    return WriteResult(request_id, EPOCH if seq else Epoch(0), seq, 0, code, "it failed", fields)


async def failure_of(call: Awaitable[Any]) -> Any:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        await asyncio.wait_for(call, 20)
    return caught.value


# ---- what is asked and answered --------------------------------------------------------------------------------------


async def test_writes() -> None:
    async with scene() as at:
        putting = begin(at.client.put("ä", {"n": [1, None]}))
        asked = await at.taken(Write)
        assert asked == Write(asked.request_id, (put("ä".encode(), b'{"n":[1,null]}'),), 0, 5000)
        at.node.send(done(asked.request_id))
        assert (await putting).position == Position(EPOCH, 42)

        batching = begin(at.client.batch({"a": JsonText("1.0"), "b": "x"}, acks=2, ack_timeout_s=1.5))
        asked = await at.taken(Write)
        assert (asked.ops, asked.acks, asked.ack_timeout_ms) == ((put(b"a", b"1.0"), put(b"b", b'"x"')), 2, 1500)
        at.node.send(done(asked.request_id, 43))
        assert (await batching).position.seq == 43

        for count in (0, 1):
            deleting = begin(at.client.delete("a", acks="majority"))
            asked = await at.taken(Write)
            assert (asked.ops, asked.acks) == ((delete(b"a"),), None)
            at.node.send(done(asked.request_id, deleted=count))
            assert (await deleting).deleted is bool(count)


async def test_reads() -> None:
    async with scene() as at:
        reading = begin(at.client.get("k"))
        asked = await at.taken(Read)
        assert asked == Read(asked.request_id, b"k", Epoch(0), 0, 1000)
        at.node.send(ReadResult(asked.request_id, EPOCH, 41, b'"v"', EPOCH, 42, None, None, None))
        record = await reading
        assert record is not None
        assert (record.value, record.version, record.applied) == ("v", Position(EPOCH, 41), Position(EPOCH, 42))

        reading = begin(at.client.get("k", position=Position(EPOCH, 43), wait_s=2.5))
        asked = await at.taken(Read)
        assert (asked.min_epoch, asked.min_seq, asked.wait_ms) == (EPOCH, 43, 2500)
        at.node.send(ReadResult(asked.request_id, Epoch(0), 0, None, EPOCH, 43, None, None, None))
        assert await reading is None


async def test_many_reads_in_one_call() -> None:
    async with scene() as at:
        reading = begin(at.client.get_many((f"k{number}" for number in range(150)), position=Position(EPOCH, 3)))
        asked = [await at.taken(Read) for _ in range(150)]
        assert [(each.key, each.min_epoch, each.min_seq, each.wait_ms) for each in asked] == [
            (b"k%d" % number, EPOCH, 3, 1000) for number in range(150)
        ]
        assert len({each.request_id for each in asked}) == 150
        for each in reversed(asked):
            value = None if each.key == b"k7" else b'"%b"' % each.key
            seq = 0 if value is None else 5
            at.node.send(ReadResult(each.request_id, EPOCH, seq, value, EPOCH, 9, None, None, None))
            # A second answer to the same request is nobody's.
            at.node.send(ReadResult(each.request_id, EPOCH, 5, b'"again"', EPOCH, 9, None, None, None))
        found = await reading
        assert [each and each.value for each in found] == [
            None if number == 7 else f"k{number}" for number in range(150)
        ]
        assert await at.client.get_many([]) == []


async def test_one_of_many_reads_that_fails() -> None:
    async with scene() as at:
        reading = begin(at.client.get_many(["a", "b"]))
        first, second = await at.taken(Read), await at.taken(Read)
        nothing = (Epoch(0), 0, None, Epoch(0), 0)
        at.node.send(ReadResult(second.request_id, *nothing, "syncing", "later", None))
        await turns(5)
        assert not reading.done()
        at.node.send(ReadResult(first.request_id, EPOCH, 1, b"1", EPOCH, 1, None, None, None))
        assert (await failure_of(reading)).code == "syncing"


async def test_many_reads_that_are_cut_are_unanswered() -> None:
    async with scene() as at:
        reading = begin(at.client.get_many(["a", "b"]))
        first = await at.taken(Read)
        at.node.send(ReadResult(first.request_id, EPOCH, 1, b"1", EPOCH, 1, None, None, None))
        await turns(5)
        at.node.close()
        assert type(await failure_of(reading)) is Unanswered


async def test_status() -> None:
    async with scene() as at:
        asking = begin(at.client.status())
        asked = await at.taken(StatusFrame)
        at.node.send(StatusResult(asked.request_id, b'{"name":"p1"}'))
        assert (await asking).fields == {"name": "p1"}
        assert at.client.welcome.name == "p1"
        assert at.client.url.startswith("kv://127.0.0.")


async def test_many_calls_are_in_flight_and_are_answered_in_any_order() -> None:
    async with scene() as at:
        calls = [begin(at.client.put(f"k{number}", number)) for number in range(100)]
        asked = [await at.taken(Write) for _ in range(100)]
        assert [each.ops[0].key for each in asked] == [b"k%d" % number for number in range(100)]
        for each in reversed(asked):
            at.node.send(Ping(1, 1), done(each.request_id, each.request_id))
        written = await asyncio.gather(*calls)
        assert [each.position.seq for each in written] == [each.request_id for each in asked]


async def test_more_calls_than_may_be_in_flight_wait_for_their_turn() -> None:
    async with scene(most_in_flight=3) as at:
        calls = [begin(at.client.put(f"k{number}", number)) for number in range(10)]
        for first in range(10):
            asked = await at.taken(Write)
            assert asked.ops[0].key == b"k%d" % first
            await turns(5)
            waiting = [call for call in calls if not call.done()]
            assert len(waiting) == 10 - first
            at.node.send(done(asked.request_id))
        await asyncio.gather(*calls)


# ---- errors of the node ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "maybe_written"),
    [
        ("invalid_request", 400, False),
        ("too_large", 413, False),
        ("not_primary", 503, False),
        ("storage_full", 507, False),
        ("outcome_unknown", 504, True),
        ("internal", 500, True),
        ("a_code_of_tomorrow", 500, True),
    ],
)
async def test_an_error_of_the_node(code: str, status: int, maybe_written: bool) -> None:
    async with scene() as at:
        call = begin(at.client.put("k", 1))
        asked = await at.taken(Write)
        at.node.send(failed(asked.request_id, code, b'{"limit":"x","hint":"do this"}'))
        error = await failure_of(call)
        assert isinstance(error, ServerError)
        assert (error.code, error.status, error.fields, error.hint) == (code, status, {"limit": "x"}, "do this")
        assert (error.maybe_written, error.message, error.url) == (maybe_written, "it failed", at.client.url)


async def test_a_write_that_is_durable_all_the_same_is_named() -> None:
    async with scene() as at:
        call = begin(at.client.put("k", 1, acks=1))
        asked = await at.taken(Write)
        at.node.send(failed(asked.request_id, "replication_timeout", seq=42))
        error = await failure_of(call)
        assert (error.position, error.maybe_written) == (Position(EPOCH, 42), True)


async def test_a_read_whose_history_is_lost() -> None:
    async with scene() as at:
        call = begin(at.client.get("k", position=Position(EPOCH, 50)))
        asked = await at.taken(Read)
        nothing = (Epoch(0), 0, None, Epoch(0), 0)
        at.node.send(ReadResult(asked.request_id, *nothing, "history_lost", "it is gone", b"\xff"))
        assert isinstance(await failure_of(call), HistoryLost)


# ---- other releases --------------------------------------------------------------------------------------------------


async def test_a_node_of_before_reads_is_not_sent_any_and_can_be_written() -> None:
    async with scene(features=()) as at:
        error = await failure_of(at.client.get("k"))
        assert isinstance(error, Refused)
        assert (error.code, error.maybe_written) == ("unsupported", False)
        call = begin(at.client.put("k", 1))
        asked = await at.taken(Write)
        at.node.send(done(asked.request_id))
        await call


async def test_features_of_later_releases_mean_nothing() -> None:
    async with scene(features=("read", "a-later-one")) as at:
        call = begin(at.client.get("k"))
        asked = await at.taken(Read)
        at.node.send(ReadResult(asked.request_id, EPOCH, 1, b"1", EPOCH, 1, None, None, None))
        assert await call is not None


# ---- what is wrong before anything is sent ---------------------------------------------------------------------------


async def test_mistakes_are_told_before_anything_is_sent() -> None:
    async with scene() as at:
        for call in (
            at.client.put("", 1),
            at.client.batch({}),
            at.client.get("\ud800"),
            at.client.put("k", float("nan")),
        ):
            assert isinstance(await failure_of(call), ValueError)
        assert isinstance(await failure_of(at.client.put("k", b"1")), TypeError)  # type: ignore[arg-type]
        call = begin(at.client.put("k", 1))
        asked = await at.taken(Write)
        at.node.send(done(asked.request_id))
        await call


@pytest.mark.parametrize("address", ["nowhere", "kv://", "http://127.0.0.1:7001"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        NativeClient(address)


# ---- connecting ------------------------------------------------------------------------------------------------------


async def test_nobody_listens() -> None:
    async with PeerServer() as server:
        address = server.address
    with pytest.raises(Unreachable, match="cannot connect"):
        async with NativeClient(f"kv://{address}"):
            pass


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (encode(Error("overloaded", "too many")), Refused),
        (encode(Ping(1, 1)), RemoteProtocolError),
        (encode(welcome(1, version=2)), RemoteProtocolError),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", RemoteProtocolError),
        (b"", ConnectionLost),
        (encode(welcome(1))[:9], ConnectionLost),
    ],
)
async def test_what_is_no_welcome(said: bytes, error: type[Exception]) -> None:
    async with PeerServer() as server:
        client = NativeClient(server.address)
        entering = asyncio.ensure_future(client.__aenter__())
        node = await server.accept()
        await node.take(Hello)
        node.send(said)
        node.half_close()
        assert isinstance(await failure_of(entering), error)
        await node.ended()


async def test_a_node_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_module, "WELCOME_TIMEOUT_S", 0.05)
    async with PeerServer() as server:
        assert isinstance(await failure_of(NativeClient(server.address).__aenter__()), PeerSilent)
        await (await server.accept()).ended()


# ---- the connection is lost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset", "error", "rubbish", "oversize", "half", "wrong"])
async def test_what_was_sent_is_unknown_and_what_was_not_is_not(how: str) -> None:
    async with scene(most_in_flight=2) as at:
        sent = [begin(at.client.put(f"k{number}", number)) for number in range(2)]
        not_sent = [begin(at.client.put(f"k{number}", number)) for number in range(2, 5)]
        asked = [await at.taken(Write) for _ in range(2)]
        match how:
            case "close":
                at.node.close()
            case "reset":
                at.node.reset()
            case "error":
                at.node.send(Error("draining", "this node is stopping"))
                at.node.close()
            case "rubbish":
                at.node.send(b"\x00\x00\x00\x01\xc1")
            case "oversize":
                at.node.send(b"\xff\xff\xff\xff")
            case "half":
                at.node.send(encode(done(asked[0].request_id))[:7])
                at.node.close()
            case "wrong":
                # Not the result that belongs to the request.
                at.node.send(StatusResult(asked[0].request_id, b"{}"))
        for call in sent:
            error = await failure_of(call)
            assert (type(error), error.maybe_written, error.url) == (Unanswered, True, at.client.url)
            if how == "error":
                assert "draining: this node is stopping" in error.message
        for call in not_sent:
            error = await failure_of(call)
            assert (type(error), error.maybe_written) == (Unreachable, False)
        later = await failure_of(at.client.put("later", 1))
        assert type(later) is Unreachable
        # Nothing of it was sent twice, nor sent at all.
        rest: list[Message] = await at.node.rest()
        assert rest == []


async def test_what_is_made_in_the_turn_of_the_end_was_not_sent() -> None:
    async with scene() as at:
        call = begin(at.client.put("k", 1))
        # One turn: it is about to be handed over.
        await asyncio.sleep(0)
        await at.client.__aexit__(None, None, None)
        assert type(await failure_of(call)) is Unreachable
        assert await at.node.rest() == []


async def test_the_end_of_the_block_ends_what_is_not_answered() -> None:
    async with scene() as at:
        call = begin(at.client.put("k", 1))
        await at.taken(Write)
        await at.client.__aexit__(None, None, None)
        error = await failure_of(call)
        assert (type(error), error.maybe_written) == (Unanswered, True)


async def test_a_node_that_takes_nothing_does_not_keep_the_connection() -> None:
    async with scene() as at:
        at.node.pause()
        call = begin(at.client.put("k", JsonText.trusted(b'"%b"' % (b"v" * 20_000_000))))
        connection = at.client._connection
        assert connection is not None
        await until(lambda: not connection._may_write.is_set())
        await at.client.__aexit__(None, None, None)
        assert type(await failure_of(call)) is Unanswered
        await until(lambda: connection._transport is None)


# ---- time ------------------------------------------------------------------------------------------------------------


async def test_a_call_whose_time_is_up_is_unknown_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "_SWEEP_S", 0.02)
    async with scene(timeout_s=0.1) as at:
        slow = begin(at.client.put("slow", 1))
        asked = await at.taken(Write)
        error = await failure_of(slow)
        assert (type(error), error.maybe_written) == (Unanswered, True)
        # Its answer comes late, and is nobody's.
        at.node.send(done(asked.request_id))
        call = begin(at.client.put("k", 1))
        asked = await at.taken(Write)
        at.node.send(done(asked.request_id, 50))
        assert (await call).position.seq == 50


async def test_a_call_that_does_not_get_its_turn_in_time_was_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "_SWEEP_S", 60.0)
    async with scene(timeout_s=0.1, most_in_flight=1) as at:
        first = begin(at.client.put("k1", 1))
        asked = await at.taken(Write)
        error = await failure_of(at.client.put("k2", 2))
        assert (type(error), error.maybe_written) == (Unreachable, False)
        at.node.send(done(asked.request_id))
        await first
        third = begin(at.client.put("k3", 3))
        asked = await at.taken(Write)
        assert asked.ops[0].key == b"k3"
        at.node.send(done(asked.request_id))
        await third


async def test_cancelled_calls_leave_their_place_to_others() -> None:
    async with scene(most_in_flight=2) as at:
        calls = [begin(at.client.put(f"k{number}", number)) for number in range(4)]
        asked = [await at.taken(Write) for _ in range(2)]
        for call in (calls[0], calls[2]):
            call.cancel()
        asked.append(await at.taken(Write))
        assert asked[2].ops[0].key == b"k3"
        for each in asked:
            at.node.send(done(each.request_id))
        await asyncio.gather(calls[1], calls[3])
        await until(lambda: all(call.done() for call in calls))


async def test_a_node_that_takes_nothing_makes_callers_wait() -> None:
    async with scene() as at:
        at.node.pause()
        large = JsonText.trusted(b'"%b"' % (b"v" * 1_000_000))
        calls = [begin(at.client.put(f"k{number}", large)) for number in range(10)]
        connection = at.client._connection
        assert connection is not None
        await until(lambda: not connection._may_write.is_set())
        calls.append(begin(at.client.put("waits", 1)))
        await turns(10)
        assert len(connection._calls) == 10
        at.node.resume()
        for _ in range(11):
            at.node.send(done((await at.taken(Write)).request_id))
        await asyncio.gather(*calls)
