"""Sessions that read: what is answered at once and what later, what is refused and how, and what reads may cost."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kvnode.node.api import ReadResult, ReadToken, Record
from kvnode.node.errors import NotCaughtUp, RecordDamaged, Syncing, history_lost
from kvnode.node.replication.link import HIGH_WATER_BYTES, TURN_FRAMES
from kvnode.node.replication.reading import MOST_MISSES, MOST_WAITS
from kvnode.protocol.codec import encode
from kvnode.protocol.messages import Ping, Read, Status, StatusResult
from kvnode.protocol.messages import ReadResult as ReadResultFrame
from kvnode.protocol.types import Epoch, Position, put
from support.fake_replicated_store import events_of
from support.fake_store import EPOCH, FakeStore
from support.holds import turns
from support.manual_loop import ManualLoop
from support.peers import until
from support.serving_rig import Client, client

NO_EPOCH = Epoch(0)

#: The longest wait of a read, in milliseconds.
HOUR_MS = 3_600_000


class SlowStore(FakeStore):
    """A store whose misses and waits are ended by the test.

    Attributes:
        misses: reads that went to LevelDB and are not answered.
        waits: of reads that wait for an entry.
        most: of the misses, at any time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.misses: list[tuple[bytes, asyncio.Future[None]]] = []
        self.waits: list[asyncio.Future[None]] = []
        self.most = 0

    async def read(self, key: bytes) -> ReadResult:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        miss = (key, ended)
        self.misses.append(miss)
        self.most = max(self.most, len(self.misses))
        try:
            await ended
        finally:
            self.misses.remove(miss)
        return ReadResult(self.records.get(key), self.applied)

    async def wait_applied(self, token: ReadToken) -> None:
        self.tokens.append(token)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waits.append(ended)
        try:
            await ended
        finally:
            self.waits.remove(ended)

    def end_misses(self) -> None:
        """Answer all that are there."""
        for _, ended in self.misses:
            ended.set_result(None)


@asynccontextmanager
async def reader(store: FakeStore, **options: Any) -> AsyncIterator[Client]:
    """A client of a node that has `k1` to `k3`, at seq 1 to 3."""
    for number in (1, 2, 3):
        store.write((put(b"k%d" % number, b'"v%d"' % number),))
    async with client(reads=store, **options) as at:
        yield at


def ask(at: Client, key: bytes, number: int = 1, *, seq: int = 0, epoch: Epoch = NO_EPOCH, wait_ms: int = 0) -> None:
    at.peer.send(Read(number, key, epoch, seq, wait_ms))


async def answer(at: Client) -> ReadResultFrame:
    return await at.peer.take(ReadResultFrame)


async def refusal(at: Client) -> tuple[str | None, dict[str, Any]]:
    """The code and the fields of the next answer, which has nothing else."""
    found = await answer(at)
    assert (found.epoch, found.seq, found.value, found.applied_epoch, found.applied_seq) == (0, 0, None, 0, 0)
    assert found.error_message
    return found.error_code, json.loads(found.error_fields or b"{}")


def found(number: int, *, request_id: int = 1) -> ReadResultFrame:
    """The answer to a read of the key with this number."""
    return ReadResultFrame(request_id, EPOCH, number, b'"v%d"' % number, EPOCH, 3, None, None, None)


# ---- what is found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_caching", [True, False])
async def test_a_record_comes_with_its_version_and_with_what_the_read_saw(is_caching: bool) -> None:
    async with reader(FakeStore()) as at:
        at.reads.is_caching = is_caching
        ask(at, b"k2", 7)
        assert await answer(at) == found(2, request_id=7)


async def test_a_key_without_a_record_is_no_error() -> None:
    async with reader(FakeStore()) as at:
        ask(at, b"none", 7)
        assert await answer(at) == ReadResultFrame(7, NO_EPOCH, 0, None, EPOCH, 3, None, None, None)


async def test_hits_are_answered_in_the_turn_in_which_they_come_and_misses_hold_up_nobody() -> None:
    store = SlowStore()
    async with reader(store) as at:
        store.is_caching = False
        ask(at, b"k1", 1)
        await until(lambda: store.misses)
        store.is_caching = True
        at.peer.send(*[Read(number, b"k2", NO_EPOCH, 0, 0) for number in (2, 3)])
        assert [(await answer(at)).request_id for _ in range(2)] == [2, 3]
        assert at.link.held_bytes == 0
        store.end_misses()
        assert await answer(at) == found(1)


