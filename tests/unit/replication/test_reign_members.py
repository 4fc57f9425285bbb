"""A primary's members: who becomes one and who is let go, what is told of them, and what they get at the end."""

import asyncio
import errno

import pytest

from kvnode.node.api import Acks
from kvnode.node.errors import MemberConnected, MemberNotFound
from kvnode.node.replication import reign as reign_module
from kvnode.node.replication.members import StoredMembers, load_members, save_members
from kvnode.node.replication.reign import Reign
from kvnode.protocol.messages import (
    Ack,
    Entries,
    Error,
    HistoryFrame,
)
from support.crash_plan import Failure
from support.fake_replicated_store import events_of, sharing, store_of
from support.holds import Hold, turns
from support.link_rig import Owner, linked
from support.memory_disk import MemoryDisk
from support.peers import HISTORY, hello, subscribe_from
from support.reign_rig import ME, member, reigning

#: How often a replica is told under load, and for how long one is hurried that forwards writes.
COALESCE_S, HURRY_S = reign_module._COALESCE_S, reign_module._HURRY_S

MAJORITY = Acks(None)


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
