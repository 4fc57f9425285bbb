"""Before a node opens its data: what a join does and refuses, and how a primary learns that another one has reigned."""

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from kvnode.node import joining
from kvnode.node.config import Address
from kvnode.node.errors import FileDamaged, JoinRefused
from kvnode.node.joining import FINAL_ANSWERS, join, later_term
from kvnode.node.replication.members import save_members
from kvnode.node.storage.datadir import Identity, StateFiles
from kvnode.protocol.fields import Member
from kvnode.protocol.messages import Error, Hello, Message, Ping, Purpose, Role, Welcome
from kvnode.protocol.types import Epoch, History, Reign
from support.crash_plan import KEPT, Failure
from support.events import CapturedEvents
from support.fake_replicated_store import make_identity
from support.holds import turns
from support.peers import CLUSTER_ID, PATIENCE_S, PRIMARY_ID, Peer, PeerServer, until, welcome
from support.simulated_node import LAYOUT, Machine, tiny_config

ON_BOTH_LOOPS = True

OWN = Address("127.0.0.1", 7009)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the pauses between attempts, and what is waited for who does not answer."""
    monkeypatch.setattr(joining, "_RETRY_FIRST_S", 0.005)
    monkeypatch.setattr(joining, "_RETRY_LAST_S", 0.02)
    monkeypatch.setattr(joining, "_ASK_S", 0.3)


def files_of(machine: Machine) -> StateFiles:
    return StateFiles(machine.disk, LAYOUT)


def known(identity: Identity | None = None, history: History | None = None) -> Machine:
    """A machine with a directory of this node; with an empty one if none is given."""
    machine = Machine.new()
    if identity is not None:
        files_of(machine).save_identity(identity)
    if history is not None:
        files_of(machine).save_history(history)
    return machine


class Joining:
    """A join under way."""

    def __init__(self, machine: Machine, primary: Address, **settings: Any) -> None:
        self.machine = machine
        self.log = CapturedEvents()
        config = tiny_config(**{"name": "r1", "peer": OWN, **settings})
        self.before = machine.disk.snapshot()
        self.task = asyncio.create_task(join(config, machine.disk, primary, self.log))

    async def done(self) -> Identity:
        """The identity that is on the disk once it is done."""
        await asyncio.wait_for(self.task, PATIENCE_S)
        identity = files_of(self.machine.after_crash(KEPT)).load_identity()
        assert identity is not None
        return identity

    async def refused(self) -> JoinRefused:
        """Why it was refused; nothing was changed."""
        with pytest.raises(JoinRefused) as refused:
            await asyncio.wait_for(self.task, PATIENCE_S)
        assert self.machine.disk.snapshot() == self.before
        assert "joined" not in self.log.names()
        return refused.value


async def answer(server: PeerServer, *said: Message | bytes) -> Hello:
    """Answer the next connection's HELLO."""
    peer = await server.accept()
    hello = await peer.take(Hello)
    peer.send(*said)
    return hello


@asynccontextmanager
async def joins(machine: Machine | None = None, **settings: Any) -> AsyncIterator[tuple[Joining, PeerServer]]:
    """A join of the port's primary."""
    async with PeerServer() as server:
        at = Joining(machine or known(), server.address, **settings)
        try:
            yield at, server
        finally:
            at.task.cancel()
            await asyncio.wait([at.task])


# ---- joining ---------------------------------------------------------------------------------------------------


async def test_a_new_directory_becomes_a_replicas() -> None:
    async with joins() as (at, server):
        hello = await answer(server, welcome(5))
        assert (hello.purpose, hello.cluster_id) == (Purpose.PROBE, b"")
        identity = await at.done()
        assert (identity.name, identity.role, identity.primary) == ("r1", "replica", str(server.address))
        assert identity.primary_id == PRIMARY_ID.hex()
        assert identity.cluster_bytes == CLUSTER_ID
        assert at.log.fields_of("joined") == {
            "primary": server.address,
            "name": "p1",
            "cluster_id": CLUSTER_ID.hex(),
        }


