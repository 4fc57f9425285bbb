"""A primary's reign: who is admitted, told, waited for, permitted, pinned, and forgotten."""

import asyncio
import errno

import pytest

from kvnode.node.api import Acks
from kvnode.node.errors import MemberConnected, MemberNotFound, NotEnoughReplicas, OutcomeUnknown, ReplicationTimeout
from kvnode.node.replication import reign as reign_module
from kvnode.node.replication.members import StoredMembers, load_members, save_members
from kvnode.node.replication.reign import Reign
from kvnode.protocol.messages import (
    Ack,
    Entries,
    Error,
    HistoryFrame,
    SnapshotBegin,
    SnapshotEnd,
    Subscribe,
)
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import Epoch, Position
from support.crash_plan import Failure
from support.fake_replicated_store import events_of, sharing, store_of
from support.holds import Hold, turns
from support.link_rig import Owner, linked
from support.memory_disk import MemoryDisk
from support.peers import EPOCH, HISTORY, hello, subscribe_from
from support.reign_rig import ME, member, reigning, snapshot

#: How often a replica is told under load, and for how long one is hurried that forwards writes.
COALESCE_S, HURRY_S = reign_module._COALESCE_S, reign_module._HURRY_S

MAJORITY = Acks(None)


# ---- admission -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("others", "wanted"), [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2)])
async def test_a_majority_counts_the_primary_and_all_members(others: int, wanted: int) -> None:
    async with reigning(*[member(f"m{number}") for number in range(others)]) as rig:
        for number in range(wanted):
            with pytest.raises(NotEnoughReplicas) as refused:
                rig.reign.admit(MAJORITY)
            assert refused.value.fields == {"asked": wanted, "following": number}
            await rig.streaming(f"m{number}")
        assert rig.reign.admit(MAJORITY) == wanted


async def test_a_number_of_acks_needs_as_many_that_follow() -> None:
    async with reigning() as rig:
        assert rig.reign.admit(Acks(0)) == 0
        await rig.streaming("r1")
        await rig.streaming("r2")
        assert rig.reign.admit(Acks(2)) == 2
        with pytest.raises(NotEnoughReplicas, match="nothing was written") as refused:
            rig.reign.admit(Acks(3))
        assert refused.value.fields == {"asked": 3, "following": 2}


async def test_who_has_not_subscribed_or_takes_a_full_sync_does_not_follow() -> None:
    async with reigning() as rig:
        rig.store.start_at(10)
        rig.store.snapshot = snapshot(3)
        rig.store.may_scan.clear()
        silent, syncing = rig.replica("r1"), rig.replica("r2")
        syncing.say(subscribe_from(0))
        await rig.until_scanning()
        with pytest.raises(NotEnoughReplicas):
            rig.reign.admit(Acks(1))
        rig.store.may_scan.set()
        await rig.until(lambda: syncing.feed.machine.live)
        assert rig.reign.admit(Acks(1)) == 1
        await silent.subscribe(10)
        assert rig.reign.admit(Acks(2)) == 2
        await silent.leave()
        with pytest.raises(NotEnoughReplicas):
            rig.reign.admit(Acks(2))


async def test_a_session_that_is_being_closed_does_not_follow() -> None:
    async with reigning() as rig:
        replica = await rig.streaming()
        replica.link.close("a test says so")
        with pytest.raises(NotEnoughReplicas):
            rig.reign.admit(Acks(1))


async def test_a_session_that_has_ended_and_lingers_costs_nothing() -> None:
    async with reigning() as rig:
        replica = await rig.streaming()
        replica.say(Ack(9, 9, 9))
        assert replica.feed.machine.state == "disconnected"
        for _ in range(100):
            rig.loop.advance(0.05)
            assert all(at > rig.loop.now for at in rig.loop.timers)
        await rig.settle()
        assert [each.code for each in replica.take(Error)] == ["protocol_error"]


# ---- waiting for acks ------------------------------------------------------------------------------------------


async def test_a_write_is_answered_when_the_replicas_have_acked() -> None:
    async with reigning() as rig:
        first, second = await rig.streaming("r1"), await rig.streaming("r2")
        future = rig.write(2)
        await rig.settle()
        assert first.entries == second.entries == [1]
        first.ack(1)
        assert not future.done()
        second.say(Ack(1, 1, 0))
        assert future.result().position == Position(EPOCH, 1)


