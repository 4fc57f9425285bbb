"""Answers, and how they get onto the wire.

`Response` stands where aiohttp's server expects a `web.StreamResponse`, of which it awaits `prepare` and `write_eof`
and reads `keep_alive`. It serialises head and body in one step and writes them at once, without a multi-dictionary of
headers, a payload object, or a stream writer. With 64 keep-alive connections on two cores, a GET answered so reached
about twice the rate of a no-op handler of `web.Application` that returns a `web.Response`; it is what the speed of a
hot read depends on.

Header lines are passed as bytes, each with its line's end, and are made here or from numbers and escaped text only.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from kvnode.node.clock import Clock
from kvnode.node.errors import MethodNotAllowed, Unavailable
from kvnode.node.rest.errors import STATUS_OF_CODE, error_body
from kvnode.protocol.errors import KvError
from kvnode.protocol.types import Epoch, Position

if TYPE_CHECKING:
    from kvnode.node.rest.request import Request

JSON_TYPE = b"Content-Type: application/json\r\n"
CLOSE_LINE = b"Connection: close\r\n"
NDJSON_TYPE = b"Content-Type: application/x-ndjson\r\n"
VARY_ACCEPT = b"Vary: Accept\r\n"

_STATUS_LINES = {
    status: f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
    for status in {200, 304, *STATUS_OF_CODE.values()}
}
#: A larger body is not worth a copy to send it in one piece with its head.
_COPIED_BODY_BYTES = 64 * 1024


class DateStamp:
    """The header lines that every answer of a second shares: Server and Date. Used on the event loop only."""

    __slots__ = ("_clock", "_lines")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lines = b""

    def lines(self) -> bytes:
        """The lines of this second."""
        return self._lines or self._renew()

    def _renew(self) -> bytes:
        second, ms = divmod(self._clock.now_ms(), 1000)
        self._lines = f"Server: kvnode\r\nDate: {formatdate(second, usegmt=True)}\r\n".encode()
        asyncio.get_running_loop().call_later((1000 - ms) / 1000, self._expire)
        return self._lines

    def _expire(self) -> None:
        self._lines = b""


@functools.lru_cache(maxsize=64)
def _epoch_text(epoch: Epoch) -> bytes:
    return str(epoch).encode()


def position_lines(position: Position) -> bytes:
    """Kv-Seq and Kv-Epoch."""
    return b"Kv-Seq: %d\r\nKv-Epoch: %b\r\n" % (position.seq, _epoch_text(position.epoch))


def record_lines(applied: Position, version: Position) -> bytes:
    """Kv-Seq, Kv-Epoch, and the ETag of the record that was found."""
    return b'Kv-Seq: %d\r\nKv-Epoch: %b\r\nETag: "%b-%d"\r\n' % (
        applied.seq,
        _epoch_text(applied.epoch),
        _epoch_text(version.epoch),
        version.seq,
    )


def etag_of(version: Position) -> bytes:
    """A record's ETag, with its quotes."""
    return b'"%b-%d"' % (_epoch_text(version.epoch), version.seq)


class Response:
    """An answer that is there as a whole.

    Attributes:
        status: of HTTP; one that this front uses.
        code: of the error, if it is one.
        lines: header lines beside Server, Date, Connection and Content-Length.
        body: None for an answer that has none by definition; a HEAD gets the length only.
        keep_alive: after `write_eof`: whether the connection goes on.
    """

    code: str | None = None

    __slots__ = ("_request", "body", "keep_alive", "lines", "status")

    def __init__(self, status: int, lines: bytes, body: bytes | None) -> None:
        self.status = status
        self.lines = lines
        self.body = body
        self.keep_alive = False
        self._request: Request | None = None

    async def prepare(self, request: Request) -> None:
        self._request = request

    def send(
        self, transport: asyncio.Transport, stamp: bytes, connection_line: bytes, *, is_head: bool = False
    ) -> None:
        """Write it.

        Args:
            stamp: as `DateStamp.lines` gives it.
            connection_line: the header Connection; empty where it says nothing.
            is_head: whether the body is left out.
        """
        status_line, lines, body = _STATUS_LINES[self.status], self.lines, self.body
        if body is None:
            transport.write(b"%b%b%b%b\r\n" % (status_line, stamp, lines, connection_line))
            return
        length = len(body)
        is_copied = length <= _COPIED_BODY_BYTES and not is_head
        transport.write(
            b"%b%b%b%bContent-Length: %d\r\n\r\n%b"
            % (status_line, stamp, lines, connection_line, length, body if is_copied else b"")
        )
        if not (is_copied or is_head):
            transport.write(body)

    async def write_eof(self) -> None:
        """Send it, and wait while the client takes too little.

        Raises:
            ConnectionError: the connection is lost.
        """
        request = self._request
        assert request is not None, "aiohttp prepares every answer first"
        connection = request.connection
        transport = connection.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("connection lost")
        self.keep_alive = keep_alive = request.keeps_alive()
        connection.is_answered = True
        self.send(transport, connection.stamp.lines(), _connection_line(request, keep_alive), is_head=request.is_head)
        if connection.writing_paused:
            await connection.drained()
        if not keep_alive:
            await connection.linger()


