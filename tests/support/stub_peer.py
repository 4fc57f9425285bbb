"""A stand-in for a node's peer port: an asyncio server that plays a script on every connection.

    with in_background(StubPeer(Take(1), Say(welcome(2)), Take(2), Say(ping), Hold())) as stub:
        ... stub.address ...

A script is a list of steps; after the last one the connection is closed. What came in is in `received`.
"""

import asyncio
import socket
import struct
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Self

from kvnode.protocol.codec import FrameDecoder, encode
from kvnode.protocol.messages import Message, Role, Welcome
from support.frames import HISTORY, ID, OTHER_ID

_READ_BYTES = 64 * 1024


@dataclass(frozen=True)
class Take:
    """Wait until that many frames have come on this connection, since its beginning."""

    count: int


@dataclass(frozen=True)
class TakeAll:
    """Wait until the client has said that it will send no more."""


@dataclass(frozen=True)
class Say:
    """Send these bytes or this frame."""

    what: bytes | Message


@dataclass(frozen=True)
class Repeat:
    """Send this frame again and again, until the client leaves or the stub ends."""

    what: Message
    every_s: float


@dataclass(frozen=True)
class Hold:
    """Keep the connection until the client leaves or the stub ends."""


@dataclass(frozen=True)
class Reset:
    """Break the connection, as a process that is killed or a machine that restarts does."""


class Until:
    """Wait until the test says so, from whatever thread."""

    def __init__(self) -> None:
        self._said: Future[None] = Future()

    def happen(self) -> None:
        """Say so."""
        self._said.set_result(None)

    async def wait(self) -> None:
        """Return when it was said."""
        await asyncio.wrap_future(self._said)


Step = Take | TakeAll | Say | Repeat | Hold | Reset | Until


def welcome(last_seq: int, version: int = 1) -> Welcome:
    """The answer to HELLO of a node whose log ends with `last_seq`."""
    return Welcome(version, ID, OTHER_ID, "web1", Role.PRIMARY, HISTORY, last_seq, ())


class StubPeer:
    """One stub node; `async with StubPeer(...)` runs it on the present loop.

    Attributes:
        address: HOST:PORT.
        received: the frames of all connections.
    """

    def __init__(self, *script: Step) -> None:
        self.address = ""
        self.received: list[Message] = []
        self._script = script
        self._playing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        # A script that is held up, by Hold or by frames that never came, ends with the stub.
        for task in self._playing:
            task.cancel()
        await asyncio.gather(*self._playing, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._play(reader, writer))
        self._playing.add(task)

    async def _play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = FrameDecoder()
        taken = 0
        try:
            for step in self._script:
                match step:
                    case Take(count):
                        while taken < count:
                            taken += await self._read(reader, decoder)
                    case TakeAll() | Hold():
                        while not reader.at_eof():
                            taken += await self._read(reader, decoder, is_end_allowed=True)
                    case Say(bytes() as data):
                        writer.write(data)
                        await writer.drain()
                    case Say(what):
                        assert not isinstance(what, bytes)
                        writer.write(encode(what))
                        await writer.drain()
                    case Repeat(what, every_s):
                        while True:
                            writer.write(encode(what))
                            await writer.drain()
                            await asyncio.sleep(every_s)
                    case Until():
                        await step.wait()
                    case Reset():
                        connection: socket.socket = writer.get_extra_info("socket")
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        writer.transport.abort()
                        return
        except ConnectionError:
            # The client has left in the middle of the script.
            pass
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, decoder: FrameDecoder, *, is_end_allowed: bool = False) -> int:
        data = await reader.read(_READ_BYTES)
        if not data and not is_end_allowed:
            raise ConnectionError
        decoder.feed(data)
        frames = list(decoder)
        self.received += frames
        return len(frames)
