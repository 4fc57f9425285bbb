"""What the members say of themselves, and what of it speaks against a promotion or for another primary."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from kvnode.node.errors import PromotionRefused
from kvnode.node.replication import survey as survey_module
from kvnode.node.replication.ports import Shared
from kvnode.node.replication.survey import Survey, survey
from kvnode.protocol.fields import Member
from kvnode.protocol.messages import Hello, Role, Welcome
from kvnode.protocol.types import Epoch, History, Position, Reign
from support.fake_replicated_store import sharing, store_of
from support.peers import CLUSTER_ID, EPOCH, PATIENCE_S, REPLICA_ID, Peer, PeerServer, welcome


def member(name: str, server: PeerServer | None = None) -> Member:
    return Member(name.ljust(16, ".").encode(), name, "" if server is None else str(server.address))


def answer(name: str, last_seq: int, *epochs: Epoch, role: Role = Role.REPLICA) -> Welcome:
    """What a member says whose reigns begin at 1, 2, 3 ..."""
    history = History(tuple(Reign(epoch, first) for first, epoch in enumerate(epochs or (EPOCH,), start=1)))
    return welcome(last_seq, history, role, name=name, node_id=member(name).node_id)


class Asked:
    """A node that asks its members.

    Attributes:
        members: whom it knows, itself among them.
    """

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.members = [Member(REPLICA_ID, "r1", "127.0.0.1:1")]

    async def ask(self, *answers: tuple[PeerServer, Welcome]) -> Survey:
        """The survey, in which each of these servers is asked once."""
        asking = asyncio.create_task(survey(self.shared, self.members))
        for server, said in answers:
            peer: Peer = await server.accept()
            assert (await peer.take(Hello)).cluster_id == CLUSTER_ID
            peer.send(said)
        return await asyncio.wait_for(asking, PATIENCE_S)


@asynccontextmanager
async def asked(last_seq: int = 3) -> AsyncIterator[Asked]:
    async with sharing(role="replica") as shared:
        shared.identity = replace(shared.identity, primary=None)
        store_of(shared).publish(last_seq)
        yield Asked(shared)


def own_line(last_seq: int = 3) -> dict[str, object]:
    return {
        "name": "r1",
        "address": "127.0.0.1:1",
        "reachable": True,
        "role": "replica",
        "epoch": str(EPOCH),
        "last_seq": last_seq,
    }


async def test_alone_there_is_nobody_to_ask() -> None:
    async with asked() as at:
        at.members.append(member("nowhere"))
        found = await at.ask()
        assert found.lines == [own_line()]
        assert (found.highest_term, found.mine) == (0, Position(EPOCH, 3))
        found.check()


async def test_members_and_the_primary_are_asked_each_once() -> None:
    async with asked() as at, PeerServer() as first, PeerServer() as second, PeerServer() as gone:
        gone.stop()
        at.members += [member("r2", first), member("gone", gone)]
        # The primary may be a member, too, known by another address.
        at.members.append(member("p1", second))
        at.shared.identity = replace(at.shared.identity, primary=str(second.address))
        found = await at.ask((first, answer("r2", 2)), (second, answer("p1", 3, role=Role.PRIMARY)))
        assert (first.waiting, second.waiting) == (0, 0)
        assert [each["name"] for each in found.lines] == ["r1", "r2", "p1", "gone"]
        assert found.lines[1] == {
            "name": "r2",
            "address": str(first.address),
            "reachable": True,
            "role": "replica",
            "epoch": str(EPOCH),
            "last_seq": 2,
        }
        assert found.lines[3]["reachable"] is False
        assert "cannot connect" in found.lines[3]["reason"]


async def test_a_node_at_two_addresses_is_one_and_this_one_is_none_of_them() -> None:
    async with asked() as at, PeerServer() as first, PeerServer() as second, PeerServer() as mine:
        at.members += [member("r2", first), member("r2 before", second), member("me before", mine)]
        me = welcome(9, name="r1", node_id=REPLICA_ID, role=Role.REPLICA)
        found = await at.ask((first, answer("r2", 2)), (second, answer("r2", 2)), (mine, me))
        assert [each["name"] for each in found.lines] == ["r1", "r2"]
        found.check()


async def test_who_does_not_answer_holds_up_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "_ANSWER_S", 0.02)
    async with asked() as at, PeerServer() as silent:
        at.members.append(member("silent", silent))
        found = await at.ask()
        assert "gives no answer within 0.02 s" in found.lines[1]["reason"]
        found.check()


async def test_entries_that_came_while_others_were_asked_count() -> None:
    async with asked() as at, PeerServer() as other:
        at.members.append(member("r2", other))
        asking = asyncio.create_task(survey(at.shared, at.members))
        peer = await other.accept()
        await peer.take(Hello)
        store_of(at.shared).publish(2)
        peer.send(answer("r2", 5))
        found = await asking
        assert found.lines[0] == own_line(5)
        found.check()


LATER = Epoch.of(4, 1)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (answer("r2", 3), None),
        (answer("r2", 0), None),
        (answer("r2", 99, Epoch.of(2, 1)), None),
        (answer("r2", 4), "member_ahead"),
        (answer("r2", 2, EPOCH, LATER), "member_ahead"),
        # It has heard of a later reign, and has no entry of it.
        (answer("r2", 1, EPOCH, LATER), None),
        (answer("r2", 0, role=Role.PRIMARY), "primary_answers"),
        (answer("r2", 99, LATER, role=Role.PRIMARY), "primary_answers"),
    ],
)
async def test_what_speaks_against_a_promotion(said: Welcome, reason: str | None) -> None:
    async with asked() as at, PeerServer() as other:
        at.members.append(member("r2", other))
        found = await at.ask((other, said))
        if reason is None:
            found.check()
            return
        with pytest.raises(PromotionRefused, match=r"r2 .*; nothing was changed") as refused:
            found.check()
        assert (refused.value.fields["reason"], refused.value.fields["members"]) == (reason, found.lines)
        assert refused.value.hint


@pytest.mark.parametrize(
    ("said", "later"),
    [
        (answer("r2", 3), None),
        (answer("r2", 3, Epoch.of(2, 9)), None),
        (answer("r2", 3, LATER), 4),
        (answer("r2", 0, EPOCH, LATER), 4),
        # Two reigns of one term: of these one ends, and it is the same one on both sides.
        (answer("r2", 3, Epoch(EPOCH + 1), role=Role.PRIMARY), 3),
        (answer("r2", 3, Epoch(EPOCH - 1), role=Role.PRIMARY), None),
        (answer("r2", 3, Epoch(EPOCH + 1)), None),
    ],
)
async def test_who_has_reigned_later(said: Welcome, later: int | None) -> None:
    async with asked() as at, PeerServer() as other:
        at.members.append(member("r2", other))
        found = await at.ask((other, said))
        assert found.later_term(EPOCH) == later
        assert found.highest_term == said.history.current.term
