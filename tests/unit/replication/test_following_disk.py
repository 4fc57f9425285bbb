"""What following does to a replica's disk: full syncs, what diverged, and a disk that is full, slow or failing."""

import errno

import pytest

from kvnode.node.errors import Syncing
from kvnode.protocol.messages import (
    Ack,
    Entries,
    Error,
    Hello,
    HistoryFrame,
    SnapshotBegin,
    SnapshotEnd,
    Subscribe,
)
from kvnode.protocol.snapshot import SnapshotRecord, encode_chunk
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import Epoch, History, Position, Reign
from support.crash_plan import Failure
from support.holds import Hold, turns
from support.peers import (
    EPOCH,
    MEMBERS,
    Peer,
    records,
    welcome,
)
from support.replica_rig import durable, following, send_entries
from support.simulated_node import LAYOUT

LATER = Epoch.of(4, 0x11111111)
#: Of a primary that was promoted when the log had five entries.
FORKED = History((Reign(EPOCH, 1), Reign(LATER, 6)))
SYNC_ID = b"s" * 16


def snapshot(first: int, last: int, seq: int = 5) -> list[SnapshotRecord]:
    """Records as a primary's snapshot has them."""
    return [SnapshotRecord(b"new%04d" % number, seq, EPOCH, 0, b"%d" % number) for number in range(first, last + 1)]


# ---- full syncs ------------------------------------------------------------------------------------------------


async def send_snapshot(
    peer: Peer, found: list[SnapshotRecord], position: Position, first: Position | None = None, *, resumed: bool = False
) -> None:
    peer.send(SnapshotBegin(SYNC_ID, position, first or position, resumed))
    for at in range(0, len(found), 10):
        peer.send(encode_chunk(found[at : at + 10]))
    peer.send(SnapshotEnd(position, len(found)))


async def test_a_full_sync_replaces_everything_and_the_stream_goes_on_behind_it() -> None:
    async with following(*records(1, 3)) as at:
        peer, _ = await at.streamed(60)
        await send_snapshot(peer, snapshot(1, 55), Position(EPOCH, 50))
        assert await durable(peer, 50) == Ack(50, 50, 50)
        assert (at.store.wal.first_seq, at.store.wal.last_seq) == (51, 50)
        assert await at.value(b"k1") is None
        assert await at.value(b"new0007") == b"7"
        assert at.store.applied == Position(EPOCH, 50)
        assert at.store.serving
        synced = at.store.counters.sync_seconds.count
        await send_entries(peer, 51, 60)
        # Of the log that came with it, too, each sync is timed.
        assert at.store.counters.sync_seconds.count > synced
        assert at.log_records() == list(records(51, 60))
        assert at.disk.full_syncs_received == 1
        assert at.disk.incoming_keys == 55
        assert not at.machine.disk.exists(LAYOUT.incoming)
        assert at.log.fields_of("full_sync_done")["keys"] == 55
        assert at.failures == []


async def test_what_was_copied_over_time_is_not_served_before_it_is_one_state() -> None:
    async with following() as at:
        peer, _ = await at.streamed(60)
        peer.send(SnapshotBegin(SYNC_ID, Position(EPOCH, 50), Position(EPOCH, 50), resumed=False))
        peer.send(encode_chunk(snapshot(1, 20)))
        await at.until(lambda: at.disk.incoming_keys == 20)
        peer.reset()
        await at.retry()
        peer, subscribe = await at.streamed(60)
        incoming = subscribe.incoming
        assert incoming == Incoming(SYNC_ID, Position(EPOCH, 50), Position(EPOCH, 50), b"new0020")
        await send_snapshot(peer, snapshot(21, 40), Position(EPOCH, 55), Position(EPOCH, 50), resumed=True)
        assert await durable(peer, 50) == Ack(50, 50, 0)
        assert not at.store.serving
        with pytest.raises(Syncing, match="has not replayed the log behind its last full sync"):
            await at.store.read(b"new0001")
        assert at.opened.files.load_serve_from() == Position(EPOCH, 55)
        await send_entries(peer, 51, 54)
        assert not at.store.serving
        await send_entries(peer, 55, 56)
        await at.applied(56)
        await turns()
        assert at.store.serving
        assert await at.value(b"new0030") == b"30"


async def test_entries_behind_a_full_sync_may_come_at_once() -> None:
    async with following() as at:
        peer, _ = await at.streamed(60)
        await send_snapshot(peer, snapshot(1, 30), Position(EPOCH, 50))
        peer.send(Entries(records(51, 55)), Entries(records(56, 60)))
        await durable(peer, 60)
        await at.applied(60)
        assert at.log_records() == list(records(51, 60))


async def test_a_chunk_that_is_damaged_is_not_stored_and_the_sync_resumed_before_it() -> None:
    async with following() as at:
        peer, _ = await at.streamed(60)
        peer.send(SnapshotBegin(SYNC_ID, Position(EPOCH, 50), Position(EPOCH, 50), resumed=False))
        peer.send(encode_chunk(snapshot(1, 10)))
        await at.until(lambda: at.disk.incoming_keys == 10)
        good = encode_chunk(snapshot(11, 20))
        peer.send(type(good)(good.crc ^ 1, good.data))
        _, error = await peer.take_until(Error)
        assert "SNAPSHOT_CHUNK.crc" in error.message
        await at.retry()
        peer, subscribe = await at.streamed(60)
        assert subscribe.incoming is not None
        assert subscribe.incoming.last_key == b"new0010"


