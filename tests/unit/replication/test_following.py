"""A node that follows a primary which the test plays: what it takes over, refuses, waits for, and tries again."""

import asyncio
import errno
from typing import Any

import pytest

from kvnode.node.config import Address
from kvnode.node.errors import Syncing
from kvnode.node.replication import following as following_module
from kvnode.node.storage.datadir import Member as StoredMember
from kvnode.node.storage.datadir import StateFiles
from kvnode.protocol.entry import payload_crc
from kvnode.protocol.fields import LogRecord, Member
from kvnode.protocol.messages import (
    Ack,
    Entries,
    Error,
    Hello,
    HistoryFrame,
    Message,
    Ping,
    Purpose,
    Role,
    SnapshotBegin,
    SnapshotEnd,
    Status,
    Subscribe,
)
from kvnode.protocol.snapshot import SnapshotRecord, encode_chunk
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import Epoch, History, Position, Reign, delete, put
from support.crash_plan import KEPT, Failure
from support.holds import Hold, turns
from support.peers import (
    CLUSTER_ID,
    EPOCH,
    HISTORY,
    MEMBERS,
    REPLICA_ID,
    Peer,
    record,
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


# ---- streaming -------------------------------------------------------------------------------------------------


async def test_it_says_who_it_is_and_takes_over_what_is_streamed() -> None:
    async with following() as at:
        peer = await at.accept()
        hello = await peer.take(Hello)
        assert hello == Hello(1, 1, CLUSTER_ID, REPLICA_ID, b"b" * 16, "r1", Purpose.REPLICA, (), b"", "127.0.0.1:7002")
        peer.send(welcome(3))
        assert await peer.take(Subscribe) == Subscribe(Position(Epoch(0), 0), None)
        assert not at.following.machine.connected
        peer.send(HistoryFrame(HISTORY, MEMBERS))
        sent = (record(1, put(b"a", b"1")), record(2, put(b"a", b"2"), put(b"b", b'"x"')), record(3, delete(b"b")))
        peer.send(Entries(sent[:1]), Entries(sent[1:]))
        assert await durable(peer, 3, applied=3) == Ack(3, 3, 3)
        assert tuple(at.log_records()) == sent
        assert (await at.value(b"a"), await at.value(b"b")) == (b"2", None)
        assert at.store.applied == Position(EPOCH, 3)
        assert at.following.machine.connected
        assert at.following.was_connected
        assert at.errors == []


async def test_the_history_and_the_members_are_durable_before_the_first_entry() -> None:
    async with following() as at:
        peer, _ = await at.streamed()
        await send_entries(peer, 1, 1)
        files = StateFiles(at.machine.disk.after_crash(KEPT), LAYOUT)
        assert files.load_history() == HISTORY
        assert at.members.all == MEMBERS
        calls = [(call.operation, call.path) for call in at.machine.plan.calls]
        saved = next(i for i, (name, path) in enumerate(calls) if name == "rename" and "history" in path)
        logged = next(i for i, (name, path) in enumerate(calls) if name == "write_at" and i > saved and "/wal/" in path)
        assert saved < logged


async def test_it_goes_on_where_its_log_ends() -> None:
    async with following(*records(1, 7)) as at:
        peer, subscribe = await at.streamed(9)
        assert subscribe == Subscribe(Position(EPOCH, 7), None)
        await send_entries(peer, 8, 9)
        assert at.log_records() == list(records(1, 9))


async def test_members_that_change_are_taken_over() -> None:
    async with following() as at:
        peer, _ = await at.streamed()
        more = (*MEMBERS, Member(b"x" * 16, "r2", "10.0.0.3:7001"))
        peer.send(HistoryFrame(HISTORY, more))
        await at.until(lambda: at.members.all == more)
        assert StateFiles(at.machine.disk, LAYOUT).load_members() == tuple(
            StoredMember(each.node_id.hex(), each.name, each.address) for each in more
        )


async def test_thousands_of_entries_in_many_frames() -> None:
    async with following(wal_segment_bytes=65536, wal_keep_bytes=1 << 30) as at:
        peer, _ = await at.streamed(3000)
        for first in range(1, 3000, 50):
            peer.send(Entries(records(first, first + 49)))
        await durable(peer, 3000)
        await at.applied(3000)
        assert at.log_records() == list(records(1, 3000))


async def test_lag_is_what_the_primary_has_more() -> None:
    async with following() as at:
        peer, _ = await at.streamed(5)
        assert (at.following.lag_entries, at.following.lag_s) == (5, 0.0)
        at.loop.advance(0.5)
        assert at.following.lag_s == 0.5
        await send_entries(peer, 1, 5)
        await at.applied(5)
        at.following.published(5)
        assert (at.following.lag_entries, at.following.lag_s) == (0, 0.0)
        at.loop.advance(0.2)
        peer.send(Ping(8, 0))
        await at.until(lambda: at.following.lag_entries == 3)
        assert at.following.lag_s == pytest.approx(0.2)


async def test_it_sends_pings_and_is_content_with_pings() -> None:
    async with following() as at:
        peer, _ = await at.streamed()
        await send_entries(peer, 1, 2)
        for _ in range(8):
            at.loop.advance(1)
            assert (await peer.take(Ping, skip=(Ack,))).last_seq == 2
            peer.send(Ping(2, 0))
            heartbeat = at.following.machine._heartbeat
            await at.until(lambda beat=heartbeat: beat._heard_at == at.loop.now)
        assert at.following.machine.connected


# ---- no primary ------------------------------------------------------------------------------------------------


async def test_a_primary_that_is_not_there_is_tried_again_and_again() -> None:
    async with following(listening=False) as at:
        pauses = []
        for number in range(1, 9):
            await at.until(lambda count=number: len(at.errors) == count)
            assert at.machine_state == "waiting"
            pauses.append(at.following.machine.retry_at - at.loop.now)
            await at.retry()
        longest = [min(5.0, 0.1 * 2**number) for number in range(8)]
        assert all(most / 2 <= pause <= most for most, pause in zip(longest, pauses, strict=True))
        assert {code for code, _ in at.errors} == {"disconnected"}
        assert "cannot connect" in at.errors[0][1]
        assert at.following.last_error == at.errors[-1]
        assert at.log.names().count("following_failed") == 1, "the same trouble is not logged each time"
        await at.server.listen()
        await at.retry()
        peer, _ = await at.streamed()
        await send_entries(peer, 1, 1)
        await at.applied(1)
        await turns()
        assert at.following.last_error is None
        assert at.log.fields_of("following") == {"primary": at.server.address, "seq": 1}


async def test_the_same_trouble_is_logged_again_after_a_while() -> None:
    async with following(listening=False) as at:
        began = at.loop.now
        while at.loop.now < began + 1.5 * following_module._REPEAT_LOG_S:
            before = len(at.errors)
            await at.until(lambda count=before: len(at.errors) > count or at.machine_state == "waiting")
            await at.retry()
            await at.until(lambda: at.machine_state == "waiting")
        assert at.log.names().count("following_failed") == 2


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
async def test_an_address_that_no_host_can_have(host: str) -> None:
    async with following(primary=Address(host, 7001)) as at:
        await at.until(lambda: at.errors)
        assert at.errors[0][0] == "disconnected"
        assert "cannot connect" in at.errors[0][1]
        await at.retry()
        await at.until(lambda: len(at.errors) == 2)


async def test_a_primary_that_says_nothing_is_left_after_ten_seconds() -> None:
    async with following() as at:
        peer = await at.accept()
        await peer.take(Hello)
        at.loop.advance(9.9)
        await turns()
        assert at.errors == []
        at.loop.advance(0.2)
        assert at.errors == [("connect_timeout", "no answer from the primary")]
        assert await peer.rest() == []
        await at.retry()
        await at.streamed()


async def test_a_primary_that_falls_silent_is_left_after_five_seconds() -> None:
    async with following() as at:
        peer, _ = await at.streamed()
        await at.until(lambda: at.following.machine.connected)
        at.loop.advance(4.9)
        await turns()
        assert at.following.machine.connected
        at.loop.advance(1.2)
        assert [code for code, _ in at.errors] == ["peer_silent"]
        await peer.rest()
        await at.retry()
        await at.streamed()


@pytest.mark.parametrize("end", ["reset", "close", "half_close"])
@pytest.mark.parametrize("when", ["accepted", "greeted", "streaming"])
async def test_a_lost_connection_is_made_again(when: str, end: str) -> None:
    async with following() as at:
        for _ in range(3):
            peer = await at.accept()
            if when != "accepted":
                await peer.take(Hello)
            if when == "streaming":
                peer.send(welcome())
                await peer.take(Subscribe)
                peer.send(HistoryFrame(HISTORY, MEMBERS))
                await at.until(lambda: at.following.machine.connected)
            getattr(peer, end)()
            await at.retry()
        assert {code for code, _ in at.errors} == {"disconnected"}
        peer, _ = await at.streamed()
        await send_entries(peer, 1, 1)


async def test_a_port_that_ends_each_connection_at_once_never_holds_it_up() -> None:
    """Whatever comes between the connection, its end, and the task that made it."""
    async with following() as at:
        for number in range(30):
            at.server._accepted = _Ended(number % 3)  # type: ignore[assignment]
            await at.until(lambda: at.machine_state in ("waiting", "connecting"))
            before = len(at.errors)
            await at.until(lambda count=before: len(at.errors) > count or at.machine_state == "waiting")
            await at.retry()
        at.server._accepted = asyncio.Queue()
        await at.until(lambda: at.machine_state == "waiting" or at.server.waiting)
        if at.machine_state == "waiting":
            await at.retry()
        await at.streamed()


class _Ended:
    """Takes accepted connections, and ends each at once."""

    def __init__(self, how: int) -> None:
        self._how = how

    def put_nowait(self, peer: Peer) -> None:
        (peer.reset, peer.close, peer.half_close)[self._how]()


# ---- who is refused, and by whom -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (welcome(role=Role.REPLICA), "not_primary"),
        (welcome(cluster_id=b"x" * 16), "wrong_cluster"),
        (welcome(node_id=REPLICA_ID), "self_join"),
        (welcome(version=7), "unsupported_version"),
        (Ping(1, 1), "protocol_error"),
        (Entries(records(1, 1)), "protocol_error"),
    ],
)
async def test_who_is_no_primary_of_this_cluster_is_told_so(answer: Message, code: str) -> None:
    async with following() as at:
        peer = await at.accept()
        await peer.take(Hello)
        peer.send(answer)
        error = await peer.refused()
        assert error.code == code
        assert at.errors == [(code, error.message)]
        await at.retry()
        await at.streamed()


