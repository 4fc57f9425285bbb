"""One request as the handlers see it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import EMPTY_PAYLOAD, StreamReader, hdrs
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpVersion11, RawRequestMessage

if TYPE_CHECKING:
    from kvnode.node.rest.connection import Connection


class Request:
    """A parsed head, and the body as far as it has come.

    It stands where aiohttp's server expects a `web.BaseRequest`, of which it calls `_finish` and `_cancel` and sets
    `_task`. It leaves out what BaseRequest computes for every request and no handler here asks for: the URL, the
    query, the peer's address, the state dictionary. The signature is that of a `request_factory`.

    Attributes:
        message: method, target as sent, version and headers.
        payload: the body.
        connection: where it came from.
        path: the target's path, as sent; set when its route is looked up.
        query: the target's query, as sent, without the question mark; likewise.
        route: the path of its route, as in the front's tables; likewise. Empty where there is none.
    """

    __slots__ = ("_task", "connection", "message", "path", "payload", "query", "route")

    def __init__(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        connection: Connection,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> None:
        self.message = message
        self.payload = payload
        self.connection = connection
        self._task = task
        self.path = ""
        self.query = ""
        self.route = ""
        connection.receiving = payload
        connection.is_answered = False

    @property
    def is_head(self) -> bool:
        """Whether only the answer's head is wanted."""
        return self.message.method == hdrs.METH_HEAD

    @property
    def is_http_11(self) -> bool:
        """Whether the client knows chunked transfer coding and 100-continue, and keeps connections alive by default."""
        return self.message.version >= HttpVersion11

    def keeps_alive(self) -> bool:
        """Whether another request may follow on the connection after this one's answer."""
        payload = self.payload
        return (
            not self.message.should_close
            # What is left of a body would be taken for the next request.
            and (payload is EMPTY_PAYLOAD or (payload.is_eof() and payload.exception() is None))
            and self.connection.is_open
        )

    def _finish(self) -> None:
        """Called by aiohttp when the handler has returned."""

    def _cancel(self, error: BaseException) -> None:
        """Called by aiohttp when the connection is lost: nothing more of the body will come."""
        self.payload.set_exception(error)