class ErrorResponse(Response):
    """An answer that is an error."""

    __slots__ = ("code",)

    def __init__(self, error: KvError, lines: bytes) -> None:
        """The answer to `error`, whose code has a status."""
        super().__init__(STATUS_OF_CODE[error.code], JSON_TYPE + lines, error_body(error))
        self.code = error.code


class Parts(Protocol):
    """A body that is made while it is sent. Close it in any case."""

    async def next(self) -> bytes:
        """The next part, not empty; empty at the end."""

    def trailer_lines(self) -> bytes:
        """Header lines to send after the end, as announced by `Trailer`."""

    async def aclose(self) -> None:
        """Let go of what the parts are made from."""


class StreamedResponse:
    """An answer of unknown length, sent part by part no faster than the client takes it.

    If a part cannot be had or sent, the connection is reset: the answer never looks whole.

    Attributes:
        status: of HTTP.
        code: None, as it is no error.
        keep_alive: after `write_eof`: whether the connection goes on.
    """

    status = 200
    code = None

    __slots__ = ("_lines", "_on_broken", "_parts", "_request", "keep_alive")

    def __init__(self, lines: bytes, parts: Parts, on_broken: Callable[[Exception], None]) -> None:
        """Answer 200.

        Args:
            lines: header lines beside Server, Date, Connection and Transfer-Encoding.
            on_broken: told why a part could not be had.
        """
        self.keep_alive = False
        self._lines = lines
        self._parts = parts
        self._on_broken = on_broken
        self._request: Request | None = None

    async def prepare(self, request: Request) -> None:
        self._request = request

    async def write_eof(self) -> None:
        """Send it.

        Raises:
            ConnectionError: it was not sent whole, and the connection is broken.
        """
        request = self._request
        assert request is not None, "aiohttp prepares every answer first"
        is_whole = False
        try:
            await self._send(request)
            is_whole = True
        except ConnectionError:
            raise
        except Exception as error:
            self._on_broken(error)
            raise ConnectionAbortedError("the answer broke off") from error
        finally:
            if not is_whole:
                request.connection.abort()
            await self._parts.aclose()

    async def _send(self, request: Request) -> None:
        connection = request.connection
        is_chunked = request.is_http_11
        self.keep_alive = is_chunked and request.keeps_alive()
        connection.is_answered = True
        pending = b"%b%b%b%b%b\r\n" % (
            _STATUS_LINES[200],
            connection.stamp.lines(),
            self._lines,
            _connection_line(request, self.keep_alive),
            b"Transfer-Encoding: chunked\r\n" if is_chunked else b"",
        )
        part = b"" if request.is_head else await self._parts.next()
        while part:
            pending += b"%x\r\n%b\r\n" % (len(part), part) if is_chunked else part
            _write(connection.transport, pending)
            pending = b""
            if connection.writing_paused:
                await connection.drained()
            part = await self._parts.next()
        if is_chunked and not request.is_head:
            pending += b"0\r\n%b\r\n" % self._parts.trailer_lines()
        _write(connection.transport, pending)


def error_response(error: KvError, lines: bytes = b"") -> ErrorResponse:
    """The answer that an error makes.

    Args:
        error: one whose code has a status.
        lines: further header lines.
    """
    if isinstance(error, Unavailable):
        lines += b"Retry-After: %d\r\n" % error.retry_after_s
    elif isinstance(error, MethodNotAllowed):
        lines += b"Allow: %b\r\n" % ", ".join(error.allow).encode()
    return ErrorResponse(error, lines)


def _connection_line(request: Request, keep_alive: bool) -> bytes:
    """What the client cannot know from its version."""
    if not keep_alive:
        return CLOSE_LINE
    return b"" if request.is_http_11 else b"Connection: keep-alive\r\n"


def _write(transport: asyncio.Transport | None, data: bytes) -> None:
    if transport is None or transport.is_closing():
        raise ConnectionResetError("connection lost")
    if data:
        transport.write(data)
