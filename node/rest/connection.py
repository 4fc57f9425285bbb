"""One client's connection: aiohttp's HTTP/1.1 server protocol, with its rough edges taken off.

This and `express` are the places that know the inside of aiohttp's `RequestHandler` (aiohttp 3.14). Parsing,
pipelining, keep-alive, and reading off a refused body (`lingering_time`) are aiohttp's. What differs:

- Malformed HTTP is answered by a JSON 400, and nothing is logged: it is the client's mistake. aiohttp answers in plain
  text and logs a traceback.
- A body whose chunks turn out malformed fails at once. aiohttp would leave its reader waiting for ever.
- After malformed input the rest is read and thrown away for a while, behind a half-closed connection: closing with
  bytes unread makes the kernel send a reset, which can destroy the answer on its way.
- A client that half-closes its side after its last request still gets its answers. aiohttp would close.
- A client that stops reading is given up when it has taken nothing for a while (`drained`).
- An answer that cannot be completed ends in a reset (`abort`), so that it never looks whole, not even to a client of
  HTTP/1.0, for which the end of the connection is the end of the answer.

Private names of RequestHandler used: `_close`, `_messages`, `_reading_paused`, `_request_count`, `_task_handler` and
`_waiter`.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Callable
from typing import Any, cast

from aiohttp import EMPTY_PAYLOAD, StreamReader, web
from aiohttp.http import HttpProcessingError, RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from kvnode.node.errors import InvalidRequest
from kvnode.node.eventlog import EventLog
from kvnode.node.rest.errors import Internal
from kvnode.node.rest.response import DateStamp, error_response

#: Bytes of answers that wait in the process, above which a handler waits for the client, and below which it goes on.
_WRITE_HIGH_BYTES = 256 * 1024
_WRITE_LOW_BYTES = 64 * 1024

#: Makes close() send a reset instead of an orderly end.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Connection(RequestHandler):
    """A connection. See the module.

    Attributes:
        receiving: the body of the request that was begun last.
        is_answered: whether the answer to that request is being sent, or was.
        stamp: gives the header lines that are the same in every answer of this second.
    """

    __slots__ = (
        "_half_closed",
        "_is_discarding",
        "_is_ending",
        "_linger_timeout_s",
        "_log",
        "_lost",
        "_on_lost",
        "_on_malformed",
        "_stall_timeout_s",
        "_writable",
        "is_answered",
        "receiving",
        "stamp",
    )

    def __init__(
        self,
        server: web.Server,
        *,
        loop: asyncio.AbstractEventLoop,
        log: EventLog,
        stamp: DateStamp,
        stall_timeout_s: float,
        linger_timeout_s: float,
        on_malformed: Callable[[], None],
        on_lost: Callable[[], None],
        **limits: Any,
    ) -> None:
        """Serve one client.

        Args:
            on_malformed: told of each input that is no HTTP.
            on_lost: told once, when the connection is no more.
            stall_timeout_s: how long a client may take nothing of its answer.
            linger_timeout_s: how long what follows a refused body or malformed input is read and thrown away.
            limits: further settings of aiohttp's `RequestHandler`.
        """
        super().__init__(server, loop=loop, lingering_time=linger_timeout_s, **limits)
        self.stamp = stamp
        self.receiving: StreamReader = EMPTY_PAYLOAD
        self.is_answered = False
        self._log = log
        self._stall_timeout_s = stall_timeout_s
        self._linger_timeout_s = linger_timeout_s
        self._on_malformed = on_malformed
        self._on_lost = on_lost
        self._is_discarding = False
        self._is_ending = False
        self._half_closed = False
        #: Done when the transport takes more; None while it does.
        self._writable: asyncio.Future[None] | None = None
        self._lost: asyncio.Future[None] = loop.create_future()

    @property
    def is_open(self) -> bool:
        """Whether more requests may come."""
        return not (self._is_ending or self._close or (self._half_closed and not self._messages))

    @property
    def task(self) -> asyncio.Task[None] | None:
        """What serves this connection, until its end."""
        return self._task_handler

    # ---- from the transport ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).set_write_buffer_limits(_WRITE_HIGH_BYTES, _WRITE_LOW_BYTES)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.receiving = EMPTY_PAYLOAD
        if not self._lost.done():
            self._lost.set_result(None)
            self._on_lost()
        self._set_writable()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._set_writable()

    def resume_reading(self, resume_parser: bool = True) -> None:
        # aiohttp calls this for every body that is read, to parse again what a pause may have left. Where nothing was
        # paused there is nothing left, and not to look saves a tenth of a small POST.
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def data_received(self, data: bytes) -> None:
        if self._is_discarding:
            return
        try:
            super().data_received(data)
        except Exception as error:
            self._log.error("http_parser_failed", error)
            self.abort()
            return
        messages = self._messages
        if messages and not isinstance(messages[-1][0], RawRequestMessage):
            # The parser gave up, and aiohttp has queued the 400. (Requests that came whole in the same read are dropped
            # by aiohttp, unseen: nothing of them was done.)
            self._is_discarding = True
            before = messages[-2][1] if len(messages) > 1 else None
            self._end_body(before, web.RequestPayloadError("malformed HTTP in the body"))

    def eof_received(self) -> bool | None:  # type: ignore[override]
        if self._is_discarding or self._is_idle or self._request_count == 0:
            return None
        body = None
        if self._messages:
            self._half_closed = True
            body = self._messages[-1][1]
        else:
            # Ends the connection after the request under way, even when its answer is out already.
            self.close()
        self._end_body(body, web.RequestPayloadError("the client closed the connection before its end"))
        return True

    def end_soon(self) -> None:
        """Let the next answer be the last; an idle connection stays open for the request that may be on its way."""
        self._is_ending = True

    def close_if_answered(self) -> None:
        """Close, at once or behind the answer that is being sent, unless a request is under way.

        After `end_soon` such a request is the last one. (aiohttp's `close` would also stop reading its body.)
        """
        if self._is_idle or (self.is_answered and self.receiving.is_eof()):
            self.close()

    # ---- for answers -----------------------------------------------------------------------------------------------

    async def drained(self) -> None:
        """Return when the client has taken so much of what was written that more may follow.

        Raises:
            ConnectionError: the connection is lost; also because the client took nothing for `stall_timeout_s`.
        """
        while (writable := self._writable) is not None:
            before = self._unsent_bytes()
            done, _ = await asyncio.wait((writable,), timeout=self._stall_timeout_s)
            if not done and self._unsent_bytes() >= before:
                self.abort()
                raise ConnectionAbortedError("the client takes nothing of its answer")
        if self.transport is None:
            raise ConnectionResetError("connection lost")

    async def linger(self) -> None:
        """After the last answer on a connection whose input is malformed: let the client read it before the end."""
        transport = self.transport
        if not self._is_discarding or transport is None or transport.is_closing():
            return
        transport.write_eof()
        await asyncio.wait((self._lost,), timeout=self._linger_timeout_s)

    def abort(self) -> None:
        """Break the connection with a reset; what was written and is not sent yet is dropped."""
        transport = self.transport
        if transport is not None:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            transport.abort()

    # ---- from aiohttp's loop over requests -------------------------------------------------------------------------

    def handle_error(
        self, request: Any, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> Any:
        """The answer to malformed HTTP; and to an error that the handler let through, which would be a bug."""
        if isinstance(exc, HttpProcessingError):
            self._on_malformed()
            return error_response(InvalidRequest(None, _describe(exc)))
        self._log.error("request_failed", exc)
        return error_response(Internal("the node failed to answer this request; its log says why"))

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Called for errors outside of handlers."""
        self._log.error("connection_failed", kw.get("exc_info"))

    @property
    def _is_idle(self) -> bool:
        """Whether it waits for the head of a request."""
        return self._waiter is not None and not self._waiter.done()

    def _end_body(self, waiting: StreamReader | None, error: Exception) -> None:
        """Let the body that is being received come no further; does nothing to one that is whole.

        Args:
            waiting: that body if it is of a request that has not begun; None for the request that was begun last.
            error: what its reader gets. A body that is only read off behind its answer just ends.
        """
        body = self.receiving if waiting is None else waiting
        if not body.is_eof():
            if waiting is not None or not self.is_answered:
                body.set_exception(error)
            # So that aiohttp does not wait for the rest after the answer.
            body.feed_eof()

    def _set_writable(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    def _unsent_bytes(self) -> int:
        """What the client's side has not acknowledged, in the process and in the kernel."""
        transport = self.transport
        if transport is None:
            return 0
        queued = array.array("i", [0])
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, queued)
        return transport.get_write_buffer_size() + queued[0]


def _describe(error: HttpProcessingError) -> str:
    if isinstance(error, LineTooLong):
        return f"malformed HTTP: the request line or a header is longer than {error.args[1]} bytes"
    # What follows the first empty line is an excerpt of the input.
    reason = " ".join(error.message.partition("\n\n")[0].split()).rstrip(":")
    return f"malformed HTTP: {reason.encode('ascii', 'backslashreplace').decode()[:200]}"
