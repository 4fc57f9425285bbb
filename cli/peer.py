"""A client of the peer protocol for debugging: one connection, frames out and frames in."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self

from kvnode.cli.errors import ConnectionLost, PeerSilent, Refused, Unreachable
from kvnode.node.config import Address
from kvnode.protocol.codec import FrameDecoder, encode
from kvnode.protocol.errors import RemoteProtocolError
from kvnode.protocol.fields import ID_BYTES
from kvnode.protocol.messages import MAX_VERSION, MIN_VERSION, Error, Hello, Message, Purpose, Welcome

#: The longest wait for the next byte of what a node has to send, unless told otherwise.
SILENCE_S = 30.0

_CONNECT_TIMEOUT_S = 5.0
#: The longest wait for the answer to HELLO, which costs a node nothing.
WELCOME_TIMEOUT_S = 10.0

#: Nobody has to send an observer anything while there are no new entries. That the other machine is still there is
#: asked by the operating system: after so long without a byte, again and again, and so often, in seconds and times.
_KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}

_READ_BYTES = 256 * 1024
_NOT_A_PEER_PORT = "is this the node's peer port (--peer), not its REST address or another service?"


class PeerClient:
    """A connection to a node's peer port. As an asynchronous context manager, it connects and closes.

    One task may send while another receives; neither is held up or cut short by the other. So it works on the socket
    itself: a stream of asyncio throws away what was received when something cannot be sent. It holds at most one
    unfinished frame, of up to 64 MiB, and the last chunk; what is not received waits at the node.

    Attributes:
        address: of the node.
        silence_s: the longest wait for the node's next byte; None waits for ever. May be changed at any time.
    """

    def __init__(self, address: Address, *, silence_s: float | None = SILENCE_S) -> None:
        self.address = address
        self.silence_s = silence_s
        self._decoder = FrameDecoder()
        self._socket: socket.socket | None = None
        #: whether a frame has come: it is a peer port, then
        self._has_come = False

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            Unreachable: there is no connection.
        """
        self._socket = await open_socket(self.address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()

    async def welcome(self, purpose: Purpose) -> Welcome:
        """Say HELLO, as the first frame of all, and return the answer.

        Raises:
            Refused: the answer is ERROR.
            RemoteProtocolError: it is no answer to HELLO.
            ConnectionLost, PeerSilent: there is none.
        """
        await self.send(make_hello(purpose))
        patience_s, self.silence_s = self.silence_s, WELCOME_TIMEOUT_S
        try:
            answer = await self.receive()
        except PeerSilent as error:
            raise PeerSilent(error.message, hint=_NOT_A_PEER_PORT) from error
        finally:
            self.silence_s = patience_s
        return check_welcome(self.address, answer)

    async def send(self, message: Message) -> None:
        """Send a frame; returns when the operating system has all of it, however long that takes.

        Raises:
            LocalProtocolError: the format does not allow it; nothing was sent.
            ConnectionLost: the node takes no more. What it sent before can still be received.
        """
        data = encode(message)
        try:
            await asyncio.get_running_loop().sock_sendall(self._connection, data)
        except OSError as error:
            raise self._lost(error) from error

    def finish(self) -> None:
        """Tell the node that nothing more will be sent; it can go on sending.

        Raises:
            ConnectionLost: the connection is gone.
        """
        try:
            self._connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise self._lost(error) from error

    async def receive(self) -> Message | None:
        """The next frame, or None when the node has ended its side.

        Raises:
            RemoteProtocolError: what came is no frame, or ends inside one.
            ConnectionLost: the connection broke.
            PeerSilent: not a byte came in time.
        """
        try:
            return await self._receive()
        except RemoteProtocolError as error:
            if not self._has_come:
                error.hint = error.hint or _NOT_A_PEER_PORT
            raise

    async def _receive(self) -> Message | None:
        while True:
            for message in self._decoder:
                self._has_come = True
                return message
            data = await self._read()
            if not data:
                self._decoder.end()
                return None
            self._decoder.feed(data)

    async def messages(self) -> AsyncGenerator[Message, None]:
        """The frames as they come, until the node ends its side. Raises what `receive` does."""
        while (message := await self.receive()) is not None:
            yield message

    async def _read(self) -> bytes:
        # Where bytes are always there, reading never waits, and nothing else would have its turn: not even Ctrl-C.
        await asyncio.sleep(0)
        patience = asyncio.timeout(self.silence_s)
        try:
            async with patience:
                return await asyncio.get_running_loop().sock_recv(self._connection, _READ_BYTES)
        except OSError as error:
            if patience.expired():
                raise PeerSilent(f"{self.address} sent nothing for {self.silence_s:g} s") from error
            raise self._lost(error) from error

    @property
    def _connection(self) -> socket.socket:
        assert self._socket is not None, "enter the client first: async with PeerClient(...) as peer"
        return self._socket

    def _lost(self, error: OSError) -> ConnectionLost:
        return ConnectionLost(f"the connection to {self.address} broke: {_reason(error)}")


def make_hello(purpose: Purpose) -> Hello:
    """The HELLO of somebody who is no node: with new ids, and of no cluster. A replica has a name, which is made up."""
    return Hello(
        min_version=MIN_VERSION,
        max_version=MAX_VERSION,
        cluster_id=b"",
        node_id=secrets.token_bytes(ID_BYTES),
        boot_id=secrets.token_bytes(ID_BYTES),
        name=f"debug-{secrets.token_hex(4)}" if purpose is Purpose.REPLICA else "",
        purpose=purpose,
        features=(),
        auth=b"",
        address="",
    )


def check_welcome(address: Address, answer: Message | None) -> Welcome:
    """The answer to HELLO, None for the end of the connection, as what it should be.

    Raises:
        Refused, RemoteProtocolError, ConnectionLost: it is not.
    """
    match answer:
        case Welcome():
            if not MIN_VERSION <= answer.version <= MAX_VERSION:
                raise RemoteProtocolError(f"{address} chose version {answer.version}, which was not offered")
            return answer
        case Error(code, message):
            raise Refused(code, message)
        case None:
            raise ConnectionLost(f"{address} closed the connection without an answer", hint=_NOT_A_PEER_PORT)
        case _:
            raise RemoteProtocolError(f"{address} answered HELLO with {answer.TYPE.name}")


async def open_socket(address: Address) -> socket.socket:
    """A connection to a peer port, whose end is noticed also where nothing is sent.

    Raises:
        Unreachable: there is none.
    """
    hint = "is the node running, and is this its peer port (--peer)?"
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            return await _connect(address)
    except TimeoutError as error:
        raise Unreachable(f"cannot connect to {address}: timed out", hint=hint) from error
    except OSError as error:
        raise Unreachable(f"cannot connect to {address}: {_reason(error)}", hint=hint) from error


async def _connect(address: Address) -> socket.socket:
    """A connection to the first of the addresses that a host's name stands for and that can be reached."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    failure = OSError("the name stands for no address")
    for family, kind, protocol, _, place in found:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            await loop.sock_connect(connection, place)
            # A frame is whole when it is sent: nothing is gained by waiting for more.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE.items():
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
        except OSError as error:
            connection.close()
            failure = error
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise failure


def _reason(error: OSError) -> str:
    """The reason in the words of the operating system, into which asyncio puts texts of its own."""
    # A failed name look-up has its own numbers, below zero.
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)
