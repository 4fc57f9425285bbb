"""Sessions that write and ask: what is taken, what is refused and how, and what a client may cost."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from kvnode.node.api import Acks, WriteResult
from kvnode.node.errors import (
    LogFailed,
    NotEnoughReplicas,
    OutcomeUnknown,
    Overloaded,
    ReplicationTimeout,
    StorageFull,
    TooLarge,
)
from kvnode.node.replication.link import HIGH_WATER_BYTES
from kvnode.protocol.codec import encode
from kvnode.protocol.errors import KvError
from kvnode.protocol.messages import (
    Ack,
    Message,
    Ping,
    Status,
    StatusResult,
)
from kvnode.protocol.messages import WriteResult as WriteResultFrame
from kvnode.protocol.types import Epoch, Op, Position, delete, put
from support.fake_replicated_store import events_of
from support.holds import turns
from support.manual_loop import ManualLoop
from support.peers import EPOCH, hello, observe_from, subscribe_from
from support.serving_rig import STATUS, client

# ---- writes ----------------------------------------------------------------------------------------------------


async def test_a_write_is_ordered_with_its_acks_and_answered() -> None:
    async with client() as at:
        ops = (put(b"a", b'"x"'), delete(b"\xc3\xa4"), put(b"b", b'{"n": [1, 2.5e3, null, "\\ud800"]}'))
        at.write(*ops, number=7, acks=2, timeout_ms=1500)
        (future,) = await at.taken()
        assert at.store.writes == [(ops, Acks(2, 1.5))]
        future.set_result(WriteResult(Position(EPOCH, 12), 1))
        assert await at.answer() == WriteResultFrame(7, EPOCH, 12, 1, None, None, None)


async def test_a_majority_can_be_asked_for() -> None:
    async with client() as at:
        at.write(acks=None, timeout_ms=0)
        await at.taken()
        assert at.store.writes[0][1] == Acks(None, 0.0)


async def test_writes_are_answered_as_they_are_done() -> None:
    async with client() as at:
        for number in range(100):
            at.write(number=number)
        futures = list(await at.taken(100))
        for number in reversed(range(100)):
            futures[number].set_result(WriteResult(Position(EPOCH, number + 1), 0))
            await turns(2)
        assert [(await at.answer()).request_id for _ in range(100)] == list(reversed(range(100)))


async def test_a_client_that_left_is_not_answered() -> None:
    async with client() as at:
        at.write()
        (future,) = await at.taken()
        at.peer.reset()
        await turns()
        future.set_result(WriteResult(Position(EPOCH, 1), 0))
        await turns()


async def test_a_write_whose_future_is_cancelled_is_not_answered() -> None:
    async with client() as at:
        at.write()
        (future,) = await at.taken()
        future.cancel()
        at.peer.send(Status(1))
        await at.peer.take(StatusResult)


async def test_a_half_closed_client_gets_its_answers_and_then_the_end() -> None:
    async with client() as at:
        for number in range(3):
            at.write(number=number)
        at.peer.half_close()
        for number, future in enumerate(await at.taken(3)):
            future.set_result(WriteResult(Position(EPOCH, number + 1), 0))
            await turns(2)
        frames = await at.peer.rest()
        assert [each.request_id for each in frames if isinstance(each, WriteResultFrame)] == [0, 1, 2]


async def test_a_half_closed_client_without_open_requests_gets_the_end() -> None:
    async with client() as at:
        at.peer.send(Status(1))
        at.write(put(b"k", b"not json"), number=2)
        at.peer.half_close()
        status, refused = await at.peer.rest()
        assert isinstance(status, StatusResult)
        assert isinstance(refused, WriteResultFrame)


# ---- writes that are refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\x80"])
@pytest.mark.parametrize("make", [put, delete])
async def test_a_key_that_is_not_utf8(key: bytes, make: Callable[..., Op]) -> None:
    async with client() as at:
        answer = await at.ask(put(b"fine", b"1"), make(key, b"1") if make is put else make(key))
        assert (answer.error_code, answer.error_message) == ("invalid_request", "a key is not UTF-8")
        assert json.loads(answer.error_fields or b"") == {"field": "key"}
        assert (answer.epoch, answer.seq, answer.deleted) == (Epoch(0), 0, 0)
        assert at.store.writes == []


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b"x",
        b"NaN",
        b"01",
        b"1 2",
        b' "x"',
        b"1\n",
        b'1,"more":2',
        b'1},{"key":"k2"',
        b'"\xff"',
        b'{"a":1',
        b'"\t"',
        b"\xef\xbb\xbf1",
        b"[" * 5000 + b"]" * 5000,
    ],
)
async def test_a_value_that_is_not_one_json_text(value: bytes) -> None:
    async with client() as at:
        answer = await at.ask(put(b"k", value))
        assert answer.error_code in ("invalid_json", "invalid_request")
        assert answer.error_message
        assert at.store.writes == []


async def test_what_expires_is_of_a_later_version() -> None:
    async with client() as at:
        answer = await at.ask(put(b"k", b"1", expires_ms=1))
        assert (answer.error_code, json.loads(answer.error_fields or b"")) == (
            "invalid_request",
            {"field": "expires_ms"},
        )
        assert at.store.writes == []


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (TooLarge("max_value_bytes", 10, 11), {"limit": "max_value_bytes", "max": 10, "sent": 11}),
        (Overloaded("too much", limit="max_queued_bytes", max=1, queued=2, sent=3), {"queued": 2}),
        (NotEnoughReplicas("too few", asked=2, following=1), {"asked": 2, "following": 1}),
        (StorageFull("the disk is full", hint="free some space"), {"hint": "free some space"}),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_an_error_goes_with_its_fields(error: KvError, fields: dict[str, Any], at_once: bool) -> None:
    async with client() as at:
        if at_once:
            at.store.write_error = error
            answer = await at.ask()
        else:
            at.write()
            (future,) = await at.taken()
            future.set_exception(error)
            answer = await at.answer()
        assert (answer.error_code, answer.error_message) == (error.code, error.message)
        assert fields.items() <= json.loads(answer.error_fields or b"").items()
        assert (answer.epoch, answer.seq) == (Epoch(0), 0)


@pytest.mark.parametrize("cls", [ReplicationTimeout, OutcomeUnknown])
async def test_an_error_that_names_an_entry_says_so_where_it_belongs(cls: type[KvError]) -> None:
    async with client() as at:
        at.write()
        (future,) = await at.taken()
        future.set_exception(cls("late", seq=5, epoch=str(EPOCH), acks=0, asked=1))
        answer = await at.answer()
        assert (answer.error_code, answer.epoch, answer.seq) == (cls.code, EPOCH, 5)
        assert json.loads(answer.error_fields or b"")["asked"] == 1


async def test_without_fields_there_is_no_object() -> None:
    async with client() as at:
        at.store.write_error = OutcomeUnknown("it may be")
        assert (await at.ask()).error_fields is None


async def test_a_bug_is_told_as_one_and_logged() -> None:
    async with client() as at:
        at.write()
        (future,) = await at.taken()
        future.set_exception(ZeroDivisionError("secret"))
        answer = await at.answer()
        assert answer.error_code == "internal"
        assert "secret" not in (answer.error_message or "")
        assert events_of(at.shared).names() == ["forwarded_write_failed"]


async def test_an_error_of_the_disk_is_told_by_its_code() -> None:
    async with client() as at:
        at.write()
        (future,) = await at.taken()
        future.set_exception(LogFailed("the log failed"))
        assert (await at.answer()).error_code == "log_failed"


async def test_a_node_that_is_no_primary_takes_no_write_and_no_subscription() -> None:
    async with client() as at:
        at.refusal = "r1 is a replica, its primary is at p1:7001"
        answer = await at.ask()
        assert (answer.error_code, answer.error_message) == ("not_primary", at.refusal)
        assert at.store.writes == []
        at.peer.send(Status(1))
        await at.peer.take(StatusResult)
        at.peer.send(subscribe_from(3))
        error = await at.peer.refused()
        assert (error.code, error.message) == ("not_primary", at.refusal)


# ---- what else it may say --------------------------------------------------------------------------------------


async def test_status_and_ping_are_answered() -> None:
    async with client() as at:
        at.store.publish(4)
        at.peer.send(Status(9), Ping(0, 0), Status(10))
        first, ping, second = [await at.peer.next() for _ in range(3)]
        assert isinstance(first, StatusResult)
        assert (first.request_id, json.loads(first.status)) == (9, STATUS)
        assert isinstance(ping, Ping)
        assert ping.last_seq == 4
        assert isinstance(second, StatusResult)
        assert second.request_id == 10


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (observe_from(1), "SUBSCRIBE is for the purposes replica and observe"),
        (hello(), "HELLO is not what such a session sends"),
        (Ack(0, 0, 0), "ACK is not what such a session sends"),
    ],
)
async def test_what_it_must_not_say_ends_the_session(message: Message, told: str) -> None:
    async with client() as at:
        at.peer.send(message, Status(1))
        error = await at.peer.refused()
        assert (error.code, error.message) == ("protocol_error", told)
        assert at.statuses == 0


# ---- what it may cost ------------------------------------------------------------------------------------------


async def test_a_client_that_takes_no_answers_is_asked_to_wait() -> None:
    async with client(kernel_bytes=4096) as at:
        at.peer.pause()
        most = 0
        for number in range(200):
            at.peer.send(b"".join([encode(Status(number * 100 + each)) for each in range(100)]))
            await turns(2)
            most = max(most, at.link.held_bytes)
        assert HIGH_WATER_BYTES <= most < HIGH_WATER_BYTES + 10_000
        assert at.statuses < 20_000
        at.peer.resume()
        answers = [await at.peer.take(StatusResult) for _ in range(20_000)]
        assert [each.request_id for each in answers] == list(range(20_000))


async def test_a_client_that_takes_none_for_thirty_seconds_is_dropped() -> None:
    loop = ManualLoop()
    async with client(loop=loop, kernel_bytes=4096) as at:
        at.peer.pause()
        while at.link.held_bytes < HIGH_WATER_BYTES:
            at.peer.send(encode(Status(1)) * 1000)
            await turns(2)
        await turns(100)
        loop.advance(29)
        assert at.link.is_open
        loop.advance(31)
        assert not at.link.is_open


async def test_a_client_that_takes_some_now_and_then_stays() -> None:
    loop = ManualLoop()
    async with client(loop=loop, kernel_bytes=4096) as at:
        at.peer.pause()
        sent = 0
        while at.link.held_bytes < HIGH_WATER_BYTES:
            at.peer.send(encode(Status(1)) * 1000)
            sent += 1000
            await turns(2)
        for _ in range(4):
            before = at.link.progress.flushed
            while at.link.progress.flushed == before:
                at.peer.resume()
                for _ in range(50):
                    await at.peer.next()
                    sent -= 1
                at.peer.pause()
            loop.advance(29)
            assert at.link.is_open
        at.peer.resume()
        while sent:
            await at.peer.next()
            sent -= 1
        loop.advance(100)
        assert at.link.is_open, "it has all its answers"