async def test_answers_of_one_turn_leave_in_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    async with reader(FakeStore()) as at:
        transport = at.link._transport
        assert transport is not None
        writes: list[int] = []

        class Counting:
            def write(self, data: bytes) -> None:
                writes.append(len(data))
                transport.write(data)

            def __getattr__(self, name: str) -> Any:
                return getattr(transport, name)

        monkeypatch.setattr(at.link, "_transport", Counting())
        at.peer.send(b"".join([encode(Read(number, b"k1", NO_EPOCH, 0, 0)) for number in range(100)]))
        assert [(await answer(at)).request_id for _ in range(100)] == list(range(100))
        assert len(writes) == 1


# ---- what a read has to see ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [NO_EPOCH, EPOCH])
async def test_what_is_applied_is_not_waited_for(epoch: Epoch) -> None:
    async with reader(FakeStore()) as at:
        ask(at, b"k1", seq=3, epoch=epoch, wait_ms=HOUR_MS + 1)
        assert await answer(at) == found(1)
        assert at.reads.tokens == []


@pytest.mark.parametrize(
    ("seq", "epoch", "token"),
    [
        (4, NO_EPOCH, ReadToken(4, None, 1.5)),
        (4, EPOCH, ReadToken(4, EPOCH, 1.5)),
        (2, Epoch.of(2, 0), ReadToken(2, Epoch.of(2, 0), 1.5)),
    ],
)
async def test_a_wait_holds_up_no_other_read(seq: int, epoch: Epoch, token: ReadToken) -> None:
    store = SlowStore()
    async with reader(store) as at:
        ask(at, b"k1", 1, seq=seq, epoch=epoch, wait_ms=1500)
        ask(at, b"k2", 2)
        assert await answer(at) == found(2, request_id=2)
        assert store.tokens == [token]
        store.waits[0].set_result(None)
        assert await answer(at) == found(1)


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (NotCaughtUp("not yet", min_seq=9, applied_seq=3), {"min_seq": 9, "applied_seq": 3}),
        (history_lost(EPOCH, 9), {"epoch": str(EPOCH), "seq": 9}),
    ],
)
async def test_a_wait_that_fails_is_told_as_rest_tells_it(error: Exception, fields: dict[str, Any]) -> None:
    async with reader(FakeStore()) as at:
        at.reads.wait_error = error
        ask(at, b"k1", seq=9, wait_ms=10)
        assert await refusal(at) == (error.code, fields)  # type: ignore[attr-defined]


async def test_a_wait_of_more_than_an_hour_is_refused() -> None:
    async with reader(SlowStore()) as at:
        ask(at, b"k1", seq=4, wait_ms=HOUR_MS + 1)
        assert await refusal(at) == ("invalid_request", {"field": "wait_ms"})
        ask(at, b"k1", seq=4, wait_ms=HOUR_MS)
        await until(lambda: at.reads.tokens)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\x80"])
async def test_a_key_that_is_not_utf8(key: bytes) -> None:
    async with reader(FakeStore()) as at:
        ask(at, key)
        assert await refusal(at) == ("invalid_request", {"field": "key"})


async def test_a_key_that_is_too_long() -> None:
    async with reader(FakeStore(), max_key_bytes=10) as at:
        ask(at, b"k" * 10)
        assert (await answer(at)).error_code is None
        ask(at, b"k" * 11)
        assert await refusal(at) == ("too_large", {"limit": "max_key_bytes", "max": 10, "sent": 11})


async def test_a_node_without_data_to_read_says_so_and_goes_on_when_it_has_some() -> None:
    async with reader(FakeStore()) as at:
        at.reads.is_caching = False
        at.reads.read_error = Syncing("taking over; try again soon")
        ask(at, b"k1")
        assert await refusal(at) == ("syncing", {})
        at.reads.read_error = None
        ask(at, b"k1")
        assert await answer(at) == found(1)


async def test_a_node_that_is_no_primary_is_read() -> None:
    async with reader(FakeStore()) as at:
        at.refusal = "a later primary than p1 has reigned with term 4"
        ask(at, b"k1")
        assert await answer(at) == found(1)


async def test_a_damaged_record_is_internal_with_its_cause_as_in_rest() -> None:
    async with reader(FakeStore()) as at:
        at.reads.is_caching = False
        at.reads.read_error = RecordDamaged("a block is damaged")
        ask(at, b"k1")
        code, fields = await refusal(at)
        assert (code, fields["cause"]) == ("internal", "record_damaged")
        assert events_of(at.shared).names() == ["read_failed"]


