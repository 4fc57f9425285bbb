"""What a scrape is told of replication, where it is known: a primary's replicas, and a replica's primary."""

from kvnode.node.metrics import ReplicaMeasures
from kvnode.protocol.messages import Hello, HistoryFrame, Subscribe
from support.peers import HISTORY, MEMBERS, subscribe_from, welcome
from support.reign_rig import ReignRig, member, reigning
from support.replica_rig import following, send_entries


def only(rig: ReignRig) -> ReplicaMeasures:
    """Of the one replica."""
    (measures,) = rig.reign.measures
    return measures


async def test_a_replica_that_follows() -> None:
    async with reigning(member("r1")) as rig:
        rig.publish(2)
        replica = await rig.streaming("r1")
        first = only(rig)
        assert (first.name, first.state, first.sent_seq, first.acked_seq) == ("r1", "streaming", 2, 2)
        assert (first.lag_entries, first.lag_s, first.sessions) == (0, 0.0, 1)
        assert first.sent_bytes == replica.link.written > 0
        rig.publish(3)
        await rig.pass_time(1.5)
        behind = only(rig)
        assert (behind.sent_seq, behind.acked_seq, behind.lag_entries) == (5, 2, 3)
        assert behind.lag_s is not None
        assert behind.lag_s >= 1.5
        replica.ack(5)
        await rig.settle()
        assert (only(rig).lag_entries, only(rig).lag_s) == (0, 0.0)


async def test_of_one_that_left_the_last_is_known_but_not_the_time() -> None:
    async with reigning(member("r1")) as rig:
        rig.publish(2)
        replica = await rig.streaming("r1")
        sent_bytes = replica.link.written
        await replica.leave()
        rig.publish(4)
        gone = only(rig)
        assert gone == ReplicaMeasures("r1", "disconnected", 2, 2, 4, None, 1, sent_bytes)
        again = await rig.streaming("r1")
        assert (only(rig).state, only(rig).sessions) == ("streaming", 2)
        assert only(rig).sent_bytes == sent_bytes + again.link.written


async def test_one_that_never_came_in_this_reign() -> None:
    async with reigning(member("r1")) as rig:
        rig.publish(3)
        assert only(rig) == ReplicaMeasures("r1", "disconnected", 0, 0, 3, None, 0, 0)


async def test_one_that_is_no_member_yet_is_not_shown() -> None:
    """Its name may be another's still, and a name must not be there twice."""
    async with reigning(member("r1")) as rig:
        joining = rig.replica("r2")
        assert [each.name for each in rig.reign.measures] == ["r1"]
        joining.say(subscribe_from(0))
        await rig.until(lambda: len(rig.reign.measures) == 2)
        assert [each.name for each in rig.reign.measures] == ["r1", "r2"]


async def test_who_was_forgotten_is_gone() -> None:
    async with reigning(member("r1"), member("r2")) as rig:
        replica = await rig.streaming("r1")
        await replica.leave()
        await rig.reign.forget("r1")
        assert [each.name for each in rig.reign.measures] == ["r2"]
        # It is counted anew if it comes back.
        await rig.streaming("r1")
        assert {each.name: each.sessions for each in rig.reign.measures} == {"r1": 1, "r2": 0}


async def test_a_primary_seen_from_its_replica() -> None:
    async with following() as at:
        assert (at.following.measures.is_connected, at.following.measures.received_bytes) == (False, 0)
        peer = await at.accept()
        await peer.take(Hello)
        peer.send(welcome(3))
        await peer.take(Subscribe)
        peer.send(HistoryFrame(HISTORY, MEMBERS))
        await send_entries(peer, 1, 1)
        await at.applied(1)
        measures = at.following.measures
        assert (measures.is_connected, measures.connections, measures.lag_entries) == (True, 1, 2)
        first_bytes = measures.received_bytes
        assert first_bytes > 0
        at.loop.advance(0.5)
        assert at.following.measures.lag_s >= 0.5
        peer.reset()
        await at.retry()
        peer = await at.accept()
        await peer.take(Hello)
        await at.until(lambda: at.following.measures.connections == 2)
        assert at.following.measures.received_bytes == first_bytes
        peer.send(welcome(3))
        await peer.take(Subscribe)
        assert at.following.measures.received_bytes > first_bytes
