"""The store when the disk or LevelDB fails: who is told what, what remains, and how it goes on."""

import asyncio
import errno
from typing import Any

import pytest

from kvnode.node import store as store_module
from kvnode.node.api import WriteResult
from kvnode.node.errors import (
    Draining,
    EngineFailed,
    LogDamaged,
    LogFailed,
    OutcomeUnknown,
    StorageFull,
    Syncing,
)
from kvnode.node.storage.segment import read_records
from kvnode.protocol.types import Position, delete
from support.crash_plan import KEPT
from support.holds import Hold, turns
from support.running_node import RunningNode, running
from support.simulated_node import LAYOUT, Machine

BIG = b'"%s"' % (b"x" * 1500)


@pytest.fixture(autouse=True)
def retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts to reopen LevelDB follow each other at once."""
    monkeypatch.setattr(store_module, "_RETRY_FIRST_S", 0.0005)
    monkeypatch.setattr(store_module, "_RETRY_LAST_S", 0.001)


async def outcomes(*futures: asyncio.Future[WriteResult]) -> list[type]:
    """The kinds of the writes' answers."""
    return [type(answer) for answer in await asyncio.gather(*futures, return_exceptions=True)]


async def fill_a_segment(node: RunningNode) -> None:
    """Write until a segment is closed."""
    before = node.store.wal.segments[-1].first_seq
    while node.store.wal.segments[-1].first_seq == before:
        await node.put(b"big", BIG)


def raising(error: BaseException) -> Any:
    """A stand-in for a method that raises."""

    def method(*_: object, **__: object) -> None:
        raise error

    return method


# ---- the log has no room ---------------------------------------------------------------------------------------


async def test_a_full_disk_refuses_writes_and_serves_reads_until_there_is_room() -> None:
    machine = Machine.new()
    async with running(machine) as node:
        await node.put(b"a")
        machine.disk.free_bytes = 0
        await asyncio.sleep(0)
        refused = [node.put(b"big", BIG) for _ in range(4)]
        answers = await asyncio.gather(*refused, return_exceptions=True)
        assert {type(answer) for answer in answers} == {StorageFull}
        assert node.store.wal.last_seq == node.store.applied.seq == 1
        assert node.store.queued_bytes == 0
        assert node.store.serving
        assert await node.get(b"a") == b"1"
        assert await node.scan() == {b"a": b"1"}
        assert node.store.counters.commit_failures == {"disk_full": 1, "engine_failed": 0, "log_failed": 0}
        # Small ones still fit into what was reserved; no seq was used up.
        machine.disk.free_bytes = None
        assert [(await node.put(b"b")).position.seq, (await node.put(b"big", BIG)).position.seq] == [2, 3]
        assert node.failures == []
    async with running(machine.after_crash(KEPT)) as node:
        assert await node.scan() == {b"a": b"1", b"b": b"1", b"big": BIG}


async def test_each_group_tries_the_full_disk_for_itself() -> None:
    async with running() as node:
        node.machine.plan.fail(("write_at", "*.wal"), errno.ENOSPC, partial=0.5)
        with Hold(node.store.wal, "append") as hold:
            first, no_op = node.put(b"a"), node.store.write([delete(b"x")])
            await hold.reached()
            second = node.put(b"b")
            hold.release()
            assert await outcomes(first, no_op, second) == [StorageFull, StorageFull, WriteResult]
        assert second.result().position.seq == 1
        assert await node.scan() == {b"b": b"1"}


async def test_a_checkpoint_without_room_leaves_the_old_one() -> None:
    async with running(wal_keep_bytes=0) as node:
        node.machine.plan.fail(("create", "*/checkpoint.tmp"), errno.ENOSPC)
        await fill_a_segment(node)
        await node.settle()
        assert (node.store.checkpoint_seq, node.store.counters.checkpoints) == (0, 0)
        assert "checkpoint_failed" in node.events.names()
        assert node.store.serving
        await fill_a_segment(node)
        await node.settle()
        assert node.store.checkpoint_seq > 0
        assert node.failures == []


# ---- the log fails ---------------------------------------------------------------------------------------------


