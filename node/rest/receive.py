"""Request bodies off the wire: in full, within their limit, in bounded memory, and not for ever."""

from __future__ import annotations

import asyncio

from aiohttp import hdrs, web

from kvnode.node.errors import InvalidRequest, Overloaded, TooLarge
from kvnode.node.rest.request import Request

#: What has to come of a body in every `timeout_s`, unless it is over: below that, its sender is taken for stuck.
PROGRESS_BYTES = 16 * 1024

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class BodyReceiver:
    """Receives the bodies of all requests of a front. Used on the event loop only.

    Most bodies are small and there when their request is handled. For the others, what they hold together is bounded;
    a body that does not fit is refused at once.
    """

    def __init__(self, max_body_bytes: int, budget_bytes: int, timeout_s: float) -> None:
        """Receive bodies.

        Args:
            max_body_bytes: largest body.
            budget_bytes: most that all bodies under way may hold.
            timeout_s: how long a body may bring less than `PROGRESS_BYTES`.
        """
        self._max_body_bytes = max_body_bytes
        self._budget_bytes = budget_bytes
        self._timeout_s = timeout_s
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """What all bodies under way hold."""
        return self._held_bytes

    async def receive(self, request: Request) -> bytes:
        """The body of a request, asking the client to go on if it waits for that.

        Raises:
            InvalidRequest: it is compressed, malformed, cut off, or does not come.
            TooLarge: it is over its limit; told before it is read where its length was announced.
            Overloaded: there is no memory for it now.
        """
        headers = request.message.headers
        encoding = headers.get(hdrs.CONTENT_ENCODING)
        if encoding is not None and encoding.lower() not in ("", "identity"):
            raise InvalidRequest(
                hdrs.CONTENT_ENCODING, f"Content-Encoding {encoding[:100]!a} is not supported; send the body as it is"
            )
        payload = request.payload
        if payload.is_eof() and payload.exception() is None:
            body = payload.read_nowait()
            if len(body) > self._max_body_bytes:
                raise self._too_large(len(body))
            return body
        announced = int(headers.get(hdrs.CONTENT_LENGTH, 0))
        if announced > self._max_body_bytes:
            raise self._too_large(announced)
        self._check_budget(announced)
        if request.is_http_11 and headers.get(hdrs.EXPECT, "").lower() == "100-continue":
            transport = request.connection.transport
            if transport is not None and not transport.is_closing() and not payload.total_bytes:
                transport.write(_CONTINUE)
        try:
            return await self._read(request)
        except TimeoutError:
            raise InvalidRequest(
                None, f"the body did not arrive: less than {PROGRESS_BYTES} bytes in {self._timeout_s:g} s"
            ) from None
        except (web.RequestPayloadError, ConnectionError) as error:
            raise InvalidRequest(None, f"the body is incomplete: {error}") from None

    async def _read(self, request: Request) -> bytes:
        payload = request.payload
        loop = asyncio.get_running_loop()
        parts: list[bytes] = []
        size = 0
        checked = 0
        try:
            async with asyncio.timeout(self._timeout_s) as deadline:
                while True:
                    if not request.connection.connected:
                        raise ConnectionResetError("connection lost")
                    part = await payload.readany()
                    if not part:
                        return b"".join(parts)
                    size += len(part)
                    if size > self._max_body_bytes:
                        raise self._too_large(size)
                    self._check_budget(len(part))
                    self._held_bytes += len(part)
                    parts.append(part)
                    if size - checked >= PROGRESS_BYTES:
                        checked = size
                        deadline.reschedule(loop.time() + self._timeout_s)
        finally:
            self._held_bytes -= sum(map(len, parts))
            # The payload keeps the error that ended it, and its traceback this frame: so they would keep a body that
            # was cut off, until the collector comes, which with few other objects about is rare.
            parts.clear()

    def _too_large(self, sent: int) -> TooLarge:
        return TooLarge("max_body_bytes", self._max_body_bytes, sent)

    def _check_budget(self, more: int) -> None:
        if self._held_bytes + more > self._budget_bytes:
            raise Overloaded(
                "too many bytes of request bodies are being received; nothing was written",
                limit="max_queued_bytes",
                max=self._budget_bytes,
                queued=self._held_bytes,
                sent=more,
            )
