"""Stopping the store: what a clean stop leaves, and that nothing keeps a node from ending."""

import asyncio
import errno

import pytest

from kvnode.node import store as store_module
from kvnode.node.api import ReadToken
from kvnode.node.errors import Draining, NotCaughtUp, OutcomeUnknown, StorageFull, Syncing
from kvnode.node.storage.datadir import CleanStop
from kvnode.node.storage.segment import HEADER_BYTES
from support.crash_plan import DROPPED, KEPT
from support.holds import Hold, turns
from support.running_node import RunningNode, running
from support.simulated_node import LAYOUT, Machine

BIG = b'"%s"' % (b"x" * 1500)


@pytest.fixture(autouse=True)
def retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts to reopen LevelDB follow each other at once."""
    monkeypatch.setattr(store_module, "_RETRY_FIRST_S", 0.0005)
    monkeypatch.setattr(store_module, "_RETRY_LAST_S", 0.001)


def marker(node: RunningNode) -> CleanStop | None:
    """The clean-stop marker."""
    return node.opened.files.load_clean_stop()


async def test_a_clean_stop_leaves_a_marker_and_nothing_to_replay() -> None:
    machine = Machine.new()
    async with running(machine) as node:
        await asyncio.gather(node.put(b"a"), node.put(b"b", BIG))
        assert await node.stop()
        tail = node.store.wal.segments[-1]
        assert marker(node) == CleanStop(2, tail.name, tail.end)
        assert len(machine.disk.snapshot()[LAYOUT.wal / tail.name]) == tail.end
        assert node.opened.files.load_checkpoint() == node.store.checkpoint_seq == 2
        assert machine.disk.open_handles() == []
        assert machine.disk.unsynced_paths() == []
        assert node.engine.is_closed
    for survival in (KEPT, DROPPED):
        async with running(machine.after_crash(survival)) as node:
            assert (node.opened.storage.clean, node.opened.storage.replayed) == (True, 0)
            # The marker speaks for one start only.
            assert marker(node) is None
            assert await node.scan() == {b"a": b"1", b"b": BIG}


async def test_a_node_that_wrote_nothing_stops_cleanly() -> None:
    machine = Machine.new()
    for _ in range(3):
        async with running(machine) as node:
            assert await node.stop()
            assert marker(node) == CleanStop(0, "00000000000000000001.wal", HEADER_BYTES)
        machine = machine.after_crash(KEPT)


async def test_what_is_queued_is_committed_and_new_writes_are_refused() -> None:
    machine = Machine.new()
    async with running(machine) as node:
        with Hold(node.store.wal, "append") as hold:
            in_flight = node.put(b"a")
            await hold.reached()
            queued = node.put(b"b")
            node.store.stop_writes()
            with pytest.raises(Draining):
                node.put(b"c")
            assert not node.store.serving
            draining = asyncio.ensure_future(node.store.drain())
            await turns()
            assert not draining.done()
            hold.release()
            await draining
            assert (in_flight.result().position.seq, queued.result().position.seq) == (1, 2)
        # Reads go on until the end.
        assert await node.get(b"b") == b"1"
        assert await node.scan() == {b"a": b"1", b"b": b"1"}
        assert await node.stop()
    async with running(machine.after_crash(DROPPED)) as node:
        assert await node.scan() == {b"a": b"1", b"b": b"1"}


async def test_a_write_of_the_turn_in_which_the_stop_comes_is_committed() -> None:
    async with running() as node:
        written = node.put(b"a")
        assert await node.stop()
        assert written.result().position.seq == 1


async def test_waits_end_when_they_are_told_to() -> None:
    async with running() as node:
        waiting = asyncio.ensure_future(node.store.wait_applied(ReadToken(5, None, 60)))
        await turns()
        node.store.stop_writes()
        await node.store.drain()
        assert not waiting.done()
        node.store.end_waits()
        with pytest.raises(NotCaughtUp, match="stopping"):
            await waiting
        assert await node.stop()


async def test_a_running_checkpoint_is_finished_first() -> None:
    machine = Machine.new()
    async with running(machine) as node:
        with Hold(node.engine, "flush") as hold:
            while not hold.is_reached:
                await node.put(b"big", BIG)
            stopping = asyncio.ensure_future(node.stop())
            await turns(20)
            assert not node.engine.is_closed
            hold.release()
            assert await stopping
    async with running(machine.after_crash(DROPPED)) as node:
        assert node.opened.storage.clean


# ---- stops that are not clean ----------------------------------------------------------------------------------


async def expect_unclean(machine: Machine, records: dict[bytes, bytes]) -> None:
    """The next start recovers, and finds these."""
    async with running(machine.after_crash(DROPPED)) as node:
        assert not node.opened.storage.clean
        assert await node.scan() == records


async def test_a_commit_that_is_stuck_in_the_disk_keeps_nothing_from_ending() -> None:
    machine = Machine.new()
    async with running(machine) as node:
        await node.put(b"a")
        with Hold(node.store.wal, "append") as hold:
            stuck = node.put(b"b")
            await hold.reached()
            node.store.stop_writes()
            assert not await node.store.close(60)
            assert "stop_incomplete" in node.events.names()
            assert (node.engine.is_closed, marker(node)) == (False, None)
            await expect_unclean(machine, {b"a": b"1"})
            hold.release()
            # It was not cut off: what comes back from the disk after all is answered.
            assert (await stuck).position.seq == 2


async def test_a_checkpoint_that_is_stuck_keeps_nothing_from_ending() -> None:
    machine = Machine.new()
    async with running(machine) as node:
        await node.put(b"a")
        with Hold(node.engine, "flush") as hold:
            node.store.stop_writes()
            await node.store.drain()
            assert not await node.store.close(0.01)
            assert hold.is_reached
            assert (node.engine.is_closed, marker(node)) == (False, None)
            await expect_unclean(machine, {b"a": b"1"})
            # That `close` gave up is final for the caller, but the thread may come back.
            hold.release()
            assert node.store._maintenance.join(10)


async def test_a_reader_that_is_stuck_keeps_nothing_from_ending() -> None:
    machine = Machine.new()
    async with running(machine) as node:
        await node.put(b"a")
        node.engine.stuck = True
        node.store.stop_writes()
        await node.store.drain()
        assert not await node.store.close(60)
        assert (node.engine.is_closed, marker(node)) == (False, None)
        await expect_unclean(machine, {b"a": b"1"})


@pytest.mark.parametrize(
    ("operation", "path", "error"),
    [
        ("engine_flush", "*", errno.EIO),
        ("engine_flush", "*", errno.ENOSPC),
        ("sync", "*.wal", errno.EIO),
        ("create", "*/checkpoint.tmp", errno.ENOSPC),
        ("create", "*/clean.tmp", errno.ENOSPC),
        ("sync", "*/clean.tmp", errno.EIO),
    ],
)
async def test_a_disk_that_fails_during_the_stop(operation: str, path: str, error: int) -> None:
    machine = Machine.new()
    async with running(machine) as node:
        await node.put(b"a")
        node.store.stop_writes()
        await node.store.drain()
        machine.plan.fail((operation, path), error)
        assert not await node.store.close(60)
        assert "stop_incomplete" in node.events.names()
        assert marker(node) is None
        await expect_unclean(machine, {b"a": b"1"})


# ---- stopping while LevelDB is being rebuilt -------------------------------------------------------------------


@pytest.mark.parametrize("found_by", ["writer", "reader"])
async def test_a_stop_waits_for_the_rebuilding_and_is_clean_then(found_by: str) -> None:
    machine = Machine.new()
    async with running(machine) as node:
        await node.put(b"a")
        with Hold(node.engine, "close") as closing:
            if found_by == "writer":
                machine.plan.fail(("engine_write", "*"))
                with pytest.raises(OutcomeUnknown):
                    await node.put(b"b")
            else:
                await node.fail_the_engine_outside_of_a_commit()
            await closing.reached()
            stopping = asyncio.ensure_future(node.stop())
            await turns(20)
            assert not stopping.done()
            with pytest.raises(Syncing):
                node.put(b"c")
            closing.release()
            assert await stopping
        assert marker(node) is not None
    async with running(machine.after_crash(DROPPED)) as node:
        assert node.opened.storage.clean
        assert await node.scan() == ({b"a": b"1", b"b": b"1"} if found_by == "writer" else {b"a": b"1"})


async def test_a_stop_while_the_disk_stays_full() -> None:
    machine = Machine.new()
    async with running(machine) as node:
        await node.put(b"a")
        machine.plan.fail(("engine_write", "*"), errno.ENOSPC)
        opening = machine.plan.fail(("engine_open", "*"), errno.ENOSPC, sticky=True)
        with pytest.raises(OutcomeUnknown):
            await node.put(b"b")
        while opening.hits < 2:
            await node.maintained()
        node.store.stop_writes()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await node.store.drain()
        with pytest.raises(StorageFull):
            node.put(b"c")
        assert not await node.store.close(60)
        assert "stop_incomplete" in node.events.names()
        assert (node.failures, marker(node)) == ([], None)
        with pytest.raises(Draining):
            node.put(b"c")
        await expect_unclean(machine, {b"a": b"1", b"b": b"1"})


async def test_leveldb_fails_during_the_stop() -> None:
    """The last group brings it to light; the stop still ends cleanly."""
    machine = Machine.new()
    async with running(machine) as node:
        machine.plan.fail(("engine_write", "*"))
        with Hold(node.store.wal, "append") as hold:
            in_flight = node.put(b"a")
            await hold.reached()
            queued = node.put(b"b")
            stopping = asyncio.ensure_future(node.stop())
            await turns()
            hold.release()
            assert [type(each) for each in await asyncio.gather(in_flight, queued, return_exceptions=True)] == [
                OutcomeUnknown,
                Syncing,
            ]
            assert await stopping
        assert node.failures == []
    async with running(machine.after_crash(DROPPED)) as node:
        assert node.opened.storage.clean
        assert await node.scan() == {b"a": b"1"}