async def test_a_write_that_is_not_acked_in_time_says_who_has_it() -> None:
    async with reigning() as rig:
        first = await rig.streaming("r1")
        await rig.streaming("r2")
        future = rig.write(2, timeout_s=3)
        first.ack(1)
        await rig.pass_time(3)
        error = future.exception()
        assert isinstance(error, ReplicationTimeout)
        assert error.fields == {"seq": 1, "epoch": str(EPOCH), "acks": 1, "asked": 2}


async def test_an_ack_that_a_replica_gave_by_subscribing_counts() -> None:
    async with reigning() as rig:
        future = rig.write(1)
        replica = rig.replica()
        await replica.subscribe(1)
        assert future.done()


async def test_at_the_end_all_waits_are_unknown() -> None:
    async with reigning() as rig:
        await rig.streaming()
        future = rig.write(1)
        rig.reign.end_waits()
        error = future.exception()
        assert isinstance(error, OutcomeUnknown)
        assert error.fields == {"seq": 1, "epoch": str(EPOCH)}
        later = rig.write(1)
        rig.reign.end("draining", "this node is stopping")
        assert isinstance(later.exception(), OutcomeUnknown)


# ---- telling of new entries ------------------------------------------------------------------------------------


async def test_under_load_a_replica_is_told_only_so_often_and_of_all() -> None:
    async with reigning() as rig:
        replica = await rig.streaming()
        rig.publish()
        await rig.settle()
        assert replica.entries == [1], "the first is told at once"
        for _ in range(4):
            await rig.pass_time(COALESCE_S / 5)
            rig.publish()
        await rig.settle()
        assert replica.entries == []
        await rig.pass_time(COALESCE_S)
        assert replica.entries == [4], "together"
        await rig.pass_time(1)
        assert replica.entries == []
        rig.publish()
        await rig.settle()
        assert replica.entries == [1]


async def test_nothing_is_forgotten_however_entries_come() -> None:
    async with reigning() as rig:
        replica = await rig.streaming()
        for number in range(1, 200):
            rig.publish()
            await turns(2)
            rig.loop.advance(COALESCE_S / 7)
            if number % 40 == 0:
                replica.ack(replica.feed.machine.sent_seq)
        await rig.pass_time(COALESCE_S)
        found = [record for each in replica.take(Entries) for record in each.records]
        assert found == rig.store.log


async def test_a_deferred_entry_is_told_within_the_time_whatever_else_happens() -> None:
    async with reigning() as rig:
        replica = await rig.streaming()
        rig.publish()
        await rig.pass_time(COALESCE_S / 2)
        rig.publish()
        due = rig.loop.now + COALESCE_S
        assert min(rig.loop.timers) <= due
        await rig.pass_time(COALESCE_S)
        assert replica.entries == [1, 1]


async def test_while_a_write_waits_for_replicas_each_is_told_as_soon_as_it_has_the_last() -> None:
    async with reigning() as rig:
        replica = await rig.streaming()
        for _ in range(3):
            rig.write(1)
            await rig.settle()
            assert replica.entries == [1], "at once"
            replica.ack(rig.store.last_seq)
        rig.write(1)
        await rig.settle()
        assert replica.entries == [1]
        waiting = [rig.write(1) for _ in range(3)]
        await rig.settle()
        assert replica.entries == [], "it is busy with the one before"
        replica.ack(4)
        await rig.settle()
        assert replica.entries == [3]
        replica.ack(7)
        assert all(each.done() for each in waiting)
        rig.publish()
        await rig.settle()
        assert replica.entries == [], "nobody waits any more"
        await rig.pass_time(COALESCE_S)
        assert replica.entries == [1]


async def test_a_replica_that_does_not_ack_is_told_all_the_same() -> None:
    async with reigning() as rig:
        replica = await rig.streaming()
        for _ in range(5):
            rig.write(1)
            await rig.settle()
        await rig.pass_time(COALESCE_S)
        assert replica.entries == [1, 4]


async def test_entries_that_nobody_waits_for_go_with_those_that_somebody_waits_for() -> None:
    async with reigning() as rig:
        replica = await rig.streaming()
        rig.publish()
        await rig.settle()
        replica.ack(1)
        rig.publish(2)
        await rig.settle()
        assert replica.entries == [1]
        future = rig.write(1)
        await rig.settle()
        assert replica.entries == [3]
        replica.ack(4)
        assert future.done()


