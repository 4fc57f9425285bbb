"""A node that follows a primary which the test plays: what it takes over, refuses, waits for, and tries again."""

import asyncio
from typing import Any

import pytest

from kvnode.node.config import Address
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
    SnapshotEnd,
    Status,
    Subscribe,
)
from kvnode.protocol.snapshot import SnapshotRecord
from kvnode.protocol.types import Epoch, History, Position, Reign, delete, put
from support.crash_plan import KEPT
from support.holds import Hold, turns
from support.peers import (
    CLUSTER_ID,
    EPOCH,
    HISTORY,
    MEMBERS,
    PRIMARY_ID,
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
        # The last attempt is over: it must not reach the server.
        await at.until(lambda: len(at.errors) == 9)
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
        # Only one that streams is known to be the primary.
        assert at.primaries == [PRIMARY_ID] * (4 if when == "streaming" else 1)


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
