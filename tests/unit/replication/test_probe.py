"""Asking a node who it is: what it says, or why it cannot be asked."""

import asyncio

import pytest

from kvnode.node.config import Address
from kvnode.node.replication.probe import Found, ProbeFailed, probe, probe_all
from kvnode.protocol.messages import Error, Hello, Message, Ping, Purpose, Role
from kvnode.protocol.types import Epoch, History, Position, Reign
from support.peers import CLUSTER_ID, HISTORY, PATIENCE_S, Peer, PeerServer, welcome


async def answered(server: PeerServer, *answers: Message | bytes, cluster_id: bytes = b"") -> tuple[Hello, Peer, Found]:
    """A probe that is answered so."""
    asking = asyncio.create_task(probe(server.address, PATIENCE_S, cluster_id))
    peer = await server.accept()
    hello = await peer.take(Hello)
    peer.send(*answers)
    return hello, peer, await asking


async def failed(server: PeerServer, *answers: Message | bytes, then: str = "half_close") -> ProbeFailed:
    """A probe that is answered so, and the connection ended."""
    asking = asyncio.create_task(probe(server.address, PATIENCE_S))
    peer = await server.accept()
    await peer.take(Hello)
    peer.send(*answers)
    await peer.flushed()
    getattr(peer, then)()
    with pytest.raises(ProbeFailed) as error:
        await asking
    return error.value


async def test_a_node_says_who_it_is_and_the_probe_leaves() -> None:
    history = History((Reign(Epoch.of(1, 5), 1), Reign(Epoch.of(4, 6), 10)))
    async with PeerServer() as server:
        said = welcome(12, history, Role.REPLICA)
        hello, peer, found = await answered(server, said, cluster_id=CLUSTER_ID)
        assert found == Found(said)
        assert (found.position, found.term) == (Position(Epoch.of(4, 6), 12), 4)
        assert (hello.purpose, hello.cluster_id, hello.name, hello.address) == (Purpose.PROBE, CLUSTER_ID, "", "")
        assert await peer.rest() == []


async def test_a_node_without_entries_has_seen_its_reign_all_the_same() -> None:
    async with PeerServer() as server:
        hello, _, found = await answered(server, welcome(0, HISTORY))
        assert (found.position, found.term) == (Position(Epoch(0), 0), 3)
        assert hello.cluster_id == b""


async def test_each_probe_is_somebody_else() -> None:
    async with PeerServer() as server:
        first, _, _ = await answered(server, welcome())
        second, _, _ = await answered(server, welcome())
        assert first.node_id != second.node_id


async def test_a_refusal_has_its_code() -> None:
    async with PeerServer() as server:
        error = await failed(server, Error("wrong_cluster", "this node belongs to another"))
        assert (error.refused, error.message) == ("wrong_cluster", "this node belongs to another")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Ping(1, 1), "PING came instead of WELCOME"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP"),
        (b"\xff\xff\xff\xff", "a frame announces"),
        (b"\x00\x00\x00\x05abc", "the stream ends inside a frame"),
        (b"", "the other side closed the connection"),
    ],
)
async def test_what_is_no_answer_is_told(answer: Message | bytes, told: str) -> None:
    async with PeerServer() as server:
        error = await failed(server, answer)
        assert told in error.message
        assert error.refused is None


async def test_a_reset_is_told() -> None:
    async with PeerServer() as server:
        error = await failed(server, then="reset")
        assert str(server.address) in error.message


async def test_silence_ends() -> None:
    async with PeerServer() as server:
        with pytest.raises(ProbeFailed, match=r"127\.0\.0\.9:\d+ gives no answer within 0\.02 s") as error:
            await probe(server.address, 0.02)
        assert error.value.refused is None
        peer = await server.accept()
        await peer.take(Hello)
        assert await peer.rest() == []


async def test_nobody_there() -> None:
    async with PeerServer() as server:
        server.stop()
        with pytest.raises(ProbeFailed, match=f"cannot connect to {server.address}: ") as error:
            await probe(server.address, PATIENCE_S)
        assert error.value.refused is None


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 64])
async def test_a_host_that_cannot_be(host: str) -> None:
    with pytest.raises(ProbeFailed, match=f"cannot connect to {host}:7001: "):
        await probe(Address(host, 7001), PATIENCE_S)


async def test_a_probe_that_is_given_up_leaves_nothing() -> None:
    async with PeerServer() as server:
        asking = asyncio.create_task(probe(server.address, PATIENCE_S))
        peer = await server.accept()
        await peer.take(Hello)
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()
        assert await peer.rest() == []


async def test_several_are_asked_at_once_and_each_answers_for_itself() -> None:
    async with PeerServer() as first, PeerServer() as second, PeerServer() as gone, PeerServer() as silent:
        gone.stop()
        wanted = [first.address, gone.address, second.address, first.address, silent.address]
        asking = asyncio.create_task(probe_all(wanted, 0.5, CLUSTER_ID))
        for server, seq in ((second, 7), (first, 4)):
            peer = await server.accept()
            await peer.take(Hello)
            peer.send(welcome(seq))
        found = await asking
        assert list(found) == [first.address, gone.address, second.address, silent.address]
        assert found[first.address] == Found(welcome(4))
        assert found[second.address] == Found(welcome(7))
        assert isinstance(found[gone.address], ProbeFailed)
        assert isinstance(found[silent.address], ProbeFailed)
        assert first.waiting == 0, "an address is asked once"