async def test_a_failed_log_leaves_everybody_unsure_and_stops_the_node_once() -> None:
    async with running() as node:
        await node.put(b"a")
        node.machine.plan.fail(("sync", "*.wal"))
        with Hold(node.store.wal, "append") as hold:
            in_flight, left = node.put(b"b"), node.put(b"left")
            await hold.reached()
            queued, no_op = node.put(b"c"), node.store.write([delete(b"x")])
            left.cancel()
            hold.release()
            assert await outcomes(in_flight, queued, no_op) == [OutcomeUnknown] * 3
        assert [type(error) for error in node.failures] == [LogFailed]
        assert not node.store.serving
        assert node.store.queued_bytes == 0
        with pytest.raises(Draining):
            node.put(b"d")
        await node.store.drain()
        # Reads go on until the process ends; what was not published is not shown.
        assert await node.get(b"a") == b"1"
        assert await node.scan() == {b"a": b"1"}
        assert node.store.applied.seq == 1
        assert not await node.stop()
        assert node.opened.files.load_clean_stop() is None


async def test_a_log_that_fails_in_a_checkpoint_spares_nobody() -> None:
    """The disk lost what a group had just written; the group's own sync would succeed."""
    async with running() as node:
        await fill_a_segment(node)
        await node.settle()
        first = node.store.wal.last_seq + 1
        with Hold(node.engine, "flush", after=True) as flushed:
            await fill_a_segment(node)
            await flushed.reached()
            # The group has written its bytes and not synced them yet.
            with Hold(node.store.wal._file, "write_at", after=True) as appending:
                in_flight = node.put(b"b")
                await appending.reached()
                queued = node.put(b"c")
                node.machine.plan.fail(("sync", "*.wal"))
                flushed.release()
                await node.maintained()
                await turns()
                assert [type(error) for error in node.failures] == [LogFailed]
                assert not in_flight.done()
                appending.release()
                assert await outcomes(in_flight, queued) == [OutcomeUnknown] * 2
        assert [type(error) for error in node.failures] == [LogFailed]
        assert node.store.applied.seq >= first
        await node.store.drain()


async def test_an_error_nobody_expected_is_treated_as_a_failed_log() -> None:
    async with running() as node:
        node.store.wal.append = raising(ZeroDivisionError())  # type: ignore[method-assign]
        assert await outcomes(node.put(b"a"), node.put(b"b")) == [OutcomeUnknown] * 2
        assert [type(error) for error in node.failures] == [ZeroDivisionError]


async def test_a_group_in_flight_is_waited_for_also_when_the_node_has_failed() -> None:
    """Closing the log under a group that writes to it could cut off what the group is then answered for."""
    async with running() as node:
        node.opened.files.save_checkpoint = raising(ZeroDivisionError())  # type: ignore[method-assign]
        with Hold(node.engine, "flush") as flushing:
            await fill_a_segment(node)
            await flushing.reached()
            with Hold(node.store.wal, "append") as appending:
                in_flight = node.put(b"b")
                await appending.reached()
                node.store.stop_writes()
                draining = asyncio.ensure_future(node.store.drain())
                flushing.release()
                await node.maintained()
                await turns()
                assert [type(error) for error in node.failures] == [ZeroDivisionError]
                assert not draining.done()
                assert not await node.store.close(0.1)
                appending.release()
                assert await outcomes(in_flight) == [WriteResult]
                await draining
        assert len(node.failures) == 1


# ---- LevelDB fails ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partial", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
async def test_leveldb_fails_after_the_log_was_written(error: int, partial: float) -> None:
    async with running() as node:
        await node.put(b"a", b"old")
        node.machine.plan.fail(("engine_write", "*"), error, partial=partial)
        with Hold(node.engine, "write") as hold:
            in_flight, no_op = node.put(b"a", b"new"), node.store.write([delete(b"x")])
            await hold.reached()
            queued = node.put(b"c")
            hold.release()
            refused = StorageFull if error == errno.ENOSPC else Syncing
            assert await outcomes(in_flight, no_op, queued) == [OutcomeUnknown, OutcomeUnknown, refused]
        failed = node.engine
        # What is in the log happens, once LevelDB is back; it is not published before.
        assert node.store.applied.seq == 1
        assert not node.store.serving
        with pytest.raises(refused):
            node.put(b"d")
        # Neither are reads answered, from the cache no more than from LevelDB.
        assert node.store.cached(b"a") is None
        with pytest.raises(Syncing):
            await node.store.read(b"a")
        with pytest.raises(Syncing):
            await node.open_range()
        await node.settle()
        assert node.store.serving
        assert failed.is_closed
        assert node.store.applied.seq == 2
        assert await node.get(b"a") == b"new"
        assert (await node.put(b"c")).position == Position(node.store.epoch, 3)
        assert await node.scan() == {b"a": b"new", b"c": b"1"}
        counters = node.store.counters
        assert (counters.engine_rebuilds, counters.entries) == (1, 3)
        assert counters.commit_failures == {"disk_full": 0, "engine_failed": 1, "log_failed": 0}
        assert node.failures == []
        assert await node.stop()


