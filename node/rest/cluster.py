"""POST /cluster/promote and /cluster/forget: what an operator decides about the cluster."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from aiohttp import hdrs

from kvnode.node.api import NodeApi
from kvnode.node.errors import InvalidJson, InvalidRequest
from kvnode.node.rest.params import NO_PARAMETERS, parse_query
from kvnode.node.rest.receive import BodyReceiver
from kvnode.node.rest.request import Request
from kvnode.node.rest.response import JSON_TYPE, Response
from kvnode.node.rest.routes import Table

T = TypeVar("T")


class _PromoteBody(msgspec.Struct, forbid_unknown_fields=True):
    force: bool = False


class _ForgetBody(msgspec.Struct, forbid_unknown_fields=True):
    name: str


_PROMOTE = msgspec.json.Decoder(_PromoteBody)
_FORGET = msgspec.json.Decoder(_ForgetBody)


class ClusterRoutes:
    """The handlers of the routes that change who is what."""

    def __init__(self, node: NodeApi, bodies: BodyReceiver) -> None:
        self._node = node
        self._bodies = bodies
        self._encoder = msgspec.json.Encoder(enc_hook=str)

    @property
    def table(self) -> Table:
        """The routes."""
        return {
            "/cluster/promote": {hdrs.METH_POST: self.promote},
            "/cluster/forget": {hdrs.METH_POST: self.forget},
        }

    async def promote(self, request: Request) -> Response:
        """Make this node the primary."""
        parse_query(request.query, NO_PARAMETERS)
        body = await self._bodies.receive(request)
        wanted = _decode(body, _PROMOTE) if body.strip() else _PromoteBody()
        return self._ok(await self._node.promote(force=wanted.force))

    async def forget(self, request: Request) -> Response:
        """Let a member go that will not return."""
        parse_query(request.query, NO_PARAMETERS)
        wanted = _decode(await self._bodies.receive(request), _FORGET)
        await self._node.forget(wanted.name)
        return self._ok({"status": "OK", "name": wanted.name})

    def _ok(self, answer: dict[str, Any]) -> Response:
        return Response(200, JSON_TYPE, self._encoder.encode(answer))


def _decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(None, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidJson(str(error)) from None