async def test_a_node_that_forwards_writes_is_told_as_soon_as_it_has_the_last_for_a_while() -> None:
    async with reigning() as rig:
        hurried, other = await rig.streaming("r1"), await rig.streaming("r2")

        async def publish() -> tuple[list[int], list[int]]:
            """What each is sent at once of a new entry, which both ack."""
            rig.publish()
            await rig.settle()
            sent = hurried.entries, other.entries
            for replica in (hurried, other):
                replica.ack(replica.feed.machine.sent_seq)
            return sent

        assert await publish() == ([1], [1])
        rig.reign.hurry(hurried.member.node_id)
        rig.reign.hurry(b"?" * 16)
        assert await publish() == ([1], [])
        assert await publish() == ([1], [])
        await rig.pass_time(HURRY_S)
        assert (hurried.entries, other.entries) == ([], [2])
        assert await publish() == ([1], [1])
        assert await publish() == ([], [])
        await rig.pass_time(COALESCE_S)
        assert (hurried.entries, other.entries) == ([1], [1])


async def test_each_replica_has_a_pace_of_its_own() -> None:
    async with reigning() as rig:
        first = await rig.streaming("r1")
        rig.publish()
        await rig.pass_time(COALESCE_S / 2)
        second = await rig.streaming("r2")
        rig.publish()
        await rig.settle()
        assert (first.entries, second.entries) == ([1], [1])
        await rig.pass_time(COALESCE_S)
        assert (first.entries, second.entries) == ([1], [])


# ---- full syncs ------------------------------------------------------------------------------------------------


async def test_one_full_sync_is_sent_at_a_time_in_the_order_of_asking() -> None:
    async with reigning() as rig:
        rig.store.start_at(10)
        rig.store.snapshot = snapshot(5)
        rig.store.may_scan.clear()
        first, second, third = (rig.replica(name) for name in ("r1", "r2", "r3"))
        for replica in (first, second, third):
            replica.say(subscribe_from(0))
        await rig.until_scanning()
        assert [bool(each.take(SnapshotBegin)) for each in (first, second, third)] == [True, False, False]
        assert len(rig.store.scans) == 1
        rig.store.may_scan.set()
        await rig.until(lambda: len(rig.store.scans) == 3)
        await rig.until(lambda: all(each.feed.machine.live for each in (first, second, third)))
        assert rig.reign.full_syncs_sent == 3
        assert all(each.take(SnapshotEnd) for each in (first, second, third))


async def test_who_leaves_gives_its_place_or_the_permit_back() -> None:
    async with reigning() as rig:
        rig.store.start_at(10)
        rig.store.snapshot = snapshot(5)
        rig.store.may_scan.clear()
        holding, waiting, last = (rig.replica(name) for name in ("r1", "r2", "r3"))
        for replica in (holding, waiting, last):
            replica.say(subscribe_from(0))
        await rig.until_scanning()
        waiting.lose()
        holding.lose()
        rig.store.may_scan.set()
        await rig.until(lambda: last.feed.machine.live)
        assert waiting.take(SnapshotBegin) == []
        assert last.take(SnapshotEnd)
        assert rig.reign.full_syncs_sent == 1
        assert [each.is_open for each in rig.store.scans] == [False, False]


async def test_a_full_sync_pins_the_log_until_the_replica_streams() -> None:
    async with reigning() as rig:
        rig.store.start_at(10)
        rig.store.snapshot = snapshot(5)
        rig.store.may_scan.clear()
        replica = rig.replica()
        replica.say(subscribe_from(0))
        await rig.until_scanning()
        assert rig.reign.pins.lowest_seq == 11
        (status,) = rig.reign.status_of_replicas()
        assert (status["state"], status["retention"], status["synced_keys"]) == ("full_sync", "extended", 0)
        rig.store.may_scan.set()
        await rig.until(lambda: replica.feed.machine.live)
        replica.ack(10)
        await rig.settle()
        assert rig.reign.pins.lowest_seq is None
        (status,) = rig.reign.status_of_replicas()
        assert (status["state"], status["retention"], "synced_keys" in status) == ("streaming", "reserved", False)