async def test_a_replica_that_follows_it_already_asks_nobody() -> None:
    async with PeerServer() as server:
        machine = known(make_identity("replica", primary=str(server.address)))
        at = Joining(machine, server.address)
        identity = await at.done()
        assert identity == make_identity("replica", primary=str(server.address))
        assert at.log.names() == []
        assert server.waiting == 0


async def test_a_replica_follows_another_address() -> None:
    async with joins(known(make_identity("replica"))) as (at, server):
        hello = await answer(server, welcome(5))
        assert hello.cluster_id == CLUSTER_ID
        assert await at.done() == make_identity("replica", primary=str(server.address))


async def test_a_former_primary_becomes_a_replica_of_a_later_one() -> None:
    promoted = {"promoted_from": "127.0.0.1:1", "promoted_from_id": "01" * 16}
    was = make_identity("primary", node_id=b"o".hex() * 16, superseded_term=3, **promoted)
    async with joins(known(was, History((Reign(Epoch.of(2, 1), 1),)))) as (at, server):
        await answer(server, welcome(5))
        identity = await at.done()
        assert identity == replace(
            was,
            role="replica",
            primary=str(server.address),
            primary_id=PRIMARY_ID.hex(),
            superseded_term=None,
            promoted_from=None,
            promoted_from_id=None,
        )


# ---- waiting ---------------------------------------------------------------------------------------------------


async def test_a_primary_that_is_not_there_yet_is_waited_for() -> None:
    async with PeerServer() as server:
        server.stop()
        at = Joining(known(), server.address)
        await until(lambda: at.log.names().count("join_waits") >= 3)
        pauses = [fields["retry_s"] for name, fields in at.log.events if name == "join_waits"]
        assert pauses[:3] == [0.005, 0.01, 0.02]
        reason = str(at.log.events[0][1]["reason"])
        assert "cannot connect" in reason
        await server.listen()
        await answer(server, welcome(5))
        assert (await at.done()).role == "replica"


@pytest.mark.parametrize(
    "said",
    [
        Error("draining", "this node is stopping"),
        Error("overloaded", "this node has 1000 peer connections already"),
        Error("hello_timeout", "no HELLO came within 10 s"),
        Error("of_a_later_version", "?"),
        Ping(1, 1),
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"",
    ],
)
async def test_what_may_be_otherwise_soon_is_waited_for_too(said: Message | bytes) -> None:
    async with joins() as (at, server):
        for _ in range(2):
            peer = await server.accept()
            await peer.take(Hello)
            peer.send(said)
            peer.half_close()
        await answer(server, welcome(5))
        assert (await at.done()).role == "replica"
        assert at.log.names() == ["join_waits", "join_waits", "joined"]


async def test_a_primary_that_does_not_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "_ANSWER_S", 0.02)
    async with joins() as (at, server):
        silent = await server.accept()
        await until(lambda: "join_waits" in at.log.names())
        assert "gives no answer within 0.02 s" in str(at.log.events[0][1]["reason"])
        assert [type(each) for each in await silent.rest()] == [Hello]
        monkeypatch.setattr(joining, "_ANSWER_S", PATIENCE_S)
        answered = False
        while not answered:
            peer: Peer = await server.accept()
            peer.send(welcome(5))
            await turns(20)
            answered = at.task.done()
        await at.done()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b"])
async def test_a_host_that_does_not_exist_is_waited_for(host: str) -> None:
    at = Joining(known(), Address(host, 7001))
    await until(lambda: at.log.names().count("join_waits") >= 2)
    at.task.cancel()
    await asyncio.wait([at.task])
    assert f"cannot connect to {host}:7001" in str(at.log.events[0][1]["reason"])


# ---- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["peer", "advertise"])
async def test_its_own_address_is_refused_without_asking(setting: str) -> None:
    async with PeerServer() as server:
        at = Joining(known(), server.address, **{setting: server.address})
        error = await at.refused()
        assert (error.code, str(server.address) in error.message) == ("self_join", True)
        assert error.hint == "name the primary's, or give this node another"
        assert server.waiting == 0


@pytest.mark.parametrize("code", sorted(FINAL_ANSWERS))
async def test_a_final_refusal_ends_it_with_the_primarys_words(code: str) -> None:
    async with joins(known(make_identity("replica"))) as (at, server):
        await answer(server, Error(code, "do this or that"))
        error = await at.refused()
        assert (error.code, error.message) == (code, f"{server.address} refuses: do this or that")