async def test_a_refusal_is_told_with_its_code_and_tried_again() -> None:
    async with following() as at:
        peer = await at.accept()
        await peer.take(Hello)
        peer.send(Error("name_taken", "another node is called r1"))
        assert await peer.rest() == []
        assert at.errors == [("name_taken", "the primary says: another node is called r1")]
        assert not at.following.was_connected
        await at.retry()
        await at.streamed()


async def test_a_primary_that_is_older_than_what_this_node_has_seen_is_told_and_nothing_changes() -> None:
    async with following(*records(1, 5), history=FORKED) as at:
        peer = await at.accept()
        await peer.take(Hello)
        peer.send(welcome(9))
        assert (await peer.take(Subscribe)).position == Position(LATER, 5)
        peer.send(Error("stale_primary", "there was term 4"))
        await peer.rest()
        assert at.errors[-1][0] == "stale_primary"
        assert at.log_records() == list(records(1, 5))
        assert at.store.history == FORKED
        assert at.failures == []


# ---- what is not taken over ------------------------------------------------------------------------------------


def wrong_crc(seq: int) -> LogRecord:
    good = record(seq)
    return LogRecord(good.crc ^ 1, good.payload)


def unknown_kind(seq: int) -> LogRecord:
    payload = record(seq, put(b"k", b"1")).payload
    assert payload.count(b"\x94\x01\xc4\x01k") == 1
    changed = payload.replace(b"\x94\x01\xc4\x01k", b"\x94\x09\xc4\x01k")
    return LogRecord(payload_crc(changed), changed)


