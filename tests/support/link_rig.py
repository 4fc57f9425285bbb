"""A `PeerLink` between a test that owns it and a test that plays its peer: over a real connection, or over none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from kvnode.node.config import Address
from kvnode.node.replication.link import PeerLink
from kvnode.protocol.codec import MAX_FRAME_BYTES
from kvnode.protocol.messages import Message
from support.manual_loop import ManualLoop
from support.peers import PATIENCE_S, Peer, connected


class Owner:
    """Implements `LinkOwner`: keeps what it is told.

    Attributes:
        frames: that came.
        on_frame, on_drained: called with the link, too, if set.
        is_to_be_sent_more: what a half-closed peer is kept for.
        finished: how often the peer said that it will send no more.
        reason: of the end; None while the link is there.
    """

    def __init__(self) -> None:
        self.frames: list[Message] = []
        self.on_frame: Callable[[PeerLink, Message], None] | None = None
        self.on_drained: Callable[[PeerLink], None] | None = None
        self.is_to_be_sent_more = False
        self.finished = 0
        self.drained = 0
        self.reason: str | None = None
        self.made: asyncio.Future[PeerLink] = asyncio.get_running_loop().create_future()
        self._changed = asyncio.Event()

    def link_made(self, link: PeerLink) -> None:
        assert self.reason is None
        self.made.set_result(link)

    def frame_received(self, link: PeerLink, message: Message) -> None:
        assert self.reason is None, "told after link_lost"
        self.frames.append(message)
        self._changed.set()
        if self.on_frame is not None:
            self.on_frame(link, message)

    def link_drained(self, link: PeerLink) -> None:
        assert self.reason is None, "told after link_lost"
        self.drained += 1
        self._changed.set()
        if self.on_drained is not None:
            self.on_drained(link)

    def peer_finished(self, link: PeerLink) -> bool:
        assert self.reason is None, "told after link_lost"
        self.finished += 1
        self._changed.set()
        return self.is_to_be_sent_more

    def link_lost(self, link: PeerLink, reason: str) -> None:
        assert self.reason is None, "lost twice"
        self.reason = reason
        self._changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Return when this holds, which changes with what the owner is told only."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def lost(self) -> str:
        """Why the link ended, once it has."""
        await self.until(lambda: self.reason is not None)
        assert self.reason is not None
        return self.reason


@asynccontextmanager
async def linked(
    owner: Owner, *, max_frame_bytes: int = MAX_FRAME_BYTES, stranger: bool = False, kernel_bytes: int | None = None
) -> AsyncIterator[tuple[PeerLink, Peer]]:
    """A link that was accepted, and its other side."""
    server = await asyncio.get_running_loop().create_server(
        lambda: PeerLink(owner, max_frame_bytes, stranger=stranger), "127.0.0.1", 0
    )
    try:
        host, port = server.sockets[0].getsockname()
        async with connected(Address(host, port), kernel_bytes=kernel_bytes) as peer:
            link = await asyncio.wait_for(asyncio.shield(owner.made), PATIENCE_S)
            yield link, peer
            link.abort("the end of the test")
            await owner.lost()
    finally:
        server.close()
        await server.wait_closed()


class FakeTransport(asyncio.Transport):
    """A connection to nobody.

    Attributes:
        writes: what was written, piece by piece.
        held: how much of it is said not to have left.
        is_reading, is_aborted: what was asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.held = 0
        self.is_reading = True
        self.is_aborted = False
        self._closing = False

    def write(self, data: Any) -> None:
        assert not self._closing, "written after it was closed"
        self.writes.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return self.held

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 5) if name == "peername" else default

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    def abort(self) -> None:
        self._closing = self.is_aborted = True

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True


def unconnected(
    owner: Owner, *, max_frame_bytes: int = MAX_FRAME_BYTES, clock: ManualLoop | None = None
) -> tuple[PeerLink, FakeTransport]:
    """A link over a transport to nobody; it may live by another clock than the loop's."""
    link, transport = PeerLink(owner, max_frame_bytes, stranger=False), FakeTransport()
    if clock is not None:
        link._loop = clock  # type: ignore[assignment]
    link.connection_made(transport)
    return link, transport
