"""GET /readrange: one JSON object, or one item a line, streamed when it is long.

The first part of a range is read before its head is sent, so that an early error still gets its own answer. A range
that ends within that part is sent whole, with its length; a longer one in chunks, no faster than its client takes it,
and an error then breaks the connection.

In the form of one item a line there is no place for `next_key` in the body. With `limit`, it is in the header
Kv-Next-Key, percent-encoded: in the head of an answer that is sent whole, and in the trailer section, as `Trailer`
announces, of a streamed one. Without that header there is no next key. A client of HTTP/1.0 gets no trailers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from urllib.parse import quote

import msgspec
from aiohttp import hdrs

from kvnode.node.api import Item, RangeStream, StoreApi
from kvnode.node.rest.params import RANGE_PARAMETERS, parse_query, parse_range, parse_read_token
from kvnode.node.rest.request import Request
from kvnode.node.rest.response import (
    JSON_TYPE,
    NDJSON_TYPE,
    VARY_ACCEPT,
    Response,
    StreamedResponse,
    position_lines,
)
from kvnode.node.rest.routes import Answer, Table

#: What is read before the head is sent.
_PEEK_BYTES = 64 * 1024

_NDJSON = "application/x-ndjson"
_JSON = "application/json"


class _RangeItem(msgspec.Struct, gc=False):
    key: str
    value: msgspec.Raw


_ENCODER = msgspec.json.Encoder()


def encode_json_items(items: Sequence[Item]) -> bytes:
    """``,{"key":...,"value":...}`` for each item; runs on a worker thread."""
    return b"," + _ENCODER.encode([_RangeItem(key.decode(), msgspec.Raw(value)) for key, value in items])[1:-1]


def encode_json_lines(items: Sequence[Item]) -> bytes:
    """``{"key":...,"value":...}`` and a line's end for each item; runs on a worker thread.

    Line breaks in a value are white space between its tokens, for a string cannot have them: they become spaces.
    """
    return _ENCODER.encode_lines([_RangeItem(key.decode(), msgspec.Raw(_on_one_line(value))) for key, value in items])


def _on_one_line(value: bytes) -> bytes:
    if b"\n" in value or b"\r" in value:
        return value.replace(b"\n", b" ").replace(b"\r", b" ")
    return value


class RangeRoutes:
    """The handler of range reads."""

    def __init__(self, store: StoreApi, max_key_bytes: int, on_broken: Callable[[Exception], None]) -> None:
        """Serve ranges.

        Args:
            on_broken: told why an answer had to be broken off.
        """
        self._store = store
        self._max_key_bytes = max_key_bytes
        self._on_broken = on_broken

    @property
    def table(self) -> Table:
        """The routes."""
        return {"/readrange": {hdrs.METH_GET: self.read_range}}

    async def read_range(self, request: Request) -> Answer:
        """The items of a range in the order of their keys."""
        query = parse_query(request.query, RANGE_PARAMETERS)
        wanted = parse_range(query, self._max_key_bytes)
        token = parse_read_token(query)
        if token is not None:
            await self._store.wait_applied(token)
        as_lines = _prefers_lines(",".join(request.message.headers.getall(hdrs.ACCEPT, ())))
        stream = await self._store.read_range(wanted, encode_json_lines if as_lines else encode_json_items)
        parts: _RangeParts = (_Lines if as_lines else _JsonObject)(stream)
        is_handed_over = False
        try:
            await parts.peek()
            lines = (NDJSON_TYPE if as_lines else JSON_TYPE) + VARY_ACCEPT + position_lines(stream.applied)
            if parts.is_at_end:
                return Response(200, lines + parts.trailer_lines(), parts.take())
            is_handed_over = True
            if as_lines and wanted.limit is not None and request.is_http_11:
                lines += b"Trailer: Kv-Next-Key\r\n"
            return StreamedResponse(lines, parts, self._on_broken)
        finally:
            if not is_handed_over:
                await parts.aclose()


class _RangeParts:
    """A range's body: what was read ahead, then chunk by chunk."""

    def __init__(self, stream: RangeStream) -> None:
        self.is_at_end = False
        self._stream = stream
        self._ahead = self._begin()

    async def peek(self) -> None:
        """Read ahead; afterwards, `is_at_end` tells whether that was all, and `take` gives it."""
        while not self.is_at_end and len(self._ahead) < _PEEK_BYTES:
            self._ahead += await self._read()

    def take(self) -> bytes:
        """What was read ahead, once."""
        ahead, self._ahead = self._ahead, b""
        return ahead

    async def next(self) -> bytes:
        """The next part; empty at the end."""
        if self._ahead:
            return self.take()
        return b"" if self.is_at_end else await self._read()

    def trailer_lines(self) -> bytes:
        """Header lines that are known at the end only."""
        return b""

    async def aclose(self) -> None:
        """Let go of the range's snapshot."""
        await self._stream.aclose()

    async def _read(self) -> bytes:
        try:
            return self._shape(await anext(self._stream))
        except StopAsyncIteration:
            self.is_at_end = True
            return self._finish()

    def _begin(self) -> bytes:
        return b""

    def _shape(self, chunk: bytes) -> bytes:
        return chunk

    def _finish(self) -> bytes:
        return b""


class _JsonObject(_RangeParts):
    """``{"items":[...],"count":N,"next_key":...}``."""

    def __init__(self, stream: RangeStream) -> None:
        super().__init__(stream)
        self._is_first = True

    def _begin(self) -> bytes:
        return b'{"items":['

    def _shape(self, chunk: bytes) -> bytes:
        # Every item has a comma before it; the first has none to follow.
        if self._is_first:
            self._is_first = False
            return chunk[1:]
        return chunk

    def _finish(self) -> bytes:
        next_key = self._stream.next_key
        shown = b"null" if next_key is None else _ENCODER.encode(next_key.decode())
        return b'],"count":%d,"next_key":%b}' % (self._stream.count, shown)


class _Lines(_RangeParts):
    """One item a line."""

    def trailer_lines(self) -> bytes:
        next_key = self._stream.next_key
        return b"" if next_key is None else b"Kv-Next-Key: %b\r\n" % quote(next_key, safe="").encode()


def _prefers_lines(accept: str) -> bool:
    """Whether an Accept header asks for one item a line, and not rather for JSON by its name."""
    qualities = {_NDJSON: 0.0, _JSON: 0.0}
    for part in accept.split(","):
        media_type, *parameters = (text.strip().lower() for text in part.split(";"))
        if media_type in qualities:
            quality = 1.0
            for parameter in parameters:
                if parameter.startswith("q="):
                    try:
                        quality = float(parameter[2:])
                    except ValueError:
                        quality = 0.0
            qualities[media_type] = quality
    return qualities[_NDJSON] > 0 and qualities[_NDJSON] >= qualities[_JSON]
