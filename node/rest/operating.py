"""What operators and load balancers ask: /status, /metrics, and the probes."""

from __future__ import annotations

import msgspec
from aiohttp import hdrs

from kvnode.node.api import NodeApi
from kvnode.node.rest.params import LAG_PARAMETERS, NO_PARAMETERS, parse_max_lag, parse_query
from kvnode.node.rest.request import Request
from kvnode.node.rest.response import JSON_TYPE, VARY_ACCEPT, Response
from kvnode.node.rest.routes import Table


class OperatingRoutes:
    """The handlers of the operator's routes. A probe answers 200, or 503 with the error that says why."""

    def __init__(self, node: NodeApi) -> None:
        self._node = node
        self._encoder = msgspec.json.Encoder(enc_hook=str)

    @property
    def table(self) -> Table:
        """The routes."""
        return {
            "/status": {hdrs.METH_GET: self.status},
            "/health": {hdrs.METH_GET: self.health},
            "/ready": {hdrs.METH_GET: self.ready},
            "/primary": {hdrs.METH_GET: self.primary},
            "/replica": {hdrs.METH_GET: self.replica},
            "/metrics": {hdrs.METH_GET: self.metrics},
        }

    async def status(self, request: Request) -> Response:
        """The node's account of itself."""
        parse_query(request.query, NO_PARAMETERS)
        return Response(200, JSON_TYPE, self._encoder.encode(self._node.status()))

    async def health(self, request: Request) -> Response:
        """Whether the process answers at all."""
        parse_query(request.query, NO_PARAMETERS)
        return _ok()

    async def ready(self, request: Request) -> Response:
        """Whether the node may be sent traffic."""
        max_lag = parse_max_lag(parse_query(request.query, LAG_PARAMETERS))
        self._node.check_ready(max_lag)
        return _ok()

    async def primary(self, request: Request) -> Response:
        """Whether the node is a primary that may be sent traffic."""
        parse_query(request.query, NO_PARAMETERS)
        self._node.check_role("primary")
        self._node.check_ready(None)
        return _ok()

    async def replica(self, request: Request) -> Response:
        """Whether the node is a replica that may be sent traffic."""
        max_lag = parse_max_lag(parse_query(request.query, LAG_PARAMETERS))
        self._node.check_role("replica")
        self._node.check_ready(max_lag)
        return _ok()

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text format, or OpenMetrics."""
        parse_query(request.query, NO_PARAMETERS)
        accept = ",".join(request.message.headers.getall(hdrs.ACCEPT, ()))
        content_type, body = await self._node.render_metrics(accept)
        return Response(200, b"Content-Type: %b\r\n" % content_type.encode("ascii") + VARY_ACCEPT, body)


def _ok() -> Response:
    return Response(200, JSON_TYPE, b'{"status":"OK"}')
