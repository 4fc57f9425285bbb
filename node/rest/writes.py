"""POST /put, /batchput and /delete."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from aiohttp import hdrs

from kvnode.node.api import StoreApi, WriteResult
from kvnode.node.rest.body import decode_batch, decode_delete, decode_put
from kvnode.node.rest.params import WRITE_PARAMETERS, parse_acks, parse_query
from kvnode.node.rest.receive import BodyReceiver
from kvnode.node.rest.request import Request
from kvnode.node.rest.response import JSON_TYPE, Response, position_lines
from kvnode.node.rest.routes import Table
from kvnode.protocol.types import Op

#: The path of the route that sets one key.
PUT_ROUTE = "/put"

_encode_key = msgspec.json.Encoder().encode


class WriteRoutes:
    """The handlers of writes.

    A write that the store has taken is never taken back. A client that leaves does not cancel its handler (aiohttp does
    that only when asked to). A stop that lasts too long does, and the store's future is cancelled with it, which undoes
    nothing; `asyncio.shield` would keep the future whole at the price of one more turn of the loop for every write.
    """

    def __init__(self, store: StoreApi, bodies: BodyReceiver, max_batch_items: int) -> None:
        self._store = store
        self._max_batch_items = max_batch_items
        self._bodies = bodies

    @property
    def table(self) -> Table:
        """The routes."""
        return {
            PUT_ROUTE: {hdrs.METH_POST: self.put},
            "/batchput": {hdrs.METH_POST: self.put_batch},
            "/delete": {hdrs.METH_POST: self.delete},
        }

    async def put(self, request: Request) -> Response:
        """Set one key."""
        acks = parse_acks(parse_query(request.query, WRITE_PARAMETERS)) if request.query else None
        key, op = decode_put(await self._bodies.receive(request))
        result = await self._store.write((op,), acks)
        return put_answer(key, result)

    async def put_batch(self, request: Request) -> Response:
        """Set many keys in one atomic write."""
        acks = parse_acks(parse_query(request.query, WRITE_PARAMETERS)) if request.query else None
        ops: Sequence[Op] = decode_batch(await self._bodies.receive(request), self._max_batch_items)
        result = await self._store.write(ops, acks)
        return _written(result, b'{"status":"OK","count":%d,"seq":%d}' % (len(ops), result.position.seq))

    async def delete(self, request: Request) -> Response:
        """Remove one key; a missing one is no error."""
        acks = parse_acks(parse_query(request.query, WRITE_PARAMETERS)) if request.query else None
        key, op = decode_delete(await self._bodies.receive(request))
        result = await self._store.write((op,), acks)
        body = b'{"status":"OK","key":%b,"deleted":%b,"seq":%d}' % (
            _encode_key(key),
            b"true" if result.deleted else b"false",
            result.position.seq,
        )
        return _written(result, body)


def put_answer(key: str, result: WriteResult) -> Response:
    """What a put is answered with."""
    return _written(result, b'{"status":"OK","key":%b,"seq":%d}' % (_encode_key(key), result.position.seq))


def _written(result: WriteResult, body: bytes) -> Response:
    return Response(200, JSON_TYPE + position_lines(result.position), body)
