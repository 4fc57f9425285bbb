"""Reads from LevelDB: what they share, what they may put into the cache, and what becomes of them when it fails."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kvnode.node.api import Item, KeyRange, ReadResult, Record
from kvnode.node.applied import AppliedSeq
from kvnode.node.errors import EngineClosed, EngineFailed, NotCaughtUp, RecordDamaged, Syncing
from kvnode.node.metrics import StoreCounters
from kvnode.node.reads import PointReads, RangeRead
from kvnode.node.storage.cache import LruCache
from kvnode.node.worker import Worker
from kvnode.protocol.types import Entry, Epoch, Op, Position, delete, put
from support.holds import Hold, turns
from support.memory_disk import MemoryDisk
from support.model_engine import ModelEngine, ModelEngineDisk

EPOCH = Epoch.of(2, 5)
DB = Path("/db")


class Rig:
    """Point reads on an engine, and the writer's part in three steps: apply, publish, tell the readers."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        disk = MemoryDisk()
        disk.make_directory(DB)
        self.engines = ModelEngineDisk(disk)
        self.engine = self.engines(DB, paranoid=True)
        self.cache = LruCache(1 << 20)
        self.applied = AppliedSeq(0, loop)
        self.worker = Worker("kvnode-test", loop)
        self.failures: list[EngineFailed] = []
        self.counters = StoreCounters()
        self.reads = PointReads(
            self.engine, self.cache, self.applied, self.worker, loop, self.failures.append, self.counters
        )
        self.seq = 0
        self.trips: list[list[bytes]] = []
        self.watch(self.engine)

    def watch(self, engine: ModelEngine) -> None:
        """Note the keys of every trip to an engine."""
        original = engine.read

        def read(keys: Sequence[bytes]) -> Any:
            self.trips.append(list(keys))
            return original(keys)

        engine.read = read  # type: ignore[method-assign]

    def apply(self, *ops: Op) -> None:
        """Write an entry to the engine; nobody may see it yet."""
        self.seq += 1
        self.engine.write([Entry(self.seq, EPOCH, 1000, ops)], synced=True)

    def publish(self, *ops: Op) -> None:
        """Publish what was applied, as the store does."""
        for op in ops:
            self.reads.forget(op.key)
        self.applied.advance(self.seq)

    def commit(self, *ops: Op) -> None:
        self.apply(*ops)
        self.publish(*ops)

    def ask(self, key: bytes) -> asyncio.Future[ReadResult]:
        return self.reads.read(key)

    def cached(self, key: bytes) -> bytes | None:
        record = self.cache.get(key)
        return None if record is None else record.value

    async def answers_heard(self) -> None:
        """Return when the thread is done with all it was asked, and the loop has heard."""
        await turns()
        await self.worker.run(lambda: None)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    rig.worker.stop()
    assert rig.worker.join(10)


def value(result: ReadResult) -> bytes | None:
    return None if result.record is None else result.record.value


# ---- point reads -----------------------------------------------------------------------------------------------


async def test_record_and_position(rig: Rig) -> None:
    rig.commit(put(b"a", b"1"))
    rig.commit(put(b"b", b"2", 77))
    assert await rig.ask(b"b") == ReadResult(Record(Position(EPOCH, 2), 77, b"2"), Position(EPOCH, 2))
    assert await rig.ask(b"missing") == ReadResult(None, Position(EPOCH, 2))


async def test_the_misses_of_one_turn_share_one_trip(rig: Rig) -> None:
    rig.commit(put(b"a", b"1"), put(b"b", b"2"))
    futures = [rig.ask(key) for key in (b"a", b"b", b"a", b"missing")]
    results = await asyncio.gather(*futures)
    assert [value(result) for result in results] == [b"1", b"2", b"1", None]
    assert rig.trips == [[b"a", b"b", b"missing"]]
    await rig.ask(b"b")
    assert rig.trips[1:] == [[b"b"]]


@pytest.mark.parametrize("is_lost", [False, True])
async def test_what_is_asked_while_the_thread_is_away_shares_the_next_trip(rig: Rig, is_lost: bool) -> None:
    rig.commit(put(b"a", b"1"), put(b"b", b"2"))
    with Hold(rig.engine, "read") as hold:
        first = rig.ask(b"a")
        await hold.reached()
        others = []
        for key in (b"b", b"missing", b"b"):
            others.append(rig.ask(key))
            await turns()
        rig.commit(put(b"b", b"3"))
        if is_lost:
            rig.engine.close(0)
        hold.release()
        if is_lost:
            for future in (first, *others):
                with pytest.raises(Syncing):
                    await future
        else:
            assert value(await first) == b"1"
            assert [value(await future) for future in others] == [b"3", None, b"3"]
    assert rig.trips == [[b"a"], [b"b", b"missing"]]


