"""A REST front over a store in memory, and a client that speaks HTTP by the byte, for what libraries would not send."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from kvnode.node.config import Address, Config
from kvnode.node.eventlog import FieldValue
from kvnode.node.rest.events import EventRoutes
from kvnode.node.rest.front import RestFront
from support.events import CapturedEvents
from support.fake_store import FakeNode, FakeStore

_ANY_PORT = Address("127.0.0.1", 0)


class TracedEvents(CapturedEvents):
    """Keeps the exceptions whose traceback would be logged, too.

    Attributes:
        traced: in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.traced: list[BaseException] = []

    def error(self, event: str, error: BaseException | None = None, **fields: FieldValue) -> None:
        super().error(event, error, **fields)
        if error is not None:
            self.traced.append(error)


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer as it came.

    Attributes:
        head: status line and headers as sent.
        headers: by name in lower case.
        body: without the chunks' framing.
        trailers: like headers.
    """

    status: int
    head: bytes
    headers: dict[str, str]
    body: bytes
    trailers: dict[str, str]

    @property
    def json(self) -> Any:
        """The body, decoded."""
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The members of an error's answer."""
        assert list(self.json) == ["error"]
        error: dict[str, Any] = self.json["error"]
        assert error["message"]
        return error


class Wire:
    """A client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        """Write as is."""
        self.writer.write(data)

    def request(
        self, method: str, target: str, body: bytes | None = None, *, version: str = "1.1", **headers: str
    ) -> None:
        """Write a request; `_` in a header's name stands for `-`."""
        lines = [f"{method} {target} HTTP/{version}", "Host: test"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join([*lines, "", ""]).encode() + (body or b""))

    async def answer(self, method: str = "GET") -> HttpAnswer:
        """Read one answer to a request of this method.

        Raises:
            asyncio.IncompleteReadError, ConnectionError: the connection ended before the answer did.
        """
        head = await self.reader.readuntil(b"\r\n\r\n")
        status_line, *lines = head[:-4].decode("ascii").split("\r\n")
        version, status, _ = status_line.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = _headers(lines)
        body, trailers = b"", {}
        if method == "HEAD" or status in ("100", "304"):
            pass
        elif "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            body, trailers = await self._chunks()
        else:
            assert headers["connection"] == "close"
            body = await self.reader.read()
        return HttpAnswer(int(status), head, headers, body, trailers)

    async def ask(self, method: str, target: str, body: bytes | None = None, **headers: str) -> HttpAnswer:
        """Send a request and read its answer."""
        self.request(method, target, body, **headers)
        return await self.answer(method)

    async def at_end(self) -> bool:
        """Whether the server ended the connection in order, without another byte.

        Raises:
            ConnectionError: it was reset.
        """
        return await self.reader.read(1) == b""

    async def read_to_end(self) -> bytes:
        """Read until the server ends the connection in order.

        Raises:
            ConnectionError: it was reset.
        """
        return await self.reader.read()

    def half_close(self) -> None:
        """Send nothing more; nothing happens when the connection is lost already."""
        with suppress(OSError):
            self.writer.write_eof()

    def reset(self) -> None:
        """Leave without a word."""
        self.writer.transport.abort()

    async def _chunks(self) -> tuple[bytes, dict[str, str]]:
        parts = []
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            part = await self.reader.readexactly(size + 2)
            assert part.endswith(b"\r\n")
            parts.append(part[:-2])
        trailers = []
        while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
            trailers.append(line.decode("ascii").rstrip("\r\n"))
        return b"".join(parts), _headers(trailers)


class RestRig:
    """A front that serves a `FakeStore` and a `FakeNode`.

    Attributes:
        log: what the front logs. A client's mistakes leave nothing here.
    """

    def __init__(self, config: Config, **timeouts: float) -> None:
        self.config = config
        self.store = FakeStore(config)
        self.node = FakeNode()
        self.log = TracedEvents()
        self.front = RestFront(config, self.store, self.node, self.log, **timeouts)  # type: ignore[arg-type]
        self.address = config.http

    @property
    def held_bytes(self) -> int:
        """What bodies under way hold."""
        return self.front.held_bytes

    @property
    def events(self) -> EventRoutes:
        """What serves those who watch."""
        return self.front._events

    async def start(self) -> None:
        """Listen on a free port."""
        self.address = await self.front.start()

    @asynccontextmanager
    async def connect(self, *, receive_bytes: int = 1 << 26) -> AsyncIterator[Wire]:
        """A new connection, closed at the end of the block.

        Args:
            receive_bytes: how much is read ahead of what the test asks for, beside what the kernel buffers.
        """
        reader, writer = await asyncio.open_connection(self.address.host, self.address.port, limit=receive_bytes)
        try:
            yield Wire(reader, writer)
        finally:
            writer.transport.abort()

    async def ask(self, method: str, target: str, body: bytes | None = None, **headers: str) -> HttpAnswer:
        """One request on a connection of its own."""
        async with self.connect() as wire:
            return await wire.ask(method, target, body, **headers)

    async def put(self, key: str, value: bytes) -> HttpAnswer:
        """Write a record through the front."""
        answer = await self.ask("POST", "/put", b'{"key":%b,"value":%b}' % (json.dumps(key).encode(), value))
        assert answer.status == 200
        return answer


#: Starts a front with these settings and timeouts.
MakeRig: TypeAlias = Callable[..., Awaitable[RestRig]]


def make_rig_config(**settings: Any) -> Config:
    """A configuration, for a free port unless it says otherwise."""
    return Config(**{"http": _ANY_PORT, **settings})


def _headers(lines: list[str]) -> dict[str, str]:
    pairs = [line.split(": ", 1) for line in lines]
    headers = {name.lower(): value for name, value in pairs}
    assert len(headers) == len(pairs), "a header was sent twice"
    return headers