async def test_entries_that_no_primary_has_are_kept_aside_and_replaced() -> None:
    diverged = [*records(1, 5), *records(6, 8, epoch=EPOCH)]
    async with following(*diverged) as at:
        assert at.store.serving
        peer = await at.accept()
        await peer.take(Hello)
        peer.send(welcome(20, FORKED))
        subscribe = await peer.take(Subscribe)
        assert subscribe.position == Position(EPOCH, 8)
        assert at.log.fields_of("log_diverged")["entries"] == 3
        assert not at.store.serving
        with pytest.raises(Syncing, match="diverged"):
            await at.store.read(b"k1")
        (name,) = at.disk.diverged
        peer.send(HistoryFrame(FORKED, MEMBERS))
        await send_snapshot(peer, snapshot(1, 4), Position(LATER, 20))
        await durable(peer, 20)
        assert at.store.serving
        assert await at.value(b"k7") is None
        assert at.store.history == FORKED
        assert at.disk.diverged == [name]
        assert [path.parts[-2] for path in at.machine.disk.snapshot(LAYOUT.diverged)] == [name]


# ---- the disk --------------------------------------------------------------------------------------------------


async def test_a_full_disk_is_told_and_tried_again() -> None:
    async with following() as at:
        peer, _ = await at.streamed(9)
        await send_entries(peer, 1, 2)
        await at.applied(2)
        at.machine.plan.failures.append(Failure(errno.ENOSPC, "write_at", "*/wal/*"))
        peer.send(Entries(records(3, 9)))
        _, error = await peer.take_until(Error)
        assert error.code == "storage_full"
        await peer.rest()
        assert at.errors[-1][0] == "storage_full"
        assert at.failures == []
        assert await at.value(b"k1") == b"1", "reads go on"
        await at.retry()
        peer, subscribe = await at.streamed(9)
        assert subscribe.position.seq == 2
        await send_entries(peer, 3, 9)
        assert at.log_records() == list(records(1, 9))


@pytest.mark.parametrize("path", ["*/history*", "*/members*"])
async def test_a_full_disk_for_the_history(path: str) -> None:
    async with following() as at:
        at.machine.plan.failures.append(Failure(errno.ENOSPC, "write_at", path))
        peer, _ = await at.streamed(3)
        peer.send(Entries(records(1, 3)))
        _, error = await peer.take_until(Error)
        assert error.code == "storage_full"
        await at.retry()
        peer, _ = await at.streamed(3)
        await send_entries(peer, 1, 3)
        assert at.members.all == MEMBERS
        assert at.failures == []


@pytest.mark.parametrize("operation", ["engine_open_paranoid", "engine_copy_in", "engine_settle", "write_at", "create"])
async def test_a_full_disk_during_a_full_sync(operation: str) -> None:
    async with following() as at:
        peer, _ = await at.streamed(60)
        at.machine.plan.failures.append(Failure(errno.ENOSPC, operation, "*/incoming/*"))
        await send_snapshot(peer, snapshot(1, 30), Position(EPOCH, 50))
        _, error = await peer.take_until(Error)
        assert error.code == "storage_full"
        await at.retry()
        peer, subscribe = await at.streamed(60)
        if subscribe.incoming is None:
            await send_snapshot(peer, snapshot(1, 30), Position(EPOCH, 50))
        else:
            left = [each for each in snapshot(1, 30) if each.key > subscribe.incoming.last_key]
            await send_snapshot(peer, left, Position(EPOCH, 50), resumed=True)
        await durable(peer, 50)
        assert len(at.store._engine.scan_records(b"").next_records(1 << 20)) == 30
        assert at.failures == []


@pytest.mark.parametrize(
    ("operation", "path"), [("sync", "*/history*"), ("write_at", "*/members*"), ("sync", "*/wal/*")]
)
async def test_any_other_failure_of_the_disk_ends_the_process(operation: str, path: str) -> None:
    async with following() as at:
        at.machine.plan.failures.append(Failure(errno.EIO, operation, path))
        peer, _ = await at.streamed(3)
        peer.send(Entries(records(1, 3)))
        await at.until(lambda: at.failures)
        assert at.store.applied.seq == 0


async def test_while_the_disk_is_slow_it_reads_no_more_than_it_may_hold() -> None:
    async with following(wal_segment_bytes=1 << 22, wal_keep_bytes=1 << 30) as at:
        peer, _ = await at.streamed(60)
        with Hold(at.store._engine, "write") as hold:
            peer.send(Entries(records(1, 1)))
            await hold.reached()
            for seq in range(2, 61):
                peer.send(Entries(records(seq, seq, value=b"x" * 500_000)))
            await at.until(lambda: at.following.machine._paused)
            await turns(50)
            assert at.following.machine._work.size < 20 << 20
            # Its own silence is not the primary's.
            at.loop.advance(20)
            await turns()
            assert at.following.machine.state.value == "following"
            hold.release()
            await durable(peer, 60)
        await at.applied(60)
        assert len(at.log_records()) == 60
        assert at.errors == []