async def test_a_directory_of_another_cluster_is_told_what_to_do() -> None:
    async with joins(known(make_identity("replica", cluster_id="ee" * 16))) as (at, server):
        hello = await answer(server, Error("wrong_cluster", "this node belongs to cluster cc"))
        assert hello.cluster_id == b"\xee" * 16
        error = await at.refused()
        assert error.code == "wrong_cluster"
        assert error.hint == "check the address, or join with an empty data directory"


@pytest.mark.parametrize("empty", [True, False])
async def test_replicas_are_not_followed(empty: bool) -> None:
    async with joins(known() if empty else known(make_identity("replica"))) as (at, server):
        await answer(server, welcome(5, role=Role.REPLICA, name="r2"))
        error = await at.refused()
        assert (error.code, error.message) == (
            "not_primary",
            f"r2 at {server.address} is a replica, and replicas follow primaries only",
        )
        assert error.hint == "`kvnode status` of that node names its primary"


async def test_a_copy_of_the_primarys_directory_is_refused() -> None:
    async with joins(known(make_identity("primary"))) as (at, server):
        await answer(server, welcome(5))
        error = await at.refused()
        assert error.code == "self_join"
        assert "copied directory cannot join" in str(error.hint)


#: What a node that was promoted remembers of the primary before: HERE is the address where that answers now.
HERE = "HERE"
UNKNOWING: list[dict[str, str]] = [
    {"promoted_from": HERE},
    {"promoted_from": HERE, "promoted_from_id": PRIMARY_ID.hex()},
    {"promoted_from": "localhost:1", "promoted_from_id": PRIMARY_ID.hex()},
]
OTHERS: list[dict[str, str]] = [
    {},
    {"promoted_from": "localhost:1"},
    {"promoted_from": HERE, "promoted_from_id": "02" * 16},
]


def promoted_over(fields: dict[str, str], address: Address) -> dict[str, str]:
    return {name: str(address) if text == HERE else text for name, text in fields.items()}


@pytest.mark.parametrize(
    ("term", "fields", "code"),
    [
        *((3, fields, "stale_primary") for fields in UNKNOWING),
        *((3, fields, None) for fields in OTHERS),
        (2, {}, "stale_primary"),
        (4, UNKNOWING[1], None),
    ],
)
async def test_a_primary_follows_no_earlier_one(term: int, fields: dict[str, str], code: str | None) -> None:
    async with PeerServer() as server:
        identity = make_identity("primary", node_id=b"o".hex() * 16, **promoted_over(fields, server.address))
        at = Joining(known(identity, History((Reign(Epoch.of(3, 1), 1),))), server.address)
        await answer(server, welcome(5, History((Reign(Epoch.of(term, 2), 1),))))
        if code is None:
            assert (await at.done()).role == "replica"
            return
        error = await at.refused()
        assert error.code == code
        assert f"this node has reigned with term 3 since, p1 at {server.address}" in error.message
        assert "`kvnode start`" in str(error.hint)
        assert "promote p1 again first" in str(error.hint)


# ---- the directory ---------------------------------------------------------------------------------------------


async def test_a_directory_that_is_damaged_is_not_touched() -> None:
    machine = known(make_identity("replica"))
    machine.disk.put_file(LAYOUT.node, b"{}")
    async with joins(machine) as (at, server):
        with pytest.raises(FileDamaged):
            await asyncio.wait_for(at.task, PATIENCE_S)
        assert server.waiting == 0
        assert machine.disk.snapshot() == at.before


async def test_a_disk_that_refuses_leaves_the_directory_as_it_was() -> None:
    machine = known(make_identity("replica"))
    async with joins(machine) as (at, server):
        machine.plan.failures.append(Failure(errno.ENOSPC, "write_at", "*node.json*"))
        await answer(server, welcome(5))
        with pytest.raises(OSError, match="No space"):
            await asyncio.wait_for(at.task, PATIENCE_S)
        assert files_of(machine).load_identity() == make_identity("replica")


# ---- who reigns ------------------------------------------------------------------------------------------------