async def test_leveldb_fails_while_a_write_is_judged() -> None:
    async with running() as node:
        await node.put(b"a")
        node.engine.contains = raising(EngineFailed("gone"))  # type: ignore[method-assign]
        assert await outcomes(node.put(b"b"), node.store.write([delete(b"a")])) == [Syncing] * 2
        await node.settle()
        assert node.store.wal.last_seq == 1
        assert [(await node.store.write([delete(b"a")])).position.seq, (await node.put(b"b")).position.seq] == [2, 3]
        assert await node.scan() == {b"b": b"1"}


@pytest.mark.parametrize("found_by", ["read", "range", "checkpoint"])
async def test_leveldb_fails_while_a_group_is_in_flight(found_by: str) -> None:
    """The group goes on and is published; then LevelDB is reopened."""
    async with running() as node:
        await node.put(b"a")
        node.store.cache.clear()
        if found_by == "checkpoint":
            node.machine.plan.fail(("engine_flush", "*"))
            flushing = Hold(node.engine, "flush")
            await fill_a_segment(node)
            await flushing.reached()
        before = node.store.wal.last_seq
        with Hold(node.engine, "write") as hold:
            in_flight = node.put(b"b")
            await hold.reached()
            queued = node.put(b"c")
            if found_by == "range":
                await node.fail_the_engine_outside_of_a_commit()
            elif found_by == "read":
                node.engine.read = raising(EngineFailed("gone"))  # type: ignore[method-assign]
                with pytest.raises(Syncing):
                    await node.store.read(b"a")
            else:
                flushing.release()
                await node.maintained()
                await turns()
                # Such an engine takes no more writes; this one is to show that the group's outcome counts.
                node.engine._failed = False
            assert await outcomes(queued) == [Syncing]
            assert not in_flight.done()
            await turns(20)
            assert not node.engine.is_closed
            hold.release()
            assert (await in_flight).position.seq == before + 1
        await node.settle()
        assert (node.store.serving, node.store.counters.engine_rebuilds, node.failures) == (True, 1, [])
        assert await node.get(b"b") == b"1"
        assert (await node.put(b"c")).position.seq == before + 2


async def test_leveldb_fails_twice_at_once() -> None:
    """A reader finds it, then the group in flight does."""
    async with running() as node:
        await node.put(b"a", b"old")
        node.machine.plan.fail(("engine_write", "*"))
        with Hold(node.engine, "write") as hold:
            in_flight = node.put(b"a", b"new")
            await hold.reached()
            await node.fail_the_engine_outside_of_a_commit()
            hold.release()
            assert await outcomes(in_flight) == [OutcomeUnknown]
        await node.settle()
        assert (node.store.serving, node.store.counters.engine_rebuilds, node.failures) == (True, 1, [])
        assert await node.get(b"a") == b"new"


async def test_a_reader_from_before_the_failure_does_not_cache_what_is_old() -> None:
    async with running() as node:
        await node.put(b"a", b"old")
        node.store.cache.clear()
        node.machine.plan.fail(("engine_write", "*"))
        with Hold(node.engine, "read", after=True) as reading, Hold(node.engine, "write") as writing:
            slow = asyncio.ensure_future(node.store.read(b"a"))
            await reading.reached()
            in_flight = node.put(b"a", b"new")
            await writing.reached()
            await node.fail_the_engine_outside_of_a_commit()
            # It is answered while the group, which will not be published by itself, is still in flight.
            reading.release()
            result = await slow
            assert result.record is not None
            assert (result.record.value, result.applied.seq) == (b"old", 1)
            writing.release()
            assert await outcomes(in_flight) == [OutcomeUnknown]
        await node.settle()
        assert node.store.applied.seq == 2
        assert await node.get(b"a") == b"new"