async def test_what_is_found_enters_the_cache_and_what_is_not_does_not(rig: Rig) -> None:
    rig.commit(put(b"a", b"1"))
    await asyncio.gather(rig.ask(b"a"), rig.ask(b"missing"))
    assert rig.cached(b"a") == b"1"
    assert rig.cache.entries == 1


async def test_an_answer_is_held_until_its_snapshot_is_published(rig: Rig) -> None:
    rig.commit(put(b"a", b"1"), put(b"other", b"1"))
    rig.apply(put(b"a", b"2"))
    seen, untouched = rig.ask(b"a"), rig.ask(b"other")
    await rig.answers_heard()
    assert (seen.done(), untouched.done()) == (False, False)
    assert rig.cache.entries == 0
    rig.publish(put(b"a", b"2"))
    assert value(await seen) == b"2"
    assert seen.result().applied == untouched.result().applied == Position(EPOCH, 2)
    # The commit took the registration away; what it put there itself is not this module's concern.
    assert rig.cached(b"a") is None
    assert rig.cached(b"other") == b"1"


@pytest.mark.parametrize("op", [put(b"a", b"new"), delete(b"a")], ids=["put", "delete"])
async def test_a_slow_reader_does_not_cache_what_is_old(rig: Rig, op: Op) -> None:
    rig.commit(put(b"a", b"old"), put(b"b", b"1"))
    with Hold(rig.engine, "read", after=True) as hold:
        reading = asyncio.gather(rig.ask(b"a"), rig.ask(b"b"))
        await hold.reached()
        rig.commit(op)
        hold.release()
        old, other = await reading
    assert value(old) == b"old"
    assert old.applied == other.applied == Position(EPOCH, 1)
    assert rig.cached(b"a") is None
    # Nobody wrote this one meanwhile.
    assert rig.cached(b"b") == b"1"


async def test_a_commit_between_asking_and_reading_is_seen(rig: Rig) -> None:
    rig.commit(put(b"a", b"old"))
    with Hold(rig.engine, "read") as hold:
        reading = rig.ask(b"a")
        await hold.reached()
        rig.commit(put(b"a", b"new"))
        hold.release()
        assert value(await reading) == b"new"
    assert rig.cached(b"a") in (None, b"new")


async def test_a_later_trip_may_fill_what_an_earlier_one_may_not(rig: Rig) -> None:
    rig.commit(put(b"a", b"old"))
    with Hold(rig.engine, "read", after=True) as hold:
        slow = rig.ask(b"a")
        await hold.reached()
        rig.commit(put(b"a", b"new"))
        later = rig.ask(b"a")
        await turns()
        hold.release()
        assert value(await slow) == b"old"
        assert rig.cached(b"a") != b"old"
        assert value(await later) == b"new"
    assert rig.cached(b"a") == b"new"


async def test_two_trips_on_the_way_and_a_commit_that_only_the_second_sees(rig: Rig) -> None:
    rig.commit(put(b"a", b"old"))
    with Hold(rig.engine, "read", after=True) as hold:
        first = rig.ask(b"a")
        await hold.reached()
        second = rig.ask(b"a")
        await turns()
        rig.apply(put(b"a", b"new"))
        hold.release()
        assert value(await first) == b"old"
        await rig.answers_heard()
        assert not second.done()
        # The second trip has taken over the registration, so the first one's find stayed out.
        assert rig.cached(b"a") is None
        rig.publish(put(b"a", b"new"))
        assert value(await second) == b"new"
    assert rig.cached(b"a") is None


async def test_what_an_engine_that_was_replaced_gives_is_not_cached(rig: Rig) -> None:
    rig.commit(put(b"a", b"old"))
    with Hold(rig.engine, "read", after=True) as hold:
        reading = rig.ask(b"a")
        await hold.reached()
        rig.reads.use(rig.engine)
        hold.release()
        assert value(await reading) == b"old"
    assert rig.cached(b"a") is None
    assert value(await rig.ask(b"a")) == b"old"
    assert rig.cached(b"a") == b"old"


async def test_a_damaged_key_fails_alone(rig: Rig) -> None:
    rig.commit(put(b"a", b"1"), put(b"bad", b"2"))
    rig.engine.damaged_keys.add(b"bad")
    bad, again, good = (rig.ask(key) for key in (b"bad", b"bad", b"a"))
    assert value(await good) == b"1"
    for future in (bad, again):
        with pytest.raises(RecordDamaged):
            await future
    assert rig.cached(b"bad") is None
    assert rig.failures == []