async def test_a_bug_is_told_as_one_and_logged() -> None:
    async with reader(FakeStore()) as at:
        at.reads.is_caching = False
        at.reads.read_error = ZeroDivisionError("secret")
        ask(at, b"k1")
        told = await answer(at)
        assert told.error_code == "internal"
        assert "secret" not in (told.error_message or "")
        assert events_of(at.shared).names() == ["read_failed"]
        ask(at, b"k1")
        assert (await answer(at)).error_code == "internal"


@pytest.mark.parametrize("is_caching", [True, False])
async def test_a_value_of_a_time_with_larger_limits_does_not_end_the_session(is_caching: bool) -> None:
    limits = {"max_key_bytes": 100, "max_value_bytes": 1000, "max_batch_bytes": 2000, "max_batch_items": 10}
    async with reader(FakeStore(), **limits, max_frame_bytes=5000) as at:
        at.reads.is_caching = is_caching
        for key, size in ((b"fits", 5000 - 64), (b"large", 5000 - 63)):
            at.reads.records[key] = Record(Position(EPOCH, 2), 0, b"1" * size)
        ask(at, b"large")
        assert await refusal(at) == ("too_large", {"limit": "max_frame_bytes", "max": 5000 - 64, "sent": 5000 - 63})
        ask(at, b"fits")
        assert len((await answer(at)).value or b"") == 5000 - 64


# ---- the end ---------------------------------------------------------------------------------------------------------


async def test_a_half_closed_client_gets_its_answers_and_then_the_end() -> None:
    store = SlowStore()
    async with reader(store) as at:
        ask(at, b"k1", 1)
        ask(at, b"k2", 2, seq=4, wait_ms=1000)
        store.is_caching = False
        ask(at, b"k3", 3)
        at.peer.half_close()
        await until(lambda: store.misses and store.waits)
        store.end_misses()
        await until(lambda: not store.misses)
        store.is_caching = True
        store.waits[0].set_result(None)
        frames = await at.peer.rest()
        assert sorted(each.request_id for each in frames if isinstance(each, ReadResultFrame)) == [1, 2, 3]


async def test_reads_of_a_client_that_left_are_given_up() -> None:
    store = SlowStore()
    async with reader(store) as at:
        store.is_caching = False
        ask(at, b"k1", 1)
        ask(at, b"k2", 2, seq=4, wait_ms=HOUR_MS)
        await until(lambda: store.misses and store.waits)
        at.session.link_lost(at.link, "a test says so")
        await until(lambda: not store.misses and not store.waits)


async def test_a_stop_ends_reads_that_wait() -> None:
    store = SlowStore()
    async with reader(store) as at:
        ask(at, b"k1", 1, seq=4, wait_ms=HOUR_MS)
        await until(lambda: store.waits)
        store.waits[0].set_exception(NotCaughtUp("this node is stopping"))
        assert (await refusal(at))[0] == "not_caught_up"
        at.link.refuse("draining", "this node is stopping")
        assert (await at.peer.refused()).code == "draining"


# ---- what reads may cost ---------------------------------------------------------------------------------------------


async def test_misses_are_bounded_and_all_are_answered() -> None:
    store = SlowStore()
    async with reader(store) as at:
        store.is_caching = False
        count = 5 * MOST_MISSES
        at.peer.send(b"".join([encode(Read(number, b"k1", NO_EPOCH, 0, 0)) for number in range(count)]))
        answered = 0
        while answered < count:
            await until(lambda: store.misses)
            await turns(5)
            store.end_misses()
            await until(lambda: not any(ended.done() for _, ended in store.misses))
            answered += len([await answer(at) for _ in range(min(MOST_MISSES, count - answered))])
        assert store.most == MOST_MISSES


async def test_a_session_that_waits_for_misses_takes_no_more_frames() -> None:
    store = SlowStore()
    async with reader(store) as at:
        store.is_caching = False
        for number in range(MOST_MISSES + 1):
            ask(at, b"k1", number)
        at.peer.send(Status(1))
        await until(lambda: len(store.misses) == MOST_MISSES)
        await turns(10)
        assert at.statuses == 0
        store.misses[0][1].set_result(None)
        await answer(at)
        await at.peer.take(StatusResult)


