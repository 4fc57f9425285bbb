"""GET /read/{key}."""

from __future__ import annotations

import re

import msgspec
from aiohttp import hdrs

from kvnode.node.api import StoreApi
from kvnode.node.errors import KeyNotFound
from kvnode.node.rest.params import READ_PARAMETERS, decode_key, parse_query, parse_read_token
from kvnode.node.rest.request import Request
from kvnode.node.rest.response import JSON_TYPE, Response, error_response, etag_of, position_lines
from kvnode.node.rest.routes import Table

_PREFIX = "/read/"
_ENTITY_TAG = re.compile(r'(?:W/)?("[^"]*")')


class ReadRoutes:
    """The handler of point reads. A read that the cache answers runs from end to end without giving up the loop."""

    def __init__(self, store: StoreApi, max_key_bytes: int) -> None:
        self._store = store
        self._max_key_bytes = max_key_bytes
        self._encode_key = msgspec.json.Encoder().encode

    @property
    def table(self) -> Table:
        """The routes."""
        return {_PREFIX: {hdrs.METH_GET: self.read}}

    async def read(self, request: Request) -> Response:
        """One key's value, with its version as the ETag."""
        store = self._store
        key = decode_key(request.path[len(_PREFIX) :], "key", self._max_key_bytes)
        if request.query:
            token = parse_read_token(parse_query(request.query, READ_PARAMETERS))
            if token is not None:
                await store.wait_applied(token)
        record = store.cached(key)
        if record is not None:
            applied = store.applied
        else:
            record, applied = await store.read(key)
            if record is None:
                return error_response(KeyNotFound(key.decode()), position_lines(applied))
        etag = etag_of(record.position)
        lines = b"%bETag: %b\r\n" % (position_lines(applied), etag)
        if hdrs.IF_NONE_MATCH in request.message.headers and names_etag(request, etag.decode()):
            return Response(304, lines, None)
        body = b'{"key":%b,"value":%b}' % (self._encode_key(key.decode()), record.value)
        return Response(200, JSON_TYPE + lines, body)


def names_etag(request: Request, etag: str) -> bool:
    """Whether If-None-Match names the version: a list, compared weakly, or `*` for any (RFC 9110, section 13.1.2)."""
    condition = ",".join(request.message.headers.getall(hdrs.IF_NONE_MATCH))
    return condition.strip() == "*" or etag in _ENTITY_TAG.findall(condition)
