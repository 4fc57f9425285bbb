"""The other side of a connection of the peer protocol, which a test plays frame by frame or byte by byte."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Self, TypeVar, cast

from kvnode.node.config import Address
from kvnode.protocol.codec import FrameDecoder, encode
from kvnode.protocol.entry import EntryEncoder, payload_crc
from kvnode.protocol.fields import LogRecord, Member
from kvnode.protocol.messages import (
    Error,
    Hello,
    HistoryFrame,
    Message,
    Ping,
    Purpose,
    Role,
    Subscribe,
    Welcome,
)
from kvnode.protocol.types import Entry, Epoch, History, Op, Position, Reign, put
from support.holds import turns

M = TypeVar("M", bound=Message)

#: Past this something is wrong; nothing here waits for time to pass.
PATIENCE_S = 20.0

CLUSTER_ID = b"c" * 16
PRIMARY_ID = b"p" * 16
REPLICA_ID = b"r" * 16

#: The reign of a scripted primary.
EPOCH = Epoch.of(3, 0x9F2C1A7B)
HISTORY = History((Reign(EPOCH, 1),))


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until this holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await turns(1)


class PeerGone(Exception):
    """The other side has closed the connection, and no frame is left."""


class Peer(asyncio.Protocol):
    """One connection.

    Attributes:
        received: all bytes that came, counted.
    """

    def __init__(self) -> None:
        self.received = 0
        self._decoder = FrameDecoder()
        self._made: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed = asyncio.Event()
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._has_ended = False
        self._error: Exception | None = None

    # ---- asyncio.Protocol ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one in all but its class.
        self._transport = cast(asyncio.Transport, transport)
        self._made.set_result(None)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        self._decoder.feed(data)
        self._changed.set()

    def eof_received(self) -> bool:
        self._has_ended = True
        self._changed.set()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._has_ended = True
        self._error = error
        self._changed.set()
        self._may_write.set()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    # ---- for tests -----------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether the other side has ended neither the connection nor its half of it, as far as is known here."""
        return not self._has_ended

    def send(self, *what: Message | bytes) -> None:
        """Send frames, or bytes as they are."""
        self._transport.write(b"".join([each if isinstance(each, bytes) else encode(each) for each in what]))

    async def flushed(self) -> None:
        """Return when the kernel has nearly all of it, or the connection is gone."""
        await asyncio.wait_for(self._may_write.wait(), PATIENCE_S)

    async def next(self) -> Message:
        """The next frame.

        Raises:
            PeerGone: there is none.
            ConnectionError: the connection was reset.
        """
        while True:
            for message in self._decoder:
                return message
            if isinstance(self._error, ConnectionError):
                raise self._error
            if self._has_ended:
                raise PeerGone
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), PATIENCE_S)

    async def ended(self) -> None:
        """Return when the other side has ended the connection; what comes before is kept."""
        while not self._has_ended:
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), PATIENCE_S)

    async def take(self, kind: type[M], *, skip: tuple[type[Message], ...] = (Ping,)) -> M:
        """The next frame that is not one of `skip`, which must be of this kind."""
        while isinstance(message := await self.next(), skip) and not isinstance(message, kind):
            pass
        assert isinstance(message, kind), f"{message} came, where {kind.__name__} was expected"
        return message

    async def take_until(self, kind: type[M]) -> tuple[list[Message], M]:
        """The frames before the next one of a kind, and that one."""
        before: list[Message] = []
        while not isinstance(message := await self.next(), kind):
            before.append(message)
        return before, message

    async def rest(self) -> list[Message]:
        """All frames up to the end of the connection, PINGs left out; a reset is an end, too."""
        found: list[Message] = []
        with suppress(PeerGone, ConnectionError):
            while True:
                found.append(await self.next())
        return [each for each in found if not isinstance(each, Ping)]

    async def refused(self) -> Error:
        """The ERROR frame with which the other side closes, nothing but PINGs being before or after it."""
        (error,) = await self.rest()
        assert isinstance(error, Error)
        return error

    def pause(self) -> None:
        """Take nothing more from the kernel."""
        self._transport.pause_reading()

    def resume(self) -> None:
        """Take again what comes."""
        self._transport.resume_reading()

    def half_close(self) -> None:
        """Send no more."""
        self._transport.write_eof()

    def close(self) -> None:
        """Leave in order."""
        self._transport.close()

    def reset(self) -> None:
        """Leave without a word, as a machine that restarts does."""
        connection: socket.socket | None = self._transport.get_extra_info("socket")
        if connection is not None:
            # Or else it is gone already.
            with suppress(OSError, ValueError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


@asynccontextmanager
async def connected(address: Address | str, *, kernel_bytes: int | None = None) -> AsyncIterator[Peer]:
    """A connection to a node, broken at the end of the block.

    Args:
        kernel_bytes: what the kernel takes in for it at most, about; None = as much as it likes.
    """
    at = Address.parse(address) if isinstance(address, str) else address
    connection = socket.socket()
    connection.setblocking(False)
    if kernel_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, kernel_bytes)
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_connect(connection, (at.host, at.port))
        _, peer = await loop.create_connection(Peer, sock=connection)
    except BaseException:
        connection.close()
        raise
    try:
        yield peer
    finally:
        peer._transport.abort()