async def test_a_failed_engine_is_reported_once_a_trip(rig: Rig) -> None:
    failure = EngineFailed("the disk is gone")

    def read(keys: Sequence[bytes]) -> Any:
        raise failure

    rig.engine.read = read  # type: ignore[method-assign]
    futures = [rig.ask(key) for key in (b"a", b"b", b"a")]
    for future in futures:
        with pytest.raises(Syncing, match="rebuilding"):
            await future
    assert rig.failures == [failure]


async def test_a_closed_engine_is_no_failure(rig: Rig) -> None:
    assert rig.engine.close(0)
    with pytest.raises(Syncing, match="rebuilding"):
        await rig.ask(b"a")
    assert rig.failures == []


async def test_any_other_error_reaches_the_reader(rig: Rig) -> None:
    def read(keys: Sequence[bytes]) -> Any:
        raise ZeroDivisionError

    rig.engine.read = read  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        await rig.ask(b"a")


async def test_a_failed_trip_leaves_no_registration(rig: Rig) -> None:
    rig.commit(put(b"a", b"1"))
    original = rig.engine.read

    def read(keys: Sequence[bytes]) -> Any:
        rig.engine.read = original  # type: ignore[method-assign]
        raise EngineClosed("closed")

    rig.engine.read = read  # type: ignore[method-assign]
    with pytest.raises(Syncing):
        await rig.ask(b"a")
    assert rig.reads._fills == {}
    await rig.ask(b"a")
    assert rig.reads._fills == {}


async def test_a_reader_that_left_disturbs_nobody(rig: Rig) -> None:
    rig.commit(put(b"a", b"1"))
    left, stayed = rig.ask(b"a"), rig.ask(b"a")
    left.cancel()
    assert value(await stayed) == b"1"
    rig.engine.damaged_keys.add(b"a")
    left, stayed = rig.ask(b"a"), rig.ask(b"a")
    left.cancel()
    with pytest.raises(RecordDamaged):
        await stayed
    assert rig.engine.close(0)
    left, stayed = rig.ask(b"a"), rig.ask(b"a")
    left.cancel()
    with pytest.raises(Syncing):
        await stayed


async def test_a_held_answer_ends_with_the_waits(rig: Rig) -> None:
    rig.commit(put(b"a", b"1"))
    rig.apply(put(b"b", b"1"))
    held = rig.ask(b"a")
    await rig.answers_heard()
    rig.applied.end_waits(NotCaughtUp("this node is stopping"))
    with pytest.raises(NotCaughtUp):
        await held
    assert rig.cached(b"a") is None


# ---- range reads -----------------------------------------------------------------------------------------------


def encode(items: Sequence[Item]) -> bytes:
    return b",".join(key + b"=" + text for key, text in items)


def open_scans(rig: Rig) -> list[Any]:
    """The scans of the rig's engine from now on; each leaves the list when it is closed."""
    scans: list[Any] = []
    begin = rig.engine.scan

    def scan(wanted: KeyRange) -> Any:
        made = begin(wanted)
        close = made.close

        def closed() -> None:
            if made in scans:
                scans.remove(made)
            close()

        made.close = closed  # type: ignore[method-assign]
        scans.append(made)
        return made

    rig.engine.scan = scan  # type: ignore[method-assign]
    return scans


async def chunks(stream: RangeRead) -> list[bytes]:
    return [chunk async for chunk in stream]


def new_range(rig: Rig, encoder: Any = encode, **wanted: Any) -> RangeRead:
    return RangeRead(rig.engine, KeyRange(**wanted), encoder, rig.worker, rig.counters)


async def test_a_range_in_chunks(rig: Rig) -> None:
    rig.commit(*(put(b"%04d" % number, b"1") for number in range(1200)))
    scans = open_scans(rig)
    stream = new_range(rig, last=b"1198")
    await stream.open()
    assert stream.applied == Position(EPOCH, 1)
    found = await chunks(stream)
    assert [chunk.count(b"=") for chunk in found] == [512, 512, 175]
    assert b",".join(found) == b",".join(b"%04d=1" % number for number in range(1199))
    assert (stream.count, stream.next_key) == (1199, None)
    assert await chunks(stream) == []
    await stream.aclose()
    await stream.aclose()
    assert scans == []


async def test_the_snapshot_is_held_until_the_last_chunk_is_read(rig: Rig) -> None:
    rig.commit(*(put(b"%04d" % number, b"1") for number in range(513)))
    scans = open_scans(rig)
    stream = new_range(rig)
    await stream.open()
    assert (await anext(stream)).count(b"=") == 512
    assert len(scans) == 1
    assert await anext(stream) == b"0512=1"
    assert scans == []
    await stream.aclose()