async def test_waits_are_bounded_and_more_are_refused_at_once() -> None:
    store = SlowStore()
    async with reader(store) as at:
        for number in range(MOST_WAITS + 2):
            ask(at, b"k1", number, seq=4, wait_ms=1000)
        for number in (MOST_WAITS, MOST_WAITS + 1):
            refused = await answer(at)
            assert (refused.request_id, refused.error_code) == (number, "overloaded")
        ask(at, b"k1", 1)
        assert await answer(at) == found(1)
        store.waits[0].set_result(None)
        assert (await answer(at)).request_id == 0
        ask(at, b"k1", seq=4, wait_ms=1000)
        await until(lambda: len(store.waits) == MOST_WAITS)


async def test_waits_that_end_together_go_to_leveldb_a_few_at_a_time() -> None:
    store = SlowStore()
    async with reader(store) as at:
        store.is_caching = False
        count = 3 * MOST_MISSES
        for number in range(count):
            ask(at, b"k1", number, seq=4, wait_ms=1000)
        await until(lambda: len(store.waits) == count)
        for wait in store.waits:
            wait.set_result(None)
        for _ in range(3):
            await until(lambda: len(store.misses) == MOST_MISSES)
            store.end_misses()
            await turns(3)
        assert {(await answer(at)).request_id for _ in range(count)} == set(range(count))
        assert store.most == MOST_MISSES


@pytest.mark.parametrize("is_caching", [True, False])
async def test_a_client_that_takes_no_answers_costs_little_more_than_the_links_buffer(is_caching: bool) -> None:
    value = b"1" * 20_000
    async with reader(FakeStore(), kernel_bytes=4096) as at:
        at.reads.is_caching = is_caching
        at.reads.records[b"large"] = Record(Position(EPOCH, 2), 0, value)
        at.peer.pause()
        at.peer.send(*[Read(number, b"large", NO_EPOCH, 0, 0) for number in range(1000)])
        most = 0
        for _ in range(100):
            await turns(1)
            most = max(most, at.link.held_bytes)
        at_once = 1 if is_caching else MOST_MISSES
        assert HIGH_WATER_BYTES <= most < HIGH_WATER_BYTES + at_once * (len(value) + 100)
        at.peer.resume()
        answers = [await answer(at) for _ in range(1000)]
        assert {each.request_id for each in answers} == set(range(1000))
        assert all(each.value == value for each in answers)


async def test_a_reader_that_takes_nothing_for_thirty_seconds_is_dropped() -> None:
    loop = ManualLoop()
    async with reader(FakeStore(), loop=loop, kernel_bytes=4096) as at:
        at.reads.records[b"large"] = Record(Position(EPOCH, 2), 0, b"1" * 100_000)
        at.peer.pause()
        while at.link.held_bytes < HIGH_WATER_BYTES:
            ask(at, b"large")
            await turns(2)
        loop.advance(29)
        assert at.link.is_open
        loop.advance(31)
        assert not at.link.is_open


async def test_a_reader_that_sends_no_more_and_takes_nothing_is_dropped_too() -> None:
    loop, store = ManualLoop(), SlowStore()
    async with reader(store, loop=loop, kernel_bytes=4096) as at:
        store.is_caching = False
        store.records[b"large"] = Record(Position(EPOCH, 2), 0, b"1" * 500_000)
        at.peer.pause()
        at.peer.send(*[Read(number, b"large", NO_EPOCH, 0, 0) for number in range(40)])
        await until(lambda: len(store.misses) == 40)
        store.end_misses()
        await until(lambda: not store.misses and at.link.held_bytes > HIGH_WATER_BYTES)
        await turns()
        loop.advance(29)
        assert at.link.is_open
        loop.advance(31)
        assert not at.link.is_open


async def test_many_frames_at_once_leave_others_their_turn() -> None:
    """A chunk of thousands of small reads must not keep the loop for as long as they all take."""
    async with reader(FakeStore()) as at:
        most = 0
        told = at.session.frame_received
        count = 0

        def frame_received(*args: Any) -> None:
            nonlocal count
            count += 1
            told(*args)

        at.link.owner.on_frame = frame_received  # type: ignore[attr-defined]
        at.peer.send(b"".join([encode(Read(number, b"k1", NO_EPOCH, 0, 0)) for number in range(3000)]))
        before = 0
        while count < 3000:
            await asyncio.sleep(0)
            most = max(most, count - before)
            before = count
        assert most <= 2 * TURN_FRAMES
        answers = [await answer(at) for _ in range(3000)]
        assert [each.request_id for each in answers] == list(range(3000))
        at.peer.send(Ping(0, 0))
        assert isinstance(await at.peer.next(), Ping)
