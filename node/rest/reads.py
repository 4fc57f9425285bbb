"""GET /read/{key}."""

from __future__ import annotations

import re

import msgspec
from aiohttp import hdrs

from kvnode.node.api import Record, StoreApi
from kvnode.node.errors import KeyNotFound
from kvnode.node.rest.params import READ_PARAMETERS, decode_key, parse_query, parse_read_token
from kvnode.node.rest.request import Request
from kvnode.node.rest.response import JSON_TYPE, Response, error_response, etag_of, position_lines, record_lines
from kvnode.node.rest.routes import Table
from kvnode.protocol.types import Position

#: The path of the route, behind which the key stands.
READ_ROUTE = "/read/"
_encode_key = msgspec.json.Encoder().encode
_ENTITY_TAG = re.compile(r'(?:W/)?("[^"]*")')


class ReadRoutes:
    """The handler of point reads. A read that the cache answers runs from end to end without giving up the loop."""

    def __init__(self, store: StoreApi, max_key_bytes: int) -> None:
        self._store = store
        self._max_key_bytes = max_key_bytes

    @property
    def table(self) -> Table:
        """The routes."""
        return {READ_ROUTE: {hdrs.METH_GET: self.read}}

    async def read(self, request: Request) -> Response:
        """One key's value, with its version as the ETag."""
        store = self._store
        key = decode_key(request.path[len(READ_ROUTE) :], "key", self._max_key_bytes)
        if request.query:
            token = parse_read_token(parse_query(request.query, READ_PARAMETERS))
            if token is not None:
                await store.wait_applied(token)
        record = store.cached(key)
        applied = store.applied
        if record is None:
            record, applied = await store.read(key)
        if record is not None and hdrs.IF_NONE_MATCH in request.message.headers:
            etag = etag_of(record.position)
            if names_etag(request, etag.decode()):
                return Response(304, record_lines(applied, record.position), None)
        return record_answer(key.decode(), record, applied)


def record_answer(key: str, record: Record | None, applied: Position) -> Response:
    """What a read is answered with, given what was found, and up to which position that was looked for."""
    if record is None:
        return error_response(KeyNotFound(key), position_lines(applied))
    body = b'{"key":%b,"value":%b}' % (_encode_key(key), record.value)
    return Response(200, JSON_TYPE + record_lines(applied, record.position), body)


def names_etag(request: Request, etag: str) -> bool:
    """Whether If-None-Match names the version: a list, compared weakly, or `*` for any (RFC 9110, section 13.1.2)."""
    condition = ",".join(request.message.headers.getall(hdrs.IF_NONE_MATCH))
    return condition.strip() == "*" or etag in _ENTITY_TAG.findall(condition)