async def test_a_range_that_is_not_read_to_its_end_is_closed(rig: Rig) -> None:
    rig.commit(*(put(b"%04d" % number, b"1") for number in range(513)))
    scans = open_scans(rig)
    stream = new_range(rig)
    await stream.open()
    await anext(stream)
    await stream.aclose()
    assert scans == []
    assert await chunks(stream) == []


async def test_an_empty_range(rig: Rig) -> None:
    rig.commit(put(b"a", b"1"))
    scans = open_scans(rig)
    stream = new_range(rig, first=b"b")
    await stream.open()
    assert await chunks(stream) == []
    assert (stream.count, stream.next_key, rig.counters.range_chunks) == (0, None, 0)
    await stream.aclose()
    assert scans == []


async def test_chunks_are_bounded_in_bytes(rig: Rig) -> None:
    rig.commit(*(put(b"%d" % number, b"x" * 200_000) for number in range(6)))
    stream = new_range(rig)
    await stream.open()
    assert [chunk.count(b"=") for chunk in await chunks(stream)] == [2, 2, 2]
    await stream.aclose()


async def test_the_first_key_left_out(rig: Rig) -> None:
    rig.commit(*(put(b"%d" % number, b"1") for number in range(6)))
    stream = new_range(rig, limit=2)
    await stream.open()
    assert await chunks(stream) == [b"0=1,1=1"]
    assert (stream.count, stream.next_key) == (2, b"2")
    await stream.aclose()


async def test_a_range_shows_its_snapshot_only(rig: Rig) -> None:
    rig.commit(put(b"a", b"1"), put(b"b", b"1"))
    stream = new_range(rig)
    await stream.open()
    rig.commit(put(b"a", b"2"), put(b"c", b"2"))
    assert await chunks(stream) == [b"a=1,b=1"]
    assert stream.applied.seq == 1
    await stream.aclose()


async def test_encoding_happens_on_the_thread(rig: Rig) -> None:
    rig.commit(put(b"a", b"1"))
    ran_on: list[int] = []

    def encoder(items: Sequence[Item]) -> bytes:
        ran_on.append(threading.get_ident())
        return b""

    stream = new_range(rig, encoder)
    await stream.open()
    assert await chunks(stream) == [b""]
    assert ran_on
    assert threading.get_ident() not in ran_on
    await stream.aclose()


async def test_damage_ends_a_range_with_an_error_and_no_more(rig: Rig) -> None:
    rig.commit(*(put(b"%04d" % number, b"1") for number in range(1200)))
    scans = open_scans(rig)
    rig.engine.damaged_keys.add(b"0600")
    stream = new_range(rig)
    await stream.open()
    assert (await anext(stream)).count(b"=") == 512
    for _ in range(2):
        with pytest.raises(RecordDamaged):
            await anext(stream)
    assert stream.count == 512
    await stream.aclose()
    assert scans == []


async def test_closing_the_engine_ends_a_range_with_an_error(rig: Rig) -> None:
    rig.commit(put(b"a", b"1"))
    stream = new_range(rig)
    await stream.open()
    assert rig.engine.close(0)
    with pytest.raises(Syncing):
        await anext(stream)
    await stream.aclose()


async def test_an_encoder_that_fails_fails_the_range(rig: Rig) -> None:
    rig.commit(put(b"a", b"1"))

    def encoder(items: Sequence[Item]) -> bytes:
        raise ZeroDivisionError

    stream = new_range(rig, encoder)
    await stream.open()
    with pytest.raises(ZeroDivisionError):
        await anext(stream)
    await stream.aclose()


async def test_closing_while_a_chunk_is_read_waits_for_it(rig: Rig) -> None:
    rig.commit(put(b"a", b"1"))
    scans = open_scans(rig)
    stream = new_range(rig)
    await stream.open()
    with Hold(scans[0], "next_items") as hold:
        reading = asyncio.ensure_future(anext(stream))
        await hold.reached()
        reading.cancel()
        closing = asyncio.ensure_future(stream.aclose())
        await turns()
        assert len(scans) == 1
        hold.release()
        await closing
        assert scans == []
    assert reading.cancelled()


async def test_a_range_given_up_while_it_opens_leaves_no_snapshot(rig: Rig) -> None:
    scans = open_scans(rig)
    stream = new_range(rig)
    with Hold(rig.engine, "scan", after=True) as hold:
        opening = asyncio.ensure_future(stream.open())
        await hold.reached()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        hold.release()
        await stream.aclose()
    assert scans == []


async def test_a_range_that_was_never_opened_can_be_closed(rig: Rig) -> None:
    await new_range(rig).aclose()