async def test_a_pin_outlives_its_session_for_a_minute() -> None:
    async with reigning() as rig:
        rig.store.start_at(10)
        rig.store.snapshot = snapshot(5)
        rig.store.may_scan.clear()
        replica = rig.replica()
        replica.say(subscribe_from(0))
        await rig.until_scanning()
        await rig.pass_time(1)
        replica.lose()
        rig.store.may_scan.set()
        await rig.settle()
        assert rig.reign.pins.pinned_seq(replica.member.node_id) == 11
        for _ in range(58):
            await rig.pass_time(1)
        assert rig.reign.pins.lowest_seq == 11
        assert "pin_dropped" not in events_of(rig.shared).names()
        for _ in range(3):
            await rig.pass_time(1)
        assert rig.reign.pins.lowest_seq is None
        assert events_of(rig.shared).fields_of("pin_dropped") == {"node_id": replica.member.node_id.hex()}


async def test_a_sync_that_was_cut_is_resumed_on_its_pin() -> None:
    async with reigning() as rig:
        rig.store.start_at(10)
        rig.store.snapshot = snapshot(5)
        rig.store.may_scan.clear()
        replica = rig.replica()
        replica.say(subscribe_from(0))
        await rig.until_scanning()
        (begin,) = replica.take(SnapshotBegin)
        replica.lose()
        rig.publish(4)
        again = rig.replica()
        incoming = Incoming(begin.sync_id, begin.first_position, begin.position, b"key000002")
        again.say(Subscribe(Position(Epoch(0), 0), incoming))
        rig.store.may_scan.set()
        await rig.until(lambda: again.feed.machine.live)
        (resumed,) = [each for each in again.sent if isinstance(each, SnapshotBegin)]
        assert (resumed.sync_id, resumed.first_position, resumed.resumed) == (begin.sync_id, Position(EPOCH, 10), True)
        (end,) = [each for each in again.sent if isinstance(each, SnapshotEnd)]
        assert (end.position, end.keys) == (Position(EPOCH, 14), 2)
        assert again.entries == [4]


async def test_a_pin_that_keeps_too_much_ends_the_sync_it_is_for() -> None:
    async with reigning(wal_pin_bytes=1000) as rig:
        rig.store.start_at(10)
        rig.store.snapshot = snapshot(5)
        rig.store.may_scan.clear()
        replica = rig.replica()
        replica.say(subscribe_from(0))
        await rig.until_scanning()
        rig.publish(3, value=b"x" * 1000)
        await rig.pass_time(1)
        assert events_of(rig.shared).fields_of("pin_dropped") == {"node_id": replica.member.node_id.hex()}
        rig.store.may_scan.set()
        await rig.until(lambda: replica.is_lost)
        (error,) = replica.take(Error)
        assert (error.code, rig.reign.pins.lowest_seq) == ("sync_aborted", None)


async def test_a_trimmed_log_sends_those_that_lack_it_into_a_full_sync() -> None:
    async with reigning() as rig:
        rig.store.publish(10)
        rig.store.snapshot = snapshot(5)
        rig.reign.log_trimmed(6)
        rig.store.trim(6)
        early, late = rig.replica("r1"), rig.replica("r2")
        await early.subscribe(3)
        await late.subscribe(5)
        await rig.until(lambda: early.feed.machine.live)
        assert early.take(SnapshotBegin)
        assert late.take(SnapshotBegin) == []


# ---- sessions --------------------------------------------------------------------------------------------------


async def test_the_same_process_that_connects_anew_replaces_its_session() -> None:
    async with reigning() as rig:
        old = await rig.streaming()
        rig.publish(2)
        await rig.settle()
        new = rig.replica()
        assert old.transport.is_aborted
        assert [each.node_id for each in rig.reign.sessions] == [new.member.node_id]
        assert old.feed.machine.state == "disconnected"
        # What the old connection still says, and its end, are no business of the new one.
        old.say(Ack(2, 2, 2))
        old.lose()
        await new.subscribe(1)
        assert [each.node_id for each in rig.reign.sessions] == [new.member.node_id]
        assert new.entries == [1]
        assert rig.reign.admit(Acks(1)) == 1
        rig.publish()
        await rig.pass_time(COALESCE_S)
        assert (old.entries, new.entries) == ([2], [1])
        assert events_of(rig.shared).names().count("replica_gone") == 1