@pytest.mark.parametrize(
    ("frame", "code", "told"),
    [
        (Entries((record(3), wrong_crc(4))), "entry_damaged", "the CRC of the entry after 3 does not match"),
        (Entries((record(4),)), "protocol_error", "entry 4 came after 2"),
        (Entries((record(3), record(5))), "protocol_error", "entry 5 came after 3"),
        (Entries((record(2),)), "protocol_error", "entry 2 came after 2"),
        (Entries((record(3, epoch=LATER),)), "protocol_error", f"entry 3 has epoch {LATER}"),
        (Entries((LogRecord(payload_crc(b"\x01"), b"\x01"),)), "entry_damaged", "entry payload is not an array"),
        (Status(1), "protocol_error", "STATUS came in phase log"),
        (SnapshotEnd(Position(EPOCH, 9), 3), "protocol_error", "SNAPSHOT_END came in phase log"),
        (HistoryFrame(FORKED, MEMBERS), "history_changed", "history changed"),
        (b"\x00\x00\x00\x01\xc1", "protocol_error", "not msgpack"),
        (b"\xff\xff\xff\xff", "protocol_error", "over the limit"),
    ],
)
async def test_what_is_wrong_is_refused_whole_and_the_stream_begun_anew(
    frame: Message | bytes, code: str, told: str
) -> None:
    async with following() as at:
        peer, _ = await at.streamed(9)
        await send_entries(peer, 1, 2)
        await at.applied(2)
        peer.send(frame, Entries(records(3, 9)))
        _, error = await peer.take_until(Error)
        assert error.code == code
        assert told in error.message
        assert await peer.rest() == []
        await at.retry()
        assert told in at.errors[-1][1]
        peer, subscribe = await at.streamed(9)
        assert subscribe == Subscribe(Position(EPOCH, 2), None)
        assert at.log_records() == list(records(1, 2))
        await send_entries(peer, 3, 4)
        assert at.failures == []


