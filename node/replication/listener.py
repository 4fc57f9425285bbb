"""The peer port: accepts connections, and waits for each one's HELLO."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from kvnode.node.config import Address, Config
from kvnode.node.replication.link import PeerLink
from kvnode.protocol.messages import Hello, Message

#: How long a connection may take to say HELLO.
HELLO_TIMEOUT_S = 10.0

#: Connections at a time; past that, new ones are told so and closed. Each costs little, and none is owed a place.
MAX_CONNECTIONS = 1000

_BACKLOG = 256

#: How long the last frames to all peers may take to leave when the node stops.
_LAST_FRAMES_S = 0.3

Greet = Callable[[PeerLink, Hello], None]


class PeerListener:
    """Accepts peers. Lives on one event loop."""

    def __init__(self, config: Config, greet: Greet, *, hello_timeout_s: float = HELLO_TIMEOUT_S) -> None:
        """Listen at ``config.peer``, once started.

        Args:
            greet: answers a HELLO, and gives the link to who goes on with it, or closes it.
        """
        self._config = config
        self._greet = greet
        self._hello_timeout_s = hello_timeout_s
        self._links: set[PeerLink] = set()
        self._all_gone = asyncio.Event()
        self._server: asyncio.Server | None = None

    @property
    def connection_count(self) -> int:
        """Connections that are open, whoever has them."""
        return len(self._links)

    async def start(self) -> Address:
        """Listen, and return the bound address.

        Raises:
            OSError: the address cannot be bound.
        """
        address = self._config.peer
        self._server = await asyncio.get_running_loop().create_server(
            self._accept, address.host, address.port, backlog=_BACKLOG, reuse_address=True
        )
        host, port = self._server.sockets[0].getsockname()[:2]
        return Address(host, port)

    def stop_accepting(self) -> None:
        """Take no new connections."""
        if self._server is not None:
            self._server.close()

    async def close(self, reason: str) -> None:
        """Close all connections."""
        self.stop_accepting()
        for link in list(self._links):
            link.refuse("draining", reason)
        if self._links:
            # Lets what was sent leave; what the other side does not take is dropped.
            self._all_gone.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_FRAMES_S):
                    await self._all_gone.wait()
        for link in list(self._links):
            link.abort(reason)
        # The transports end in the next turn.
        await asyncio.sleep(0)

    # ---- for the links -------------------------------------------------------------------------------------------

    def begin(self, link: PeerLink) -> None:
        """A connection was made."""
        if len(self._links) >= MAX_CONNECTIONS:
            link.refuse("overloaded", f"this node has {MAX_CONNECTIONS} peer connections already")
        self._links.add(link)

    def end(self, link: PeerLink) -> None:
        """A connection has ended."""
        self._links.discard(link)
        if not self._links:
            self._all_gone.set()

    def _accept(self) -> PeerLink:
        return AcceptedLink(self, _Greeting(self._greet, self._hello_timeout_s), self._config.max_frame_bytes)


class AcceptedLink(PeerLink):
    """A link that its listener counts."""

    def __init__(self, listener: PeerListener, greeting: _Greeting, max_frame_bytes: int) -> None:
        super().__init__(greeting, max_frame_bytes, stranger=True)
        self._listener = listener

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._listener.begin(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._listener.end(self)
        super().connection_lost(error)


class _Greeting:
    """A connection that has not said HELLO. Implements `LinkOwner`."""

    def __init__(self, greet: Greet, timeout_s: float) -> None:
        self._greet = greet
        self._timeout_s = timeout_s
        self._timer: asyncio.TimerHandle | None = None

    def link_made(self, link: PeerLink) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._give_up, link)

    def frame_received(self, link: PeerLink, message: Message) -> None:
        self._end()
        if isinstance(message, Hello):
            self._greet(link, message)
        else:
            link.refuse("protocol_error", f"{message.TYPE.name} came before HELLO")

    def link_drained(self, link: PeerLink) -> None:
        """Nothing was sent."""

    def peer_finished(self, link: PeerLink) -> bool:
        return False

    def link_lost(self, link: PeerLink, reason: str) -> None:
        self._end()

    def _give_up(self, link: PeerLink) -> None:
        link.refuse("hello_timeout", f"no HELLO came within {self._timeout_s:g} s")

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