async def test_a_replaced_session_gives_back_what_it_held() -> None:
    async with reigning() as rig:
        rig.store.start_at(10)
        rig.store.snapshot = snapshot(5)
        rig.store.may_scan.clear()
        old = rig.replica()
        old.say(subscribe_from(0))
        await rig.until_scanning()
        new = rig.replica()
        assert new.feed.machine.pinned_seq == 11
        new.say(subscribe_from(0))
        rig.store.may_scan.set()
        await rig.until(lambda: new.feed.machine.live)
        assert len(new.take(SnapshotEnd)) == 1
        assert rig.reign.full_syncs_sent == 1


async def test_a_replica_that_has_seen_a_later_primary_ends_the_reign() -> None:
    async with reigning() as rig:
        replica = rig.replica()
        await replica.subscribe(0)
        stale = rig.replica("r2")
        stale.say(Subscribe(Position(Epoch.of(9, 1), 5), None))
        await rig.settle()
        assert rig.superseded == [9]
        (error,) = stale.take(Error)
        assert error.code == "stale_primary"
        rig.reign.end("stale_primary", "a later primary has reigned")
        again = rig.replica("r3")
        again.say(Subscribe(Position(Epoch.of(9, 1), 5), None))
        await rig.settle()
        assert rig.superseded == [9], "told once"
        assert [each.code for each in replica.take(Error)] == ["stale_primary"]


async def test_the_end_closes_all_sessions_with_a_reason() -> None:
    async with reigning() as rig:
        replicas = [await rig.streaming(f"r{number}") for number in range(3)]
        rig.publish()
        rig.publish()
        rig.reign.end("draining", "this node is stopping")
        await rig.settle()
        for replica in replicas:
            assert replica.take(Error) == [Error("draining", "this node is stopping")]
            assert replica.is_lost
        assert rig.reign.sessions == []


# ---- members ---------------------------------------------------------------------------------------------------


async def test_a_replica_is_a_member_before_it_is_sent_anything() -> None:
    async with reigning() as rig:
        rig.store.publish(3)
        with Hold(rig.shared.files, "save_members") as hold:
            replica = rig.replica()
            replica.say(subscribe_from(0))
            await hold.reached()
            await turns()
            replica.collect()
            assert replica.sent == []
            assert rig.members.all == (ME,)
            (status,) = rig.reign.status_of_replicas()
            assert (status["name"], status["state"]) == ("r1", "connecting")
            hold.release()
            await rig.settle()
        history, entries = replica.sent
        assert history == HistoryFrame(HISTORY, (ME, member("r1")))
        assert isinstance(entries, Entries)
        assert load_members(rig.shared.files) == rig.members.all == (ME, member("r1"))


async def test_the_others_are_told_of_a_new_member() -> None:
    async with reigning(member("r1")) as rig:
        first = await rig.streaming("r1")
        second = rig.replica("r2")
        await second.subscribe(0)
        assert first.take(HistoryFrame) == [HistoryFrame(HISTORY, (ME, member("r1"), member("r2")))]
        assert len(second.take(HistoryFrame)) == 1


async def test_two_nodes_that_come_with_a_name_at_a_time_do_not_both_get_it() -> None:
    async with reigning() as rig:
        first, second = rig.replica("twin"), rig.replica("twin", node_id=b"t" * 16)
        first.say(subscribe_from(0))
        second.say(subscribe_from(0))
        await rig.settle()
        assert first.take(HistoryFrame)
        (error,) = second.take(Error)
        assert error.code == "name_taken"
        assert "twin" in error.message
        assert rig.members.all == (ME, member("twin"))


async def test_a_primary_that_cannot_save_a_member_says_so_and_goes_on() -> None:
    disk = MemoryDisk()
    async with reigning(disk=disk) as rig:
        disk.plan.failures.append(Failure(errno.ENOSPC, "write_at", "*members*"))
        replica = rig.replica()
        await replica.subscribe(0)
        (error,) = replica.take(Error)
        assert error.code == "storage_full"
        assert "r1" in error.message
        again = rig.replica()
        await again.subscribe(0)
        assert again.take(HistoryFrame)


async def test_a_session_that_ends_while_it_becomes_a_member() -> None:
    async with reigning(member("r2")) as rig:
        other = await rig.streaming("r2")
        with Hold(rig.shared.files, "save_members") as hold:
            replica = rig.replica()
            replica.say(subscribe_from(0))
            await hold.reached()
            replica.lose()
            hold.release()
            await rig.settle()
        assert member("r1") in rig.members.all
        assert other.take(HistoryFrame)
        assert replica.sent == []


