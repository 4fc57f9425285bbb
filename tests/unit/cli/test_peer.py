"""The client of the peer protocol against a scripted node: what it says, and each way in which a session can end."""

import asyncio
import socket
from contextlib import closing
from pathlib import Path

import pytest

from kvnode.cli.errors import ConnectionLost, PeerSilent, Refused, Unreachable
from kvnode.cli.peer import PeerClient, make_hello
from kvnode.node.config import Address
from kvnode.protocol.codec import encode
from kvnode.protocol.errors import LocalProtocolError, RemoteProtocolError
from kvnode.protocol.messages import Error, Hello, Message, Ping, Purpose, Status
from support.stub_peer import Hold, Reset, Say, StubPeer, Take, TakeAll, welcome

PING = Ping(41, 1_700_000_000_000)


def client(stub: StubPeer, silence_s: float | None = 30.0) -> PeerClient:
    return PeerClient(Address.parse(stub.address), silence_s=silence_s)


async def receive_all(peer: PeerClient) -> list[Message]:
    return [message async for message in peer.messages()]


@pytest.mark.parametrize("purpose", Purpose)
async def test_a_session(purpose: Purpose) -> None:
    script = Take(1), Say(welcome(7)), Take(2), Say(PING), TakeAll(), Say(PING)
    async with StubPeer(*script) as stub, client(stub) as peer:
        assert await peer.welcome(purpose) == welcome(7)
        await peer.send(Status(1))
        assert await peer.receive() == PING
        peer.finish()
        assert await receive_all(peer) == [PING]
        assert await peer.receive() is None
    hello, status = stub.received
    assert status == Status(1)
    assert isinstance(hello, Hello)
    assert hello.purpose is purpose
    assert (hello.min_version, hello.max_version) == (1, 1)
    assert (hello.cluster_id, hello.features, hello.auth, hello.address) == (b"", (), b"", "")
    assert bool(hello.name) is (purpose is Purpose.REPLICA)


def test_no_two_hellos_have_an_id_or_a_name_in_common() -> None:
    hellos = [make_hello(Purpose.REPLICA) for _ in range(3)]
    assert len({id_ for hello in hellos for id_ in (hello.node_id, hello.boot_id)}) == 6
    assert len({hello.name for hello in hellos}) == 3


async def test_what_comes_with_the_welcome_is_not_lost() -> None:
    together = encode(welcome(7)) + encode(PING) + encode(Ping(42, 1))
    async with StubPeer(Take(1), Say(together)) as stub, client(stub) as peer:
        assert await peer.welcome(Purpose.OBSERVE) == welcome(7)
        assert await receive_all(peer) == [PING, Ping(42, 1)]


async def test_a_frame_in_small_pieces() -> None:
    pieces = [Say(bytes([byte])) for byte in encode(welcome(7))]
    async with StubPeer(Take(1), *pieces) as stub, client(stub) as peer:
        assert await peer.welcome(Purpose.OBSERVE) == welcome(7)


async def test_a_stream_that_never_pauses_leaves_the_others_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnode.cli.peer._READ_BYTES", len(encode(PING)))
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with StubPeer(Say(encode(PING) * 500)) as stub, client(stub) as peer:
        other = asyncio.create_task(take_turns())
        assert len(await receive_all(peer)) == 500
        other.cancel()
    assert turns >= 499


# ---- when things go wrong ------------------------------------------------------------------------------------------


async def test_nobody_there() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = Address("127.0.0.1", server.getsockname()[1])
    with pytest.raises(Unreachable) as caught:
        async with PeerClient(address):
            pass
    assert caught.value.message == f"cannot connect to {address}: Connection refused"
    assert "peer port" in str(caught.value.hint)


async def test_a_name_that_stands_for_nothing() -> None:
    with pytest.raises(Unreachable, match=r"cannot connect to nowhere\.invalid:7001: "):
        async with PeerClient(Address("nowhere.invalid", 7001)):
            pass


async def test_a_name_is_looked_up() -> None:
    async with StubPeer(Take(1), Say(welcome(0))) as stub:
        address = Address("localhost", Address.parse(stub.address).port)
        async with PeerClient(address) as peer:
            assert await peer.welcome(Purpose.PROBE) == welcome(0)


