"""The REST front: listens, hands every request to its handler, and turns every error into an answer."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import hdrs, web

from kvnode.node.api import NodeApi, StoreApi
from kvnode.node.clock import Clock, RealClock
from kvnode.node.config import Address, Config
from kvnode.node.eventlog import EventLog
from kvnode.node.metrics import RequestCounters
from kvnode.node.rest.admission import MAX_SURPLUS, Admission, Doorway
from kvnode.node.rest.cluster import ClusterRoutes
from kvnode.node.rest.connection import Connection
from kvnode.node.rest.errors import ANSWERABLE, answerable
from kvnode.node.rest.events import EventRoutes
from kvnode.node.rest.express import Express, ExpressConnection
from kvnode.node.rest.openapi import document_source
from kvnode.node.rest.operating import OperatingRoutes
from kvnode.node.rest.origin import check_origin
from kvnode.node.rest.pages import PageRoutes
from kvnode.node.rest.ranges import RangeRoutes
from kvnode.node.rest.reads import ReadRoutes
from kvnode.node.rest.receive import BodyReceiver
from kvnode.node.rest.request import Request
from kvnode.node.rest.response import DateStamp, ErrorResponse, error_response
from kvnode.node.rest.routes import Answer, Routes
from kvnode.node.rest.writes import WriteRoutes
from kvnode.protocol.errors import KvError

#: Connections that the kernel completes and holds while the loop is busy; its own limit counts if that is lower.
_BACKLOG = 4096

#: How long an idle connection stays open; also how long a client may take for a request's head.
_KEEPALIVE_TIMEOUT_S = 75.0

#: How long a body may not come, an answer may not be taken, and refused input is read off.
_BODY_TIMEOUT_S = 30.0
_STALL_TIMEOUT_S = 30.0
_LINGER_TIMEOUT_S = 30.0

#: What a handler that did not end in time gets to react to its cancellation.
_CANCEL_TIMEOUT_S = 0.1

#: Keys in the target of /readrange, the most that a request has; an escaped byte takes three.
_KEYS_IN_A_LINE = 3
_OTHERS_IN_A_LINE_BYTES = 4096


class RestFront:
    """Serves REST for one store. Lives on one event loop.

    Attributes:
        counters: of the requests.
        admission: who is served.
    """

    def __init__(
        self,
        config: Config,
        store: StoreApi,
        node: NodeApi,
        log: EventLog,
        clock: Clock | None = None,
        *,
        keepalive_timeout_s: float = _KEEPALIVE_TIMEOUT_S,
        body_timeout_s: float = _BODY_TIMEOUT_S,
        stall_timeout_s: float = _STALL_TIMEOUT_S,
        linger_timeout_s: float = _LINGER_TIMEOUT_S,
        max_connections: int | None = None,
        max_surplus: int = MAX_SURPLUS,
    ) -> None:
        """Serve `store` at ``config.http``, once started.

        Args:
            keepalive_timeout_s: how long an idle connection stays open.
            body_timeout_s: how long a request's body may make no progress.
            stall_timeout_s: how long a client may take nothing of its answer.
            linger_timeout_s: how long what follows refused input is read and thrown away.
            max_connections: that are served at a time; None = as many as the configuration says.
            max_surplus: connections that are taken beyond that, to be refused.
        """
        self._address = config.http
        self._log = log
        self._keepalive_timeout_s = keepalive_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._linger_timeout_s = linger_timeout_s
        self._max_line_bytes = _KEYS_IN_A_LINE * 3 * config.max_key_bytes + _OTHERS_IN_A_LINE_BYTES
        clock = clock or RealClock()
        self._now_s = clock.monotonic_s
        self._stamp = DateStamp(clock)
        self._bodies = BodyReceiver(config.max_body_bytes, config.max_queued_bytes, body_timeout_s)
        self._events = EventRoutes(node, functools.partial(self._report_broken, "/events"))
        self._routes = Routes(
            WriteRoutes(store, self._bodies, config.max_batch_items).table,
            ReadRoutes(store, config.max_key_bytes).table,
            RangeRoutes(store, config.max_key_bytes, functools.partial(self._report_broken, "/readrange")).table,
            OperatingRoutes(node).table,
            ClusterRoutes(node, self._bodies).table,
            PageRoutes({"/openapi.json": document_source(config)}).table,
            self._events.table,
        )
        self.counters = RequestCounters(self._routes.paths)
        self._express = Express(config, store, self.counters, self._now_s, self._refuse)
        self.admission = Admission(
            config.max_connections if max_connections is None else max_connections,
            self._stamp,
            self._now_s,
            self._routes.route_of,
            self._count_refused,
            max_surplus=max_surplus,
        )
        self._server: web.Server | None = None
        self._listener: asyncio.Server | None = None

    @property
    def connection_count(self) -> int:
        """Connections that are open, whether they are served or not."""
        return self.admission.served + self.admission.surplus

    @property
    def held_bytes(self) -> int:
        """What the request bodies under way hold."""
        return self._bodies.held_bytes

    async def start(self) -> Address:
        """Listen, and return the bound address.

        Raises:
            OSError: the address cannot be bound.
        """
        # aiohttp is typed for its own requests and responses; ours have what it uses of them.
        handler = cast("Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]", self._handle)
        self._server = web.Server(handler, request_factory=cast(Any, Request))
        self._listener = await asyncio.get_running_loop().create_server(
            self._connect, self._address.host, self._address.port, backlog=_BACKLOG, reuse_address=True
        )
        host, port = self._listener.sockets[0].getsockname()[:2]
        return Address(host, port)

    def stop_accepting(self) -> None:
        """Take no new connections; those there are get one more answer each, and nobody watches any more."""
        if self._listener is not None:
            self._listener.close()
        for connection in self._connections():
            connection.end_soon()
        self._events.end()

    async def close(self, timeout_s: float) -> None:
        """End all connections: idle ones at once, others after the answer under way, at the latest after `timeout_s`.

        What is cancelled then cannot take back a write that the store has.
        """
        self.stop_accepting()
        if self._server is None:
            return
        # What was accepted last begins to wait for its request in this turn.
        await asyncio.sleep(0)
        self.admission.close()
        for connection in self._connections():
            connection.close_if_answered()
        tasks = [task for connection in self._connections() if (task := connection.task) is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=_CANCEL_TIMEOUT_S)
        await self._server.shutdown(_CANCEL_TIMEOUT_S)

    def _connections(self) -> list[Connection]:
        return [] if self._server is None else cast("list[Connection]", self._server.connections)

    def _connect(self) -> asyncio.Protocol:
        """What serves one client, or refuses it."""
        if self.admission.take_place():
            return self._connection(self.admission.leave)
        return Doorway(self.admission, self._let_in)

    def _let_in(self, transport: asyncio.Transport, begin: bytes) -> None:
        """Serve one request of a surplus connection."""
        connection = self._connection(self.admission.leave_surplus)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        connection.end_soon()
        connection.data_received(begin)

    def _connection(self, on_lost: Callable[[], None]) -> Connection:
        assert self._server is not None, "connected before the start"
        return ExpressConnection(
            self._express,
            self._server,
            loop=asyncio.get_running_loop(),
            log=self._log,
            stamp=self._stamp,
            stall_timeout_s=self._stall_timeout_s,
            linger_timeout_s=self._linger_timeout_s,
            on_malformed=self._count_malformed,
            on_lost=on_lost,
            keepalive_timeout=self._keepalive_timeout_s,
            max_line_size=self._max_line_bytes,
            auto_decompress=False,
            access_log=None,
        )

    async def _handle(self, request: Request) -> Answer:
        began_s = self._now_s()
        try:
            handler = self._routes.find(request)
            if request.message.method == hdrs.METH_POST:
                check_origin(request)
            answer = await handler(request)
        except Exception as error:
            answer = self._refuse(error, request.route)
        self.counters.count(request.route, self._now_s() - began_s, answer.status, answer.code)
        return answer

    def _count_refused(self, path: str, began_s: float, answer: ErrorResponse) -> None:
        """Count a request that was refused for the number of connections."""
        self.counters.count(path, self._now_s() - began_s, answer.status, answer.code)

    def _count_malformed(self) -> None:
        self.counters.malformed += 1

    def _refuse(self, error: Exception, route: str) -> ErrorResponse:
        """The answer that an error makes; logged if it is not the client's, with a traceback only if it is a bug."""
        # The route only: what follows may be a key.
        if isinstance(error, KvError):
            if not isinstance(error, ANSWERABLE):
                self._report_expected("request_failed", error, route)
        else:
            self._log.error("request_failed", error, route=route)
        return error_response(answerable(error))

    def _report_broken(self, route: str, error: Exception) -> None:
        """Log why an answer had to be broken off."""
        self.counters.broken += 1
        if isinstance(error, KvError):
            self._report_expected("answer_broken_off", error, route)
        else:
            self._log.error("answer_broken_off", error, route=route)

    def _report_expected(self, event: str, error: KvError, route: str) -> None:
        hint = {} if error.hint is None else {"hint": error.hint}
        self._log.error(event, None, route=route, code=error.code, reason=error.message, **hint)
