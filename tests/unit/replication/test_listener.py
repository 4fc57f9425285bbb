"""The peer port: who connects is waited for, counted, and told why not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from kvnode.node.config import Address, Config
from kvnode.node.replication import link as link_module
from kvnode.node.replication import listener as listener_module
from kvnode.node.replication.link import PeerLink
from kvnode.node.replication.listener import PeerListener
from kvnode.protocol.codec import MAX_FRAME_BYTES, encode
from kvnode.protocol.messages import Error, Hello, Message, Ping, Purpose, Status, StatusResult
from support.frames import SAMPLES
from support.holds import turns
from support.link_rig import Owner
from support.peers import PATIENCE_S, Peer, connected, hello


class Port:
    """A listener, and who was let in.

    Attributes:
        greeted: the first frames that were HELLO; each link is its owner's from then on.
    """

    def __init__(self, hello_timeout_s: float) -> None:
        self.greeted: list[Hello] = []
        self.owners: list[Owner] = []
        self.address = Address("127.0.0.1", 0)
        self.listener = PeerListener(Config(peer=self.address), self._greet, hello_timeout_s=hello_timeout_s)

    async def until(self, count: int) -> None:
        """Return when so many connections are open."""
        async with asyncio.timeout(PATIENCE_S):
            while self.listener.connection_count != count:
                await turns(1)

    def _greet(self, link: PeerLink, said: Hello) -> None:
        self.greeted.append(said)
        if said.name == "unwanted":
            link.refuse("name_taken", "another node is called so")
            return
        owner = Owner()
        self.owners.append(owner)
        link.owner = owner
        link.trust(MAX_FRAME_BYTES)
        link.send(Ping(1, 1))


@asynccontextmanager
async def listening(hello_timeout_s: float = PATIENCE_S) -> AsyncIterator[Port]:
    port = Port(hello_timeout_s)
    port.address = await port.listener.start()
    try:
        yield port
    finally:
        await port.listener.close("the end of the test")
        await port.until(0)


async def greeted(peer: Peer, name: str = "r1") -> None:
    peer.send(hello(name=name))
    await peer.take(Ping, skip=())


async def test_the_first_frame_decides_and_the_session_goes_to_its_owner() -> None:
    async with listening() as port, connected(port.address) as peer:
        peer.send(hello(Purpose.OBSERVE), Status(1))
        await peer.take(Ping, skip=())
        assert port.greeted == [hello(Purpose.OBSERVE)]
        (owner,) = port.owners
        await owner.until(lambda: owner.frames)
        assert owner.frames == [Status(1)]
        peer.send(StatusResult(1, b"x" * 100_000))
        await owner.until(lambda: len(owner.frames) == 2)
        peer.reset()
        await owner.lost()
        await port.until(0)


async def test_who_is_refused_is_told_so() -> None:
    async with listening() as port, connected(port.address) as peer:
        peer.send(hello(name="unwanted"), Status(1))
        assert await peer.refused() == Error("name_taken", "another node is called so")
        await port.until(0)


@pytest.mark.parametrize("message", [each for each in SAMPLES.values() if not isinstance(each, Hello)], ids=type)
async def test_before_hello_nothing_else_counts(message: Message) -> None:
    async with listening() as port, connected(port.address) as peer:
        peer.send(message, hello())
        assert await peer.refused() == Error("protocol_error", f"{message.TYPE.name} came before HELLO")
        assert port.greeted == []


async def test_a_strangers_first_frame_is_small() -> None:
    async with listening() as port, connected(port.address) as peer:
        peer.send(encode(hello(features=("x" * 64,) * 300))[:4])
        error = await peer.refused()
        assert (error.code, "over the limit of 16384" in error.message) == ("protocol_error", True)
        assert port.greeted == []


async def test_an_http_client_is_told_that_this_is_another_port() -> None:
    async with listening() as port, connected(port.address) as peer:
        peer.send(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
        assert "HTTP, which has a port of its own" in (await peer.refused()).message


@pytest.mark.parametrize("sent", [b"", encode(hello())[:7], encode(hello())[:3]])
async def test_who_says_no_hello_in_time_is_told_and_closed(sent: bytes) -> None:
    async with listening(hello_timeout_s=0.02) as port, connected(port.address) as peer:
        peer.send(sent)
        assert await peer.refused() == Error("hello_timeout", "no HELLO came within 0.02 s")
        await port.until(0)


async def test_who_has_said_hello_has_all_the_time() -> None:
    async with listening(hello_timeout_s=0.01) as port, connected(port.address) as peer:
        await greeted(peer)
        async with connected(port.address) as later:
            assert (await later.refused()).code == "hello_timeout"
        assert peer.is_open


async def test_who_leaves_without_a_word_is_no_event() -> None:
    async with listening() as port:
        for _ in range(20):
            async with connected(port.address) as peer:
                peer.close()
        async with connected(port.address) as peer:
            peer.half_close()
            assert await peer.rest() == []
        await port.until(0)


async def test_past_the_limit_new_ones_are_told_and_the_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "MAX_CONNECTIONS", 5)
    async with listening() as port, AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(connected(port.address)) for _ in range(5)]
        for number, peer in enumerate(peers):
            await greeted(peer, f"r{number}")
        async with connected(port.address) as late:
            late.send(hello(name="late"))
            assert await late.refused() == Error("overloaded", "this node has 5 peer connections already")
        await port.until(5)
        assert all(peer.is_open for peer in peers)
        peers[0].reset()
        await port.until(4)
        async with connected(port.address) as next_one:
            await greeted(next_one, "next")


async def test_the_end_is_told_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening() as port, AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(connected(port.address)) for _ in range(4)]
        for number, peer in enumerate(peers[:3]):
            await greeted(peer, f"r{number}")
        await port.until(4)
        await port.listener.close("this node is stopping")
        for peer in peers:
            assert await peer.refused() == Error("draining", "this node is stopping")
        assert port.listener.connection_count == 0
        with pytest.raises(OSError, match=r"refused|Connect"):
            async with connected(port.address):
                pass


async def test_who_takes_nothing_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "_LAST_FRAMES_S", 0.02)
    assert link_module._LINGER_S > 1
    async with listening() as port, connected(port.address, kernel_bytes=4096) as peer:
        await greeted(peer)
        peer.pause()
        (owner,) = port.owners
        link = await asyncio.wait_for(asyncio.shield(_link_of(port)), PATIENCE_S)
        for _ in range(200):
            link.send(StatusResult(1, b"x" * 100_000))
        await turns()
        await port.listener.close("this node is stopping")
        assert port.listener.connection_count == 0
        assert owner.reason is not None


async def test_no_more_are_accepted_while_those_that_are_there_stay() -> None:
    async with listening() as port, connected(port.address) as peer:
        await greeted(peer)
        port.listener.stop_accepting()
        port.listener.stop_accepting()
        await turns()
        with pytest.raises(OSError, match=r"refused|Connect"):
            async with connected(port.address):
                pass
        assert peer.is_open


async def test_an_address_that_is_taken_is_an_error() -> None:
    async with listening() as port:
        taken = PeerListener(Config(peer=port.address), lambda *_: None)
        with pytest.raises(OSError, match="in use"):
            await taken.start()
        await taken.close("it never began")


def _link_of(port: Port) -> "asyncio.Future[PeerLink]":
    """The only link that is there."""
    (link,) = port.listener._links
    found: asyncio.Future[PeerLink] = asyncio.get_running_loop().create_future()
    found.set_result(link)
    return found
