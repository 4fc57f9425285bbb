"""A primary's reign: who is admitted, told, waited for, permitted and pinned, and how sessions follow each other."""

import pytest

from kvnode.node.api import Acks
from kvnode.node.errors import NotEnoughReplicas, OutcomeUnknown, ReplicationTimeout
from kvnode.node.replication import reign as reign_module
from kvnode.protocol.messages import (
    Ack,
    Entries,
    Error,
    SnapshotBegin,
    SnapshotEnd,
    Subscribe,
)
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import Epoch, Position
from support.fake_replicated_store import events_of
from support.holds import turns
from support.peers import EPOCH, subscribe_from
from support.reign_rig import member, reigning, snapshot

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
