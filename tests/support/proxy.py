"""A TCP proxy that a test can break: it cuts, refuses, stalls and throttles what goes through it.

    with Proxy() as proxy:
        proxy.target = node.peer
        ... a replica that joins proxy.address ...
        proxy.cut()

Directions are those of the connection: `up` from who connected to the target, `down` from the target to who connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self, TypeVar

T = TypeVar("T")

Direction = Literal["up", "down"]

_CHUNK_BYTES = 64 * 1024
#: The kernel's buffers of each connection, on the proxy's side: what a stall may swallow is to be little.
_BUFFER_BYTES = 64 * 1024
#: How long a throttled direction collects what it may pass on at once, in seconds.
_SLICE_S = 0.05

_JOIN_S = 20.0


class _Valve:
    """One direction, of all connections together. Used on the proxy's loop.

    Attributes:
        passed: bytes that went through.
        left: how many more may; None = any number.
        rate: bytes a second; None = any.
    """

    def __init__(self) -> None:
        self.passed = 0
        self.left: int | None = None
        self.rate: float | None = None
        self._changed = asyncio.Event()

    def set(self, left: int | None, rate: float | None) -> None:
        self.left, self.rate = left, rate
        self._changed.set()

    async def take(self, wanted: int) -> int:
        """How many of the bytes that wait may pass; at least one, once it returns."""
        while self.left is not None and self.left <= 0:
            self._changed.clear()
            await self._changed.wait()
        count = wanted if self.left is None else min(wanted, self.left)
        if self.rate is not None:
            count = max(1, min(count, int(self.rate * _SLICE_S)))
        if self.left is not None:
            self.left -= count
        self.passed += count
        if self.rate is not None:
            await asyncio.sleep(count / self.rate)
        return count


class Proxy:
    """Passes connections on to `target`, in a thread of its own.

    Attributes:
        target: HOST:PORT; may be set later, and changed.
        accepted: connections that came, the refused ones included.
    """

    def __init__(self, target: str | None = None) -> None:
        self.target = target
        self.accepted = 0
        self._loop = asyncio.new_event_loop()
        self._valves: dict[Direction, _Valve] = {"up": _Valve(), "down": _Valve()}
        self._refusing = False
        self._connections: set[asyncio.Task[None]] = set()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self._listener.setblocking(False)
        host, port = self._listener.getsockname()
        #: where to connect
        self.address = f"{host}:{port}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- what a test does ----------------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """How many are open."""
        return self._call(lambda: len(self._connections))

    def passed(self, direction: Direction) -> int:
        """Bytes that went through so far."""
        return self._call(lambda: self._valves[direction].passed)

    def is_stalled(self, direction: Direction) -> bool:
        """Whether all that was allowed went through."""
        return self._call(lambda: self._valves[direction].left == 0)

    def cut(self, *, reset: bool = False) -> None:
        """End all connections; what is under way is lost.

        Args:
            reset: by RST, else by FIN.
        """

        def cut() -> None:
            for each in self._sockets if reset else ():
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            for task in self._connections:
                task.cancel()

        self._call(cut)

    def refuse(self) -> None:
        """End all connections, and every new one at once, until `heal`."""
        self._refusing = True
        self.cut()

    def stall(self, *directions: Direction) -> None:
        """Read nothing more, in one direction or (none named) in both, until `heal`. New connections are taken."""
        self.let(0, *directions)

    def let(self, count: int, *directions: Direction) -> None:
        """Let so many more bytes through, then stall."""
        self._set(directions, count, None)

    def throttle(self, bytes_per_s: float, *directions: Direction) -> None:
        """Let so much through, at most."""
        self._set(directions, None, bytes_per_s)

    def heal(self) -> None:
        """Refuse, stall and throttle no more."""
        self._refusing = False
        self._set((), None, None)

    def close(self) -> None:
        """End everything."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_JOIN_S)

    # ---- inside --------------------------------------------------------------------------------------------------

    def _set(self, directions: tuple[Direction, ...], left: int | None, rate: float | None) -> None:
        def set_all() -> None:
            for name, valve in self._valves.items():
                if not directions or name in directions:
                    valve.set(left, rate)

        self._call(set_all)

    def _call(self, function: Callable[[], T]) -> T:
        """What the function returns, called on the proxy's loop."""

        async def call() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(_JOIN_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        accepting = self._loop.create_task(self._accept())
        try:
            self._loop.run_forever()
        finally:
            tasks = [accepting, *self._connections]
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._listener.close()
            self._loop.close()

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            self.accepted += 1
            if self._refusing or self.target is None:
                client.close()
                continue
            task = self._loop.create_task(self._serve(client, self.target))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _serve(self, client: socket.socket, target: str) -> None:
        client.setblocking(False)
        server = socket.socket()
        server.setblocking(False)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self._sockets |= {client, server}
        pumps: list[asyncio.Task[None]] = []
        try:
            host, _, port = target.rpartition(":")
            await self._loop.sock_connect(server, (host, int(port)))
            pumps = [
                self._loop.create_task(self._pump(client, server, self._valves["up"])),
                self._loop.create_task(self._pump(server, client, self._valves["down"])),
            ]
            # A half-closed connection stays; a broken one goes whole.
            await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
        except OSError:
            pass
        finally:
            for pump in pumps:
                pump.cancel()
            for done in await asyncio.gather(*pumps, return_exceptions=True):
                assert done is None or isinstance(done, OSError | asyncio.CancelledError), done
            self._sockets -= {client, server}
            client.close()
            server.close()

    async def _pump(self, source: socket.socket, sink: socket.socket, valve: _Valve) -> None:
        while data := await self._loop.sock_recv(source, _CHUNK_BYTES):
            while data:
                count = await valve.take(len(data))
                await self._loop.sock_sendall(sink, data[:count])
                data = data[count:]
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