async def test_this_node_becomes_a_member_under_its_present_address() -> None:
    async with reigning(member("r1")) as rig:
        replica = await rig.streaming("r1")
        moved = ME._replace(address="10.9.9.9:7001")
        rig.reign.add_member(moved)
        await rig.settle()
        assert set(rig.members.all) == {moved, member("r1")}
        (frame,) = replica.take(HistoryFrame)
        assert set(frame.members) == {moved, member("r1")}


async def test_forget_refuses_whom_nobody_knows_and_who_is_there() -> None:
    async with reigning(member("r1"), member("r2")) as rig:
        await rig.streaming("r1")
        with pytest.raises(MemberNotFound, match=r"no member is called r9; there are p1, r1, r2") as unknown:
            await rig.reign.forget("r9")
        assert unknown.value.fields == {"name": "r9"}
        for name in ("r1", "p1"):
            with pytest.raises(MemberConnected, match=f"{name} is connected") as connected:
                await rig.reign.forget(name)
            assert connected.value.hint
        assert len(rig.members.all) == 3


async def test_forget_lets_a_member_go_with_all_that_is_kept_for_it() -> None:
    async with reigning(member("r2")) as rig:
        there, gone = await rig.streaming("r2"), await rig.streaming("r1")
        rig.publish(2)
        await rig.settle()
        gone.ack(2)
        await gone.leave()
        rig.reign.pins.pin(gone.member.node_id, 1)
        there.sent.clear()
        assert [each["name"] for each in rig.reign.status_of_replicas()] == ["r2", "r1"]
        await rig.reign.forget("r1")
        await rig.settle()
        assert load_members(rig.shared.files) == (ME, member("r2"))
        assert rig.reign.pins.lowest_seq is None
        assert [each["name"] for each in rig.reign.status_of_replicas()] == ["r2"]
        assert [each.members for each in there.take(HistoryFrame)] == [(ME, member("r2"))]
        assert events_of(rig.shared).fields_of("member_forgotten") == {"name": "r1"}
        future = rig.write(1)
        assert not future.done()
        back = rig.replica("r1")
        await back.subscribe(2)
        assert member("r1") in rig.members.all


async def test_what_a_forgotten_member_has_does_not_count() -> None:
    async with reigning(member("r2")) as rig:
        gone = await rig.streaming("r1")
        rig.store.publish(5)
        rig.shared.tail.add(1, rig.store.log)
        rig.reign.log_advanced()
        await rig.settle()
        gone.ack(5)
        await gone.leave()
        await rig.reign.forget("r1")
        future = rig.write(1)
        other = rig.replica("r2")
        await other.subscribe(0)
        other.ack(5)
        assert not future.done()
        other.ack(6)
        assert future.done()


async def test_a_full_disk_forgets_nobody() -> None:
    disk = MemoryDisk()
    async with reigning(member("r1"), disk=disk) as rig:
        disk.plan.failures.append(Failure(errno.ENOSPC, "write_at", "*members*"))
        with pytest.raises(OSError, match="No space"):
            await rig.reign.forget("r1")
        assert rig.members.all == (ME, member("r1"))
        await rig.reign.forget("r1")
        assert rig.members.all == (ME,)


async def test_a_member_that_comes_back_while_it_is_being_forgotten_is_one_again() -> None:
    async with reigning(member("r1")) as rig:
        with Hold(rig.shared.files, "save_members") as hold:
            forgetting = asyncio.create_task(rig.reign.forget("r1"))
            await hold.reached()
            back = rig.replica("r1")
            back.say(subscribe_from(0))
            await turns()
            hold.release()
            await forgetting
        await rig.settle()
        if back.is_lost:
            back = rig.replica("r1")
            await back.subscribe(0)
        assert back.feed.machine.live
        assert member("r1") in rig.members.all, "it is sent entries"