async def test_a_reader_that_saw_what_was_not_published_is_answered_after_the_rebuilding() -> None:
    async with running() as node:
        await node.put(b"a", b"old")
        node.store.cache.clear()
        # Visible in the failing engine, and lost when it is closed.
        node.machine.plan.fail(("engine_write", "*"), partial=0.5)
        with Hold(node.engine, "read") as reading, Hold(node.engine, "close") as closing:
            seen = asyncio.ensure_future(node.store.read(b"a"))
            await reading.reached()
            assert await outcomes(node.put(b"a", b"new")) == [OutcomeUnknown]
            await closing.reached()
            reading.release()
            await node.reads_answered()
            await turns()
            assert (seen.done(), node.store.applied.seq) == (False, 1)
            closing.release()
            result = await seen
        assert result.record is not None
        assert (result.record.value, result.applied.seq) == (b"new", 2)
        assert node.store.applied.seq == 2
        await node.settle()
        assert await node.get(b"a") == b"new"


async def test_ranges_under_way_break_when_leveldb_is_reopened() -> None:
    async with running() as node:
        await node.put(b"a")
        stream = await node.open_range()
        node.machine.plan.fail(("engine_write", "*"))
        assert await outcomes(node.put(b"b")) == [OutcomeUnknown]
        await node.settle()
        with pytest.raises(Syncing):
            await anext(aiter(stream))
        await stream.aclose()


async def test_without_room_leveldb_is_tried_again_until_there_is_some() -> None:
    async with running() as node:
        await node.put(b"a")
        plan = node.machine.plan
        plan.fail(("engine_write", "*"), errno.ENOSPC)
        opening = plan.fail(("engine_open", "*"), errno.ENOSPC, sticky=True)
        assert await outcomes(node.put(b"b")) == [OutcomeUnknown]
        while opening.hits < 4:
            await node.maintained()
        assert node.events.names().count("engine_waits_for_room") >= 3
        with pytest.raises(StorageFull):
            node.put(b"c")
        with pytest.raises(Syncing):
            await node.store.read(b"a")
        assert node.failures == []
        plan.failures.remove(opening)
        # There is room to open, but not to replay.
        replaying = plan.fail(("engine_write", "*"), errno.ENOSPC, sticky=True)
        while replaying.hits < 2:
            await node.maintained()
        plan.failures.remove(replaying)
        await node.settle()
        assert await node.scan() == {b"a": b"1", b"b": b"1"}
        assert (await node.put(b"c")).position.seq == 3
        assert node.store.counters.engine_rebuilds == 1


async def test_a_disk_that_is_full_no_more_but_broken_ends_the_node() -> None:
    async with running() as node:
        plan = node.machine.plan
        plan.fail(("engine_write", "*"), errno.ENOSPC)
        plan.fail(("engine_open", "*"), errno.ENOSPC)
        plan.fail(("engine_open", "*"), errno.EIO)
        assert await outcomes(node.put(b"b")) == [OutcomeUnknown]
        await node.settle()
        assert [type(error) for error in node.failures] == [EngineFailed]
        with pytest.raises(Draining):
            node.put(b"c")
        await node.store.drain()
        assert not await node.stop()


@pytest.mark.parametrize("damage", ["engine", "log", "stuck reader", "close"])
async def test_leveldb_cannot_be_brought_back(damage: str) -> None:
    async with running() as node:
        await node.put(b"a")
        plan = node.machine.plan
        kind: type[BaseException] = EngineFailed
        plan.fail(("engine_write", "*"))
        if damage == "engine":
            plan.fail(("engine_open", "*"))
        elif damage == "log":
            kind = LogDamaged
            path = next(path for path in node.machine.disk.snapshot() if path.suffix == ".wal")
            content = bytearray(node.machine.disk.snapshot()[path])
            content[60] ^= 1
            node.machine.disk.put_file(path, bytes(content))
        elif damage == "stuck reader":
            node.engine.stuck = True
        else:
            plan.fail(("engine_close", "*"))
        assert await outcomes(node.put(b"b")) == [OutcomeUnknown]
        await node.settle()
        assert [type(error) for error in node.failures] == [kind]
        assert not node.store.serving
        with pytest.raises(Draining):
            node.put(b"c")
        await node.store.drain()