async def test_an_operation_that_it_does_not_know_stops_it_for_good() -> None:
    async with following() as at:
        peer, _ = await at.streamed(9)
        await send_entries(peer, 1, 2)
        await at.applied(2)
        peer.send(Entries((record(3), unknown_kind(4))))
        _, error = await peer.take_until(Error)
        assert error.code == "unsupported_op"
        assert "kind 9" in error.message
        await peer.rest()
        await at.until(lambda: at.following._link is None)
        assert at.machine_state == "stopped"
        for _ in range(100):
            at.loop.advance(60)
            await turns(1)
        assert at.server.waiting == 0
        assert at.errors == [("unsupported_op", error.message)]
        assert at.log_records() == list(records(1, 2)), "nothing is skipped, nor taken in part"
        assert await at.value(b"k1") == b"1", "reads go on"


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
        await send_entries(peer, 51, 60)
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


# ---- the end ---------------------------------------------------------------------------------------------------


async def test_a_lost_session_lets_the_work_under_way_end_before_the_next_one() -> None:
    async with following() as at:
        peer, _ = await at.streamed(9)
        with Hold(at.store._engine, "write", after=True) as hold:
            peer.send(Entries(records(1, 2)))
            await hold.reached()
            peer.reset()
            await at.retry()
            peer = await at.accept()
            await peer.take(Hello)
            peer.send(welcome(9))
            await at.until(lambda: at.machine_state == "preparing")
            await turns(20)
            assert at.machine_state == "preparing"
            hold.release()
        assert (await peer.take(Subscribe)).position.seq == 2


async def test_stop_waits_for_the_work_under_way_and_does_nothing_afterwards() -> None:
    async with following() as at:
        peer, _ = await at.streamed(9)
        await send_entries(peer, 1, 1)
        await at.applied(1)
        await turns()
        with Hold(at.store._engine, "write", after=True) as hold:
            peer.send(Entries(records(2, 2)))
            await hold.reached()
            peer.send(Entries(records(3, 4)))
            await at.until(lambda: len(at.following.machine._work) == 1)
            stopping = asyncio.create_task(at.following.stop())
            await turns()
            assert not stopping.done()
            hold.release()
            await stopping
        assert at.store.applied.seq == 2
        await peer.rest()
        at.loop.advance(100)
        await turns(20)
        assert at.store.applied.seq == 2
        assert at.server.waiting == 0
        assert at.errors == []


@pytest.mark.parametrize("when", ["connecting", "greeted", "waiting"])
async def test_stop_at_any_time(when: str) -> None:
    async with following(listening=when != "waiting") as at:
        if when == "greeted":
            peer = await at.accept()
            await peer.take(Hello)
        elif when == "waiting":
            await at.until(lambda: at.machine_state == "waiting" and at.errors)
        await at.following.stop()
        at.loop.advance(100)
        await turns(20)
        assert at.machine_state in ("connecting", "waiting")


async def test_after_a_restart_it_goes_on(tmp_path: Any) -> None:
    async with following() as at:
        peer, _ = await at.streamed(9)
        await send_entries(peer, 1, 5)
        await at.applied(5)
        machine = at.machine
    async with following(machine=machine.after_crash(KEPT)) as at:
        # It follows the address that it was given this time.
        peer, subscribe = await at.streamed(9)
        assert subscribe.position == Position(EPOCH, 5)
        await send_entries(peer, 6, 9)
        assert at.log_records() == list(records(1, 9))