class PeerServer:
    """Listens where a node is expected, and hands each connection to the test.

        async with PeerServer() as server:
            ... server.address ...
            peer = await server.accept()

    Attributes:
        address: where it listens.
    """

    def __init__(self) -> None:
        # Not where nodes are: one of them must not get the port of a server that was stopped.
        self.address = Address("127.0.0.9", 0)
        self._accepted: asyncio.Queue[Peer] = asyncio.Queue()
        self._peers: list[Peer] = []

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.stop()
        await turns()

    async def listen(self) -> None:
        """Begin, or begin again at the same address."""
        at = self.address
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, at.host, at.port)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = Address(host, port)

    def stop(self) -> None:
        """Accept no more, and break all connections."""
        self._server.close()
        for peer in self._peers:
            peer.reset()

    @property
    def waiting(self) -> int:
        """Connections that the test has not taken."""
        return self._accepted.qsize()

    async def accept(self) -> Peer:
        """The next connection."""
        return await asyncio.wait_for(self._accepted.get(), PATIENCE_S)

    def _accept(self) -> Peer:
        peer = Peer()
        self._peers.append(peer)
        peer._made.add_done_callback(lambda _: self._accepted.put_nowait(peer))
        return peer


# ---- what is said ----------------------------------------------------------------------------------------------


def hello(purpose: Purpose = Purpose.REPLICA, name: str = "r1", **changes: object) -> Hello:
    """What a node says first."""
    fields: dict[str, object] = {
        "min_version": 1,
        "max_version": 1,
        "cluster_id": CLUSTER_ID,
        "node_id": REPLICA_ID,
        "boot_id": b"1" * 16,
        "name": name,
        "purpose": purpose,
        "features": (),
        "auth": b"",
        "address": "",
    }
    return Hello(**{**fields, **changes})  # type: ignore[arg-type]


def welcome(last_seq: int = 0, history: History = HISTORY, role: Role = Role.PRIMARY, **changes: object) -> Welcome:
    """What a scripted primary answers."""
    fields: dict[str, object] = {
        "version": 1,
        "cluster_id": CLUSTER_ID,
        "node_id": PRIMARY_ID,
        "name": "p1",
        "role": role,
        "history": history,
        "last_seq": last_seq,
        "features": (),
    }
    return Welcome(**{**fields, **changes})  # type: ignore[arg-type]


MEMBERS = (Member(PRIMARY_ID, "p1", "127.0.0.1:1"), Member(REPLICA_ID, "r1"))


async def begin_stream(peer: Peer, last_seq: int = 0, history: History = HISTORY) -> Subscribe:
    """As a primary, answer HELLO and SUBSCRIBE of a replica with WELCOME and HISTORY; returns the SUBSCRIBE."""
    await peer.take(Hello)
    peer.send(welcome(last_seq, history))
    subscribe = await peer.take(Subscribe)
    peer.send(HistoryFrame(history, MEMBERS))
    return subscribe


def subscribe_from(seq: int, epoch: Epoch = EPOCH) -> Subscribe:
    """Asks for the entries after `seq`."""
    return Subscribe(Position(epoch if seq else Epoch(0), seq), None)


def observe_from(seq: int) -> Subscribe:
    """Asks for the entries from `seq` on, whichever epoch ordered them."""
    return Subscribe(Position(Epoch(0), seq - 1), None)


_ENCODER = EntryEncoder()


def entry(seq: int, *ops: Op, epoch: Epoch = EPOCH, value: bytes = b"1") -> Entry:
    """An entry; without operations it puts `value` at a key of its own."""
    return Entry(seq, epoch, 1_700_000_000_000 + seq, ops or (put(b"k%d" % seq, value),))


def record(seq: int, *ops: Op, epoch: Epoch = EPOCH, value: bytes = b"1") -> LogRecord:
    """An entry as the log holds it."""
    payload = _ENCODER.encode(entry(seq, *ops, epoch=epoch, value=value))
    return LogRecord(payload_crc(payload), payload)


def records(first: int, last: int, *, epoch: Epoch = EPOCH, value: bytes = b"1") -> tuple[LogRecord, ...]:
    """Consecutive entries as the log holds them."""
    return tuple([record(seq, epoch=epoch, value=value) for seq in range(first, last + 1)])


def payload_bytes(found: Sequence[LogRecord]) -> int:
    """Of all of them."""
    return sum(len(each.payload) for each in found)