async def test_leveldb_that_comes_back_without_what_a_checkpoint_covers_ends_the_node() -> None:
    async with running() as node:
        await node.put(b"a")
        await fill_a_segment(node)
        await node.settle()
        assert node.store.checkpoint_seq > 0
        node.machine.engines.lose_everything(LAYOUT.db)
        await node.fail_the_engine_outside_of_a_commit()
        await node.settle()
        assert [type(error) for error in node.failures] == [EngineFailed]
        assert "was durable up to seq" in str(node.failures[0])
        assert not node.store.serving
        await node.store.drain()


async def test_a_log_whose_end_is_gone_when_it_is_to_be_replayed_ends_the_node() -> None:
    async with running() as node:
        await node.put(b"a")
        await node.put(b"b")
        (segment,) = node.store.wal.segments
        path = LAYOUT.wal / segment.name
        content = node.machine.disk.snapshot()[path]
        last = list(read_records(content, 1))[-1]
        node.machine.disk.put_file(path, content[: last.offset].ljust(len(content), b"\0"))
        await node.fail_the_engine_outside_of_a_commit()
        await node.settle()
        (failure,) = node.failures
        assert isinstance(failure, LogDamaged)
        assert (failure.path, failure.offset, failure.seq) == (path, last.offset, 2)
        await node.store.drain()


async def test_a_log_that_fails_while_leveldb_waits_to_be_reopened_ends_the_node() -> None:
    async with running() as node:
        await node.put(b"a")
        with Hold(node.store.wal, "append") as hold:
            in_flight = node.put(b"b")
            await hold.reached()
            await node.fail_the_engine_outside_of_a_commit()
            node.machine.plan.fail(("sync", "*.wal"))
            hold.release()
            assert await outcomes(in_flight) == [OutcomeUnknown]
        await node.settle()
        assert [type(error) for error in node.failures] == [LogFailed]
        assert not node.store.serving
        with pytest.raises(Draining):
            node.put(b"c")
        await node.store.drain()


async def test_a_full_log_while_leveldb_waits_to_be_reopened() -> None:
    async with running() as node:
        await node.put(b"a")
        with Hold(node.store.wal, "append") as hold:
            in_flight = node.put(b"b")
            await hold.reached()
            await node.fail_the_engine_outside_of_a_commit()
            node.machine.plan.fail(("write_at", "*.wal"), errno.ENOSPC)
            hold.release()
            assert await outcomes(in_flight) == [StorageFull]
        await node.settle()
        assert node.store.serving
        assert (await node.put(b"b")).position.seq == 2
        assert node.failures == []


async def test_time_does_not_go_back_when_leveldb_is_reopened() -> None:
    async with running() as node:
        clock = node.store._clock
        clock.now_ms = lambda: 9_000  # type: ignore[method-assign]
        await node.put(b"a")
        node.machine.plan.fail(("engine_write", "*"))
        clock.now_ms = lambda: 9_500  # type: ignore[method-assign]
        assert await outcomes(node.put(b"b")) == [OutcomeUnknown]
        await node.settle()
        clock.now_ms = lambda: 1_000  # type: ignore[method-assign]
        await node.put(b"c")
        assert node.engine.applied.time_ms == 9_500


async def test_the_next_write_after_a_failure_is_a_new_entry() -> None:
    """What was answered as unknown took its seq; nothing is overwritten, nothing doubled."""
    machine = Machine.new()
    async with running(machine) as node:
        for number in range(3):
            machine.plan.fail(("engine_write", "*"), partial=number / 2)
            assert await outcomes(node.put(b"f%d" % number)) == [OutcomeUnknown]
            await node.settle()
            assert (await node.put(b"s%d" % number)).position.seq == 2 * number + 2
        assert node.store.counters.engine_rebuilds == 3
    async with running(machine.after_crash(KEPT)) as node:
        assert node.opened.storage.wal.last_seq == 6
        assert await node.scan() == {b"%c%d" % (kind, number): b"1" for kind in b"fs" for number in range(3)}
