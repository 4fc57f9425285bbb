"""One replica's session on its primary, over a real connection: what is streamed, held back, and given up."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kvnode.node.errors import EngineFailed
from kvnode.node.replication.feed import FeedSession
from kvnode.node.replication.link import PeerLink
from kvnode.protocol.fields import LogRecord
from kvnode.protocol.messages import (
    Ack,
    Entries,
    Error,
    HistoryFrame,
    Message,
    Ping,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    Status,
    Write,
)
from kvnode.protocol.primary import FeedLimits, ReplicaState
from kvnode.protocol.snapshot import decode_chunk
from kvnode.protocol.types import Position, put
from support.fake_replicated_store import events_of
from support.link_rig import Owner, linked
from support.peers import EPOCH, HISTORY, Peer, hello, payload_bytes, subscribe_from
from support.reign_rig import ME, ReignRig, member, reigning, snapshot

LIMITS = FeedLimits()

CANNOT_BE_READ = ("sync_aborted", "the primary's data cannot be read: engine_failed")


class Fed:
    """A replica that is played over a real connection.

    Attributes:
        log: the entries that came.
        acks: whether it acks each ENTRIES frame as it comes.
    """

    def __init__(self, rig: ReignRig, peer: Peer, link: PeerLink, feed: FeedSession) -> None:
        self.rig = rig
        self.peer = peer
        self.link = link
        self.feed = feed
        self.log: list[LogRecord] = []
        self.after_seq = 0
        self.acks = True

    @property
    def seq(self) -> int:
        return self.after_seq + len(self.log)

    def subscribe(self, seq: int = 0) -> None:
        self.after_seq = seq
        self.peer.send(subscribe_from(seq))

    async def take_history(self) -> HistoryFrame:
        return await self.peer.take(HistoryFrame)

    async def take_entries(self, count: int = 1) -> None:
        """Take frames until there are so many entries more."""
        last = self.seq + count
        while self.seq < last:
            self.log += (await self.peer.take(Entries, skip=(Ping, HistoryFrame))).records
            if self.acks:
                self.ack()

    def ack(self) -> None:
        self.peer.send(Ack(self.seq, self.seq, self.seq))


@asynccontextmanager
async def fed(
    rig: ReignRig, name: str = "r1", *, kernel_bytes: int | None = None, **options: Any
) -> AsyncIterator[Fed]:
    """A replica whose HELLO was answered."""
    owner = Owner()
    async with linked(owner, kernel_bytes=kernel_bytes) as (link, peer):
        said = hello(name=name, node_id=member(name).node_id)
        feed = rig.reign.begin_feed(link, said, "")
        link.owner = feed
        try:
            yield Fed(rig, peer, link, feed)
        finally:
            link.abort("the end of the test")
            await rig.until(lambda: feed._ended)
            # The session was told of the end in the owner's place.
            owner.link_lost(link, "told to the session")


# ---- streaming -------------------------------------------------------------------------------------------------


async def test_history_comes_first_then_all_entries_untouched() -> None:
    async with reigning() as rig:
        rig.store.publish(2000)
        async with fed(rig) as replica:
            replica.subscribe(3)
            history = await replica.take_history()
            assert history.history == HISTORY
            assert [each.name for each in history.members] == ["p1", "r1"]
            await replica.take_entries(1997)
            assert replica.log == rig.store.log[3:]
            assert rig.store.log_reads, "the tail did not have them"
            reads = rig.store.log_reads
            for _ in range(5):
                rig.publish(3)
                rig.loop.advance(1)
                await replica.take_entries(3)
            assert replica.log == rig.store.log[3:]
            assert rig.store.log_reads == reads, "the tail had them"
            assert replica.feed.machine.state is ReplicaState.STREAMING
        (reader,) = rig.store.readers
        await rig.until(lambda: not reader.is_open)


async def test_two_replicas_are_independent() -> None:
    async with reigning() as rig:
        rig.store.publish(100)
        async with fed(rig, "r1") as first, fed(rig, "r2") as second:
            first.subscribe()
            second.subscribe(50)
            await second.take_history()
            await second.take_entries(50)
            await first.take_history()
            await first.take_entries(100)
            assert first.log[50:] == second.log
            first.peer.reset()
            rig.publish()
            rig.loop.advance(1)
            await second.take_entries()


async def test_without_acks_no_more_is_sent_than_the_window() -> None:
    async with reigning() as rig:
        rig.store.publish(300, value=b"x" * 100_000)
        async with fed(rig) as replica:
            replica.acks = False
            replica.subscribe()
            await replica.take_history()
            first_of_next = 0
            while payload_bytes(replica.log) < LIMITS.window_bytes:
                await replica.take_entries()
            first_of_next = replica.seq
            replica.peer.send(Ping(0, 0))
            await rig.settle()
            assert payload_bytes(replica.log) < LIMITS.window_bytes + LIMITS.frame_bytes
            assert replica.feed.machine.sent_seq == first_of_next
            replica.acks = True
            replica.ack()
            await replica.take_entries(300 - replica.seq)
            assert replica.log == rig.store.log


async def test_large_entries_follow_each_other_without_a_tick() -> None:
    """The time stands still: nothing that is due at a time may be needed to go on."""
    async with reigning() as rig, fed(rig) as replica:
        replica.subscribe()
        await replica.take_history()
        for _ in range(4):
            rig.publish(value=b"x" * (3 << 20))
        rig.loop.advance(0.1)
        await replica.take_entries(4)
        for _ in range(4):
            rig.publish(value=b"x" * (5 << 20))
            await rig.settle()
            rig.loop.advance(0.02)
            await replica.take_entries()
        assert replica.log == rig.store.log


async def test_many_entries_from_memory_follow_each_other_without_a_tick() -> None:
    async with reigning() as rig, fed(rig) as replica:
        replica.subscribe()
        await replica.take_history()
        rig.publish(70, value=b"x" * 100_000)
        await replica.take_entries(70)
        assert replica.log == rig.store.log
        assert rig.store.log_reads == 0


async def test_an_entry_larger_than_the_window_is_sent() -> None:
    async with reigning() as rig:
        rig.store.publish(3, value=b"x" * (LIMITS.window_bytes + 1000))
        async with fed(rig) as replica:
            replica.subscribe()
            await replica.take_history()
            await replica.take_entries(3)
            assert replica.log == rig.store.log


async def test_an_entry_that_does_not_fit_a_frame_ends_the_session_with_a_reason() -> None:
    """As when the limits were lowered: what cannot be sent must be told, and not stand still."""
    async with reigning() as rig:
        rig.store.publish(2)
        rig.store.publish(1, value=b"x" * 200_000)
        async with fed(rig) as replica:
            object.__setattr__(rig.shared.config, "max_frame_bytes", 100_000)
            replica.subscribe()
            await replica.take_history()
            frames = await replica.peer.rest()
            assert [type(each) for each in frames if not isinstance(each, Entries)] == [Error]
            error = frames[-1]
            assert isinstance(error, Error)
            assert error.code == "internal"
            assert "over the limit of 100000" in error.message
            assert "over the limit" in str(events_of(rig.shared).fields_of("replica_session_failed"))


# ---- signs of life ---------------------------------------------------------------------------------------------


async def test_a_ping_every_second_says_how_far_the_log_is() -> None:
    async with reigning() as rig, fed(rig) as replica:
        replica.subscribe()
        await replica.take_history()
        rig.publish(7)
        await replica.take_entries(7)
        for _ in range(3):
            rig.loop.advance(1)
            assert (await replica.peer.take(Ping, skip=())).last_seq == 7


async def test_a_silent_replica_is_dropped_after_five_seconds() -> None:
    async with reigning() as rig, fed(rig) as replica:
        replica.subscribe()
        await replica.take_history()
        rig.loop.advance(4.9)
        await rig.settle()
        assert replica.link.is_open
        rig.loop.advance(0.2)
        assert await replica.peer.rest() == []
        assert events_of(rig.shared).fields_of("replica_session_closed")["code"] == "peer_silent"


async def test_a_replica_that_says_anything_stays() -> None:
    async with reigning() as rig, fed(rig) as replica:
        replica.subscribe()
        await replica.take_history()
        for _ in range(10):
            rig.loop.advance(4)
            replica.peer.send(Ping(0, 0))
            replica.peer.send(Ack(0, 0, 0))
            await replica.peer.flushed()
            progress = replica.feed.machine._heartbeat
            await rig.until(lambda heartbeat=progress: heartbeat._heard_at == rig.loop.now)
        assert replica.link.is_open


async def test_a_replica_that_takes_nothing_costs_little_and_is_dropped_after_thirty_seconds() -> None:
    async with reigning() as rig:
        rig.store.start_at(10)
        rig.store.snapshot = snapshot(400, value=b"x" * 100_000)
        async with fed(rig, kernel_bytes=4096) as replica:
            replica.peer.pause()
            replica.subscribe()
            seconds = 0
            while replica.link.is_open:
                replica.peer.send(Ping(0, 0))
                await replica.peer.flushed()
                await rig.until(lambda: replica.feed.machine._heartbeat._heard_at == rig.loop.now)
                # The transport, and one chunk more than it may hold back.
                assert replica.link.held_bytes < LIMITS.unsent_bytes + 2 * LIMITS.chunk_bytes
                rig.loop.advance(1)
                seconds += 1
                assert seconds < 40
                await rig.settle()
            assert seconds >= 30
            assert events_of(rig.shared).fields_of("replica_session_closed")["code"] == "send_stalled"
        assert rig.reign.full_syncs_sent == 0


# ---- full syncs ------------------------------------------------------------------------------------------------


async def take_snapshot(replica: Fed) -> tuple[SnapshotBegin, list[Any], SnapshotEnd]:
    """A snapshot whole."""
    begin = await replica.peer.take(SnapshotBegin, skip=(Ping, HistoryFrame))
    found: list[Any] = []
    while isinstance(message := await replica.peer.next(), SnapshotChunk | Ping):
        if isinstance(message, SnapshotChunk):
            found += decode_chunk(message)
    assert isinstance(message, SnapshotEnd)
    return begin, found, message


async def test_a_full_sync_and_the_entries_behind_it() -> None:
    async with reigning() as rig:
        rig.store.start_at(10)
        rig.store.snapshot = snapshot(3000, value=b"x" * 2000)
        rig.publish(3)
        async with fed(rig) as replica:
            replica.subscribe()
            begin, found, end = await take_snapshot(replica)
            assert (begin.position, begin.first_position, begin.resumed) == (*[Position(EPOCH, 13)] * 2, False)
            assert found == rig.store.snapshot
            assert end == SnapshotEnd(Position(EPOCH, 13), 3000)
            rig.publish(4)
            rig.loop.advance(1)
            replica.after_seq = 13
            replica.ack()
            await replica.take_entries(4)
            assert replica.log == rig.store.log[3:]
            assert rig.reign.full_syncs_sent == 1
        (scan,) = rig.store.scans
        await rig.until(lambda: not scan.is_open)


async def test_a_full_sync_of_nothing() -> None:
    async with reigning() as rig:
        rig.store.start_at(10)
        async with fed(rig) as replica:
            replica.subscribe()
            _, found, end = await take_snapshot(replica)
            assert (found, end.keys) == ([], 0)


async def test_a_log_that_is_trimmed_under_a_reader_leads_to_a_full_sync() -> None:
    async with reigning() as rig:
        rig.store.publish(20)
        rig.store.snapshot = snapshot(3)
        rig.store.may_read.clear()
        async with fed(rig) as replica:
            replica.subscribe()
            await replica.take_history()
            await rig.until(lambda: rig.store.log_reads)
            rig.reign.log_trimmed(11)
            rig.store.trim(11)
            rig.store.may_read.set()
            begin, found, _ = await take_snapshot(replica)
            assert begin.position == Position(EPOCH, 20)
            assert found == rig.store.snapshot
            assert "log_damaged" not in events_of(rig.shared).names()


async def test_a_damaged_log_is_an_alarm_and_leads_to_a_full_sync() -> None:
    async with reigning() as rig:
        rig.store.publish(20)
        rig.store.snapshot = snapshot(3)
        rig.store.damaged = True
        async with fed(rig) as replica:
            replica.subscribe()
            await take_snapshot(replica)
            fields = events_of(rig.shared).fields_of("log_damaged")
            assert fields["name"] == "r1"
            assert "damaged at offset 100" in str(fields["reason"])


async def test_a_log_that_cannot_be_read_just_now_ends_the_session_only() -> None:
    async with reigning() as rig:
        rig.store.publish(20)
        rig.store.read_error = OSError(24, "Too many open files")
        async with fed(rig) as replica:
            replica.subscribe()
            await replica.take_history()
            error = await replica.peer.refused()
            assert (error.code, "Too many open files" in error.message) == ("internal", True)
        assert "log_damaged" not in events_of(rig.shared).names()
        rig.store.read_error = None
        async with fed(rig) as replica:
            replica.subscribe()
            await replica.take_entries(20)


async def test_data_that_cannot_be_read_end_the_sync_and_give_the_permit_back() -> None:
    async with reigning() as rig:
        rig.store.start_at(10)
        rig.store.snapshot = snapshot(3)
        rig.store.scan_error = EngineFailed("a table is gone")
        async with fed(rig, "r1") as replica:
            replica.subscribe()
            await replica.take_history()
            # A reason may hold a key, which is for this node's log only.
            assert await replica.peer.refused() == Error(*CANNOT_BE_READ)
        assert events_of(rig.shared).fields_of("snapshot_failed") == {"name": "r1", "reason": "a table is gone"}
        rig.store.scan_error = None
        async with fed(rig, "r2") as replica:
            replica.subscribe()
            assert len((await take_snapshot(replica))[1]) == 3


async def test_data_that_cannot_be_read_in_the_middle() -> None:
    async with reigning() as rig:
        rig.store.start_at(10)
        rig.store.snapshot = snapshot(3)
        rig.store.may_scan.clear()
        async with fed(rig) as replica:
            replica.subscribe()
            await replica.peer.take(SnapshotBegin, skip=(Ping, HistoryFrame))
            rig.store.scan_error = EngineFailed("a table is gone")
            rig.store.may_scan.set()
            assert await replica.peer.refused() == Error(*CANNOT_BE_READ)
        (scan,) = rig.store.scans
        await rig.until(lambda: not scan.is_open)


# ---- the end ---------------------------------------------------------------------------------------------------


async def test_a_session_that_ends_during_a_read_of_the_log_closes_the_reader_behind_it() -> None:
    async with reigning() as rig:
        rig.store.publish(20)
        rig.store.may_read.clear()
        async with fed(rig) as replica:
            replica.subscribe()
            await replica.take_history()
            await rig.until(lambda: rig.store.log_reads)
            replica.peer.reset()
            await rig.until(lambda: not rig.reign.sessions)
            (reader,) = rig.store.readers
            assert reader.is_open
            rig.store.may_read.set()
            await rig.until(lambda: not reader.is_open)


async def test_a_session_that_ends_during_a_step_of_a_scan_closes_it_behind_it() -> None:
    async with reigning() as rig:
        rig.store.start_at(10)
        rig.store.snapshot = snapshot(3)
        rig.store.may_scan.clear()
        async with fed(rig) as replica:
            replica.subscribe()
            await rig.until_scanning()
            replica.peer.reset()
            await rig.until(lambda: not rig.reign.sessions)
            (scan,) = rig.store.scans
            assert scan.is_open
            rig.store.may_scan.set()
            await rig.until(lambda: not scan.is_open)


async def test_a_replica_that_leaves_is_logged_with_the_reason() -> None:
    async with reigning() as rig:
        async with fed(rig) as replica:
            replica.subscribe()
            await replica.take_history()
            replica.peer.half_close()
            assert await replica.peer.rest() == []
        fields = events_of(rig.shared).fields_of("replica_gone")
        assert (fields["name"], fields["reason"]) == ("r1", "the other side closed the connection")


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ([Ack(1, 1, 1)], "ACK came before SUBSCRIBE"),
        ([subscribe_from(0), subscribe_from(0)], "SUBSCRIBE came twice"),
        ([Write(1, (put(b"k", b"1"),), 0, 0)], "WRITE is not what a replica sends"),
        ([Status(1)], "STATUS is not what a replica sends"),
        ([hello()], "HELLO is not what a replica sends"),
        ([HistoryFrame(HISTORY, (ME,))], "HISTORY is not what a replica sends"),
    ],
)
async def test_what_a_replica_must_not_say_ends_its_session(sent: list[Message], told: str) -> None:
    async with reigning() as rig:
        async with fed(rig) as replica:
            replica.peer.send(*sent)
            _, error = await replica.peer.take_until(Error)
            assert error.code == "protocol_error"
            assert told in error.message
        fields = events_of(rig.shared).fields_of("replica_session_closed")
        assert (fields["code"], fields["reason"]) == ("protocol_error", error.message)


@pytest.mark.parametrize("durable", [4, 1 << 40])
async def test_an_ack_of_what_was_not_sent_ends_the_session(durable: int) -> None:
    async with reigning() as rig:
        rig.store.publish(3)
        async with fed(rig) as replica:
            replica.subscribe()
            await replica.take_history()
            await replica.take_entries(3)
            replica.peer.send(Ack(durable, durable, durable))
            error = await replica.peer.refused()
            assert (error.code, f"ACK of {durable}" in error.message) == ("protocol_error", True)


async def test_garbage_ends_the_session() -> None:
    async with reigning() as rig, fed(rig) as replica:
        replica.subscribe()
        await replica.take_history()
        replica.peer.send(b"\x00\x00\x00\x01\xc1")
        assert (await replica.peer.refused()).code == "protocol_error"