class Members:
    """The members of a primary that is about to start, each with its answer."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.machine = Machine.new()
        self.opened = self.machine.open(tiny_config(name="p1"))
        self.log = CapturedEvents()
        self.members = [Member(bytes.fromhex(self.opened.identity.node_id), "p1", "127.0.0.1:1")]
        self.answers: list[tuple[PeerServer, Welcome | None]] = []

    @property
    def own_term(self) -> int:
        return self.opened.storage.history.current.term

    async def add(self, said: Welcome | None) -> Address:
        """A member that answers so; not at all if None."""
        server = await self._stack.enter_async_context(PeerServer())
        name = f"m{len(self.members)}"
        self.members.append(Member(name.ljust(16, ".").encode(), name, str(server.address)))
        self.answers.append((server, said))
        return server.address

    async def ask(self) -> tuple[int | None, int]:
        """What `later_term` finds."""
        save_members(self.opened.files, tuple(self.members))
        asking = asyncio.create_task(later_term(self.opened, self.log))
        for server, said in self.answers:
            if said is not None:
                hello = await answer(server, said)
                assert hello.cluster_id == self.opened.identity.cluster_bytes
        return await asyncio.wait_for(asking, PATIENCE_S)


@asynccontextmanager
async def members() -> AsyncIterator[Members]:
    async with AsyncExitStack() as stack:
        yield Members(stack)


def seen(term: int, role: Role = Role.REPLICA) -> Welcome:
    return welcome(5, History((Reign(Epoch.of(term, 3), 1),)), role)


async def test_without_other_members_nobody_is_asked() -> None:
    async with members() as at:
        assert await at.ask() == (None, 0)


async def test_members_that_have_seen_nothing_later() -> None:
    async with members() as at:
        await at.add(seen(1))
        await at.add(welcome(0, History(), Role.REPLICA))
        at.members.append(Member(b"nowhere" + b"." * 9, "nowhere", ""))
        assert at.own_term == 1
        assert await at.ask() == (None, 1)
        assert at.log.names() == []


async def test_a_member_that_has_seen_a_later_primary_says_so() -> None:
    async with members() as at:
        await at.add(seen(1))
        address = await at.add(seen(7))
        assert await at.ask() == (7, 7)
        fields = at.log.fields_of("later_primary_found")
        assert (fields["term"], fields["later_term"], fields["told_by"]) == (1, 7, str(address))


async def test_another_primary_of_the_same_term_goes_on() -> None:
    async with members() as at:
        await at.add(seen(1, Role.PRIMARY))
        assert await at.ask() == (1, 1)


@pytest.mark.parametrize("fields", UNKNOWING)
async def test_the_primary_that_this_node_was_promoted_over_is_none_to_give_way_to(fields: dict[str, str]) -> None:
    """It came back when nobody could tell it of the promotion, and so began a reign of the same term."""
    async with members() as at:
        address = await at.add(seen(1, Role.PRIMARY))
        at.opened.identity = replace(at.opened.identity, **promoted_over(fields, address))
        assert await at.ask() == (None, 1)


@pytest.mark.parametrize("fields", OTHERS)
async def test_to_every_other_one_of_the_same_term_it_gives_way(fields: dict[str, str]) -> None:
    async with members() as at:
        address = await at.add(seen(1, Role.PRIMARY))
        at.opened.identity = replace(at.opened.identity, **promoted_over(fields, address))
        assert await at.ask() == (1, 1)


async def test_one_that_reigns_with_a_later_term_is_given_way_to_even_so() -> None:
    """It has heard of this node's reign, and was promoted again."""
    async with members() as at:
        address = await at.add(seen(2, Role.PRIMARY))
        at.opened.identity = replace(at.opened.identity, promoted_from=str(address))
        assert await at.ask() == (2, 2)


async def test_an_earlier_primary_is_none_to_give_way_to() -> None:
    async with members() as at:
        await at.add(welcome(0, History(), Role.PRIMARY))
        assert (await at.ask())[0] is None


async def test_members_that_do_not_answer_hold_up_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "_ASK_S", 0.05)
    async with members() as at:
        await at.add(None)
        at.members.append(Member(b"a..b" + b"." * 12, "a..b", "a..b:7001"))
        assert await at.ask() == (None, 0)