async def test_a_refusal_has_the_nodes_code() -> None:
    async with (
        StubPeer(Take(1), Say(Error("unsupported_version", "update the older one"))) as stub,
        client(stub) as peer,
    ):
        with pytest.raises(Refused) as caught:
            await peer.welcome(Purpose.OBSERVE)
    assert (caught.value.code, caught.value.message) == ("unsupported_version", "update the older one")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "a frame announces 1213486160 bytes"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "a frame announces "),
        (b"\x00\x00\x00\x01\xc1", "frame is not msgpack"),
        (bytes(4), "frame of length 0"),
        (encode(welcome(1))[:-1], "the stream ends "),
        (encode(PING), "answered HELLO with PING"),
        (encode(welcome(1, version=2)), "chose version 2, which was not offered"),
    ],
    ids=["http", "ssh", "no msgpack", "zeros", "half a frame", "another frame", "another version"],
)
async def test_what_is_no_answer_to_hello(answer: bytes, text: str) -> None:
    async with StubPeer(Take(1), Say(answer)) as stub, client(stub) as peer:
        with pytest.raises(RemoteProtocolError, match=text):
            await peer.welcome(Purpose.OBSERVE)


async def test_an_end_without_an_answer() -> None:
    async with StubPeer(Take(1)) as stub, client(stub) as peer:
        with pytest.raises(ConnectionLost, match="closed the connection without an answer") as caught:
            await peer.welcome(Purpose.OBSERVE)
    assert "peer port" in str(caught.value.hint)


async def test_silence_instead_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnode.cli.peer.WELCOME_TIMEOUT_S", 0.05)
    async with StubPeer(Hold()) as stub, client(stub, silence_s=None) as peer:
        with pytest.raises(PeerSilent, match=r"sent nothing for 0\.05 s") as caught:
            await peer.welcome(Purpose.OBSERVE)
    assert "peer port" in str(caught.value.hint)


async def test_silence_later_on() -> None:
    script = Take(1), Say(welcome(1)), Say(encode(PING)[:5]), Hold()
    async with StubPeer(*script) as stub, client(stub) as peer:
        await peer.welcome(Purpose.OBSERVE)
        peer.silence_s = 0.05
        with pytest.raises(PeerSilent):
            await peer.receive()


@pytest.mark.parametrize("kept", [1, 4, 5, len(encode(PING)) - 1])
async def test_an_end_inside_a_frame_comes_after_what_was_whole(kept: int) -> None:
    async with StubPeer(Say(encode(PING) * 2 + encode(PING)[:kept])) as stub, client(stub) as peer:
        assert [await peer.receive(), await peer.receive()] == [PING, PING]
        for _ in range(2):
            with pytest.raises(RemoteProtocolError, match=f"the stream ends {kept} bytes into a frame"):
                await peer.receive()


async def test_a_broken_connection() -> None:
    async with StubPeer(Take(1), Reset()) as stub, client(stub) as peer:
        with pytest.raises(ConnectionLost, match=f"the connection to {stub.address} broke: Connection reset by peer"):
            await peer.welcome(Purpose.OBSERVE)


async def test_what_the_node_said_before_it_left_can_be_read_when_nothing_can_be_sent() -> None:
    async with StubPeer(Take(1), Say(Error("draining", "bye")), Reset()) as stub, client(stub) as peer:
        await peer.send(make_hello(Purpose.CLIENT))
        assert await peer.receive() == Error("draining", "bye")
        with pytest.raises(ConnectionLost):
            await peer.receive()
        with pytest.raises(ConnectionLost):
            await peer.send(Status(1))
        with pytest.raises(ConnectionLost):
            peer.finish()


async def test_a_frame_that_the_format_does_not_allow_is_not_sent() -> None:
    async with StubPeer(TakeAll()) as stub, client(stub) as peer:
        with pytest.raises(LocalProtocolError, match=r"STATUS\.request_id"):
            await peer.send(Status(-1))
        peer.finish()
        assert await peer.receive() is None
    assert stub.received == []


async def test_every_socket_is_closed() -> None:
    def sockets() -> int:
        return sum(1 for fd in Path("/proc/self/fd").iterdir() if "socket" in str(fd.resolve()))

    before = sockets()
    async with StubPeer(Take(1), Say(welcome(1)), Reset()) as stub, client(stub) as peer:
        await peer.welcome(Purpose.OBSERVE)
    with pytest.raises(Unreachable):
        async with client(stub):
            pass
    assert sockets() == before