async def test_a_member_that_is_away_and_behind_is_told_of_once() -> None:
    async with reigning(member("r1"), member("away")) as rig:
        replica = await rig.streaming("r1")
        await rig.pass_time(10)
        # Nobody lacks anything.
        assert events_of(rig.shared).names().count("replica_lags") == 0
        await replica.leave()
        rig.publish(3)
        for _ in range(20):
            await rig.pass_time(1)
        said = [fields for name, fields in events_of(rig.shared).events if name == "replica_lags"]
        assert [fields["name"] for fields in said] == ["r1", "away"]
        assert said[0]["reason"] == "r1 is disconnected and has not streamed for 5 s; how far behind is not known"
        replica = await rig.streaming("r1")
        await rig.pass_time(1)
        await replica.leave()
        rig.publish(2)
        for _ in range(20):
            await rig.pass_time(1)
        said = [fields for name, fields in events_of(rig.shared).events if name == "replica_lags"][2:]
        assert [fields["reason"] for fields in said] == [
            "r1 is disconnected and has not streamed for 5 s; 2 entries behind"
        ]


# ---- what is told of it ----------------------------------------------------------------------------------------


async def test_status_has_all_members_connected_or_not() -> None:
    async with reigning(member("r1"), member("away")) as rig:
        replica = await rig.streaming("r1")
        rig.publish(3)
        await rig.settle()
        replica.say(Ack(3, 2, 1))
        await rig.pass_time(1)
        rows = {each["name"]: each for each in rig.reign.status_of_replicas()}
        assert rows["r1"] == {
            "name": "r1",
            "address": "r1.lan:7001",
            "state": "streaming",
            "sent_seq": 3,
            "acked_seq": 2,
            "applied_seq": 1,
            "lag_entries": 1,
            "lag_s": 1.0,
            "retention": "reserved",
        }
        assert rows["away"] == {
            "name": "away",
            "address": "away.lan:7001",
            "state": "disconnected",
            "sent_seq": 0,
            "acked_seq": 0,
            "applied_seq": 0,
            "lag_entries": 3,
            "lag_s": None,
            "retention": "reserved",
        }
        await replica.leave()
        rig.store.trim(4)
        rows = {each["name"]: each for each in rig.reign.status_of_replicas()}
        assert (rows["r1"]["state"], rows["r1"]["acked_seq"], rows["r1"]["retention"]) == ("disconnected", 2, "lost")


async def test_a_session_that_says_nothing_hides_nothing_of_the_one_before() -> None:
    async with reigning(member("r1")) as rig:
        rig.publish(3)
        replica = await rig.streaming("r1")
        await replica.leave()
        rig.store.trim(4)
        silent = rig.replica("r1")
        for state in ("connecting", "disconnected"):
            (row,) = rig.reign.status_of_replicas()
            assert (row["state"], row["acked_seq"], row["retention"]) == (state, 3, "reserved")
            await silent.leave()


async def test_a_member_without_an_address_is_shown_where_it_comes_from() -> None:
    async with reigning() as rig:
        await rig.streaming("r1", address="")
        (status,) = rig.reign.status_of_replicas()
        assert status["address"] == "127.0.0.1:5"


async def test_strays_are_the_members_that_are_not_connected() -> None:
    async with reigning(member("r1"), member("away")) as rig:
        await rig.streaming("r1")
        assert member("away") in rig.reign.strays
        assert member("r1") not in rig.reign.strays


# ---- the last entries ------------------------------------------------------------------------------------------


async def test_drain_waits_until_all_that_follow_have_everything() -> None:
    async with sharing() as shared:
        save_members(shared.files, (ME,))
        reign = Reign(shared, StoredMembers(shared.files, shared.disk), lambda _: None)
        await reign.drain(20)
        owner = Owner()
        async with linked(owner) as (link, peer):
            store_of(shared).publish(5)
            link.owner = reign.begin_feed(link, hello(), "")
            peer.send(subscribe_from(0))
            (frame,) = [await peer.take(Entries, skip=(HistoryFrame,))]
            assert len(frame.records) == 5
            await reign.drain(0.01)
            peer.send(Ack(5, 4, 4))
            draining = asyncio.create_task(reign.drain(20))
            await turns()
            assert not draining.done()
            peer.send(Ack(5, 5, 4))
            await draining
            # Nor is one waited for that leaves.
            store_of(shared).publish()
            reign.log_advanced()
            draining = asyncio.create_task(reign.drain(20))
            await turns()
            peer.reset()
            await draining
            link.owner = owner
            owner.link_lost(link, "it was the reign's")
        reign.end("draining", "the end")
