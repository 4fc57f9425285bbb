"""One request to one node over HTTP: its answer, or the error that says how far it came.

Whether a write may be sent again depends on whether any byte of it was sent. That is not guessed from the kind of
failure: aiohttp says when it begins to write a request (`on_request_headers_sent`, before the first byte is handed
to the socket). What failed before that is `Unreachable`, what failed later `Unanswered`.

aiohttp itself repeats a GET, once, when its connection breaks before the answer; never a POST. A kept connection that
the node has closed meanwhile is noticed and not used if the event loop has had a chance to see it; hence the turns
of the loop before a POST. The node keeps idle connections for 75 s and this side for 15 s, so this happens only
when a node stops. In the instant that remains, a POST on such a connection is `Unanswered`.
"""

from __future__ import annotations

import asyncio
import io
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from enum import Enum
from types import SimpleNamespace, TracebackType
from typing import NamedTuple, Self

import aiohttp
from yarl import URL

from kvnode.cli.client.answers import error_of_answer, not_kvnode
from kvnode.cli.client.resolving import Resolver
from kvnode.cli.errors import ClientClosed, Unanswered, Unreachable

NDJSON = "application/x-ndjson"

#: How long aiohttp keeps an idle connection; a node keeps it for longer.
_KEEPALIVE_S = 15.0

_UNREACHABLE_HINT = "is the node running? `kvnode start` starts one; --url or KVNODE_URL names another"
_TLS_HINT = "does it speak TLS? a URL that begins with http:// is for one that does not"
_CERTIFICATE_HINT = "is the certificate for this host, and by who is trusted here? SSL_CERT_FILE names a file of others"
_LOOK_UP_HINT = "do name servers answer? `getent hosts NAME` asks them; an IP address in the URL needs none"
_CROWDED_HINT = "more `connections` or a longer timeout help where many requests are in flight"


class Request(NamedTuple):
    """What to send.

    Attributes:
        method: of HTTP.
        target: path and query, escaped.
        body: JSON text, or None.
        accept: the media type wanted.
        unanswered: the hint of an `Unanswered`: what may have happened all the same.
    """

    method: str
    target: str
    body: bytes | None = None
    accept: str = "application/json"
    unanswered: str | None = None


class Limits(NamedTuple):
    """How long one request may take.

    Attributes:
        deadline: of the whole request up to its answer's head, on the event loop's clock.
        begin_s: longest time until the request is being sent: for a free connection, or for its host's address and a
            new one.
        connect_s: longest wait for one connection to be made.
        answer_s: longest wait for the answer, or for the head of a streamed one, once the request is being sent.
        silence_s: longest wait for the next piece of a streamed answer.
    """

    deadline: float
    begin_s: float
    connect_s: float
    answer_s: float
    silence_s: float


class Answer(NamedTuple):
    """A 200.

    Attributes:
        body: as it was sent.
        headers: by their names, in any case.
    """

    body: bytes
    headers: Mapping[str, str]


class Stream:
    """An answer of JSON lines that comes bit by bit.

    Attributes:
        headers: of the answer.
    """

    def __init__(self, url: str, response: aiohttp.ClientResponse, timeout: asyncio.Timeout) -> None:
        self.headers: Mapping[str, str] = response.headers
        self._url = url
        self._response = response
        self._timeout = timeout

    def let_run(self) -> None:
        """Lift the limit on the whole: a stream may take hours, but not long without a byte."""
        self._timeout.reschedule(None)

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """Yield what comes, untouched, in blocks that each end with a line's end.

        Raises:
            BadAnswer: it has another form, or ends within a line.
        """
        response, url = self._response, self._url
        if response.content_type != NDJSON:
            raise not_kvnode(f"{url}: answered {response.content_type}, not {NDJSON}", url)
        if response.content_length is None and "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            # An end that is only a closed connection looks the same when the answer was cut.
            raise not_kvnode(f"{url}: the answer has no marked end", url)
        rest = b""
        async for chunk in response.content.iter_any():
            # A line's end inside a long line cannot be: only the new chunk has to be searched.
            whole, newline, tail = chunk.rpartition(b"\n")
            if newline:
                yield rest + whole + newline
                rest = tail
            else:
                rest += tail
        if rest:
            raise not_kvnode(f"{url}: the last line has no end", url)


class Transport:
    """Connections to nodes, kept while they are of use. Use it as an asynchronous context manager.

    Args:
        connections: most requests in flight to one node; more wait for a free connection.

    Raises:
        ValueError: `connections` is less than 1.
    """

    def __init__(self, connections: int) -> None:
        if connections < 1:
            raise ValueError(f"connections: at least 1, got {connections}")
        self._connections = connections
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        if self._http is not None:
            raise RuntimeError("this client is entered already: leave it first, or make another one")
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(_note_sending)
        trace.on_connection_queued_start.append(_note_waiting)
        trace.on_connection_queued_end.append(_note_connecting)
        trace.on_dns_resolvehost_start.append(_note_looking_up)
        trace.on_dns_resolvehost_end.append(_note_connecting)
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, limit_per_host=self._connections, keepalive_timeout=_KEEPALIVE_S, resolver=Resolver()
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[trace],
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    def require_open(self) -> None:
        """Refuse calls outside the context.

        Raises:
            RuntimeError: it was not entered, or is left.
        """
        if self._http is None:
            raise RuntimeError("enter the client first: async with Client(...) as client")

    async def fetch(self, url: str, request: Request, limits: Limits) -> Answer:
        """Send a request and return its whole answer.

        Raises:
            ServerError, Unreachable, Unanswered, BadAnswer; ClientClosed when the context was left meanwhile.
        """
        async with self._exchange(url, request, limits, None) as (response, _):
            return Answer(await response.read(), response.headers)

    @asynccontextmanager
    async def stream(self, url: str, request: Request, limits: Limits) -> AsyncIterator[Stream]:
        """Send a request and hand out its answer when the head has come.

        Raises:
            ServerError, Unreachable, Unanswered, BadAnswer: also where reading it fails in the block. ClientClosed as
                in `fetch`.
        """
        async with self._exchange(url, request, limits, limits.silence_s) as (response, timeout):
            yield Stream(url, response, timeout)

    @asynccontextmanager
    async def _exchange(
        self, url: str, request: Request, limits: Limits, silence_s: float | None
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, asyncio.Timeout]]:
        http, task = self._http, asyncio.current_task()
        if http is None:
            raise _closed(url)
        cancellations = task.cancelling() if task else 0
        headers = {"Accept": request.accept}
        data = None
        if request.body is not None:
            headers["Content-Type"] = "application/json"
            # As a file, a large body is sent piece by piece and other requests can go on meanwhile.
            data = io.BytesIO(request.body)
            # Lets the loop look at its sockets, and act on what it saw: connections that were closed.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        timeouts = aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_s, sock_read=silence_s)
        timeout = asyncio.timeout_at(min(limits.deadline, asyncio.get_running_loop().time() + limits.begin_s))
        sending = _Sending(timeout, limits)
        try:
            async with (
                timeout,
                http.request(
                    request.method,
                    # Keys are escaped already; yarl must neither unescape them nor resolve a `..`.
                    URL(url + request.target, encoded=True),
                    data=data,
                    headers=headers,
                    timeout=timeouts,
                    allow_redirects=False,
                    trace_request_ctx=sending,
                ) as response,
            ):
                if response.status != 200:
                    raise error_of_answer(url, response.status, response.headers, await response.read())
                yield response, timeout
        except aiohttp.ClientResponseError as error:
            # Of the parser: whatever status an answer has, it is not raised.
            raise not_kvnode(f"what answers at {url} does not speak HTTP", url) from error
        except aiohttp.InvalidURL as error:
            raise not_kvnode(f"{url}: {_reason(error)}", url) from error
        except (RuntimeError, asyncio.CancelledError) as error:
            # aiohttp says in these ways that the session was closed; nobody has cancelled the task then.
            if not http.closed or (task and task.cancelling() > cancellations):
                raise
            if sending.has_begun:
                raise _unanswered(url, error, limits, request.unanswered) from error
            raise _closed(url) from error
        except (aiohttp.ClientError, OSError) as error:
            if http.closed and not sending.has_begun:
                raise _closed(url) from error
            if sending.has_begun:
                raise _unanswered(url, error, limits, request.unanswered) from error
            raise _unreachable(url, error, sending.step) from error


class _Step(Enum):
    """What a request waits for before it is sent."""

    FREE_CONNECTION = "free connection"
    LOOK_UP = "look-up"
    CONNECTING = "connecting"


class _Sending:
    """How far one request has come.

    Attributes:
        has_begun: whether a byte of it may have been sent.
        step: what it waits for, or waited for last, before that.
    """

    def __init__(self, timeout: asyncio.Timeout, limits: Limits) -> None:
        self.has_begun = False
        self.step = _Step.CONNECTING
        self._timeout = timeout
        self._limits = limits

    def begin(self) -> None:
        """From now on it is the node's answer that is waited for, not a connection."""
        self.has_begun = True
        due = asyncio.get_running_loop().time() + self._limits.answer_s
        self._timeout.reschedule(min(due, self._limits.deadline))


async def _note_sending(
    session: aiohttp.ClientSession, context: SimpleNamespace, parameters: aiohttp.TraceRequestHeadersSentParams
) -> None:
    context.trace_request_ctx.begin()


async def _note_waiting(
    session: aiohttp.ClientSession, context: SimpleNamespace, parameters: aiohttp.TraceConnectionQueuedStartParams
) -> None:
    context.trace_request_ctx.step = _Step.FREE_CONNECTION


async def _note_looking_up(
    session: aiohttp.ClientSession, context: SimpleNamespace, parameters: aiohttp.TraceDnsResolveHostStartParams
) -> None:
    context.trace_request_ctx.step = _Step.LOOK_UP


async def _note_connecting(
    session: aiohttp.ClientSession,
    context: SimpleNamespace,
    parameters: aiohttp.TraceConnectionQueuedEndParams | aiohttp.TraceDnsResolveHostEndParams,
) -> None:
    context.trace_request_ctx.step = _Step.CONNECTING


def _unreachable(url: str, error: Exception, step: _Step) -> Unreachable:
    if isinstance(error, TimeoutError):
        match step:
            case _Step.FREE_CONNECTION:
                return Unreachable(f"no connection to {url} was free in time", hint=_CROWDED_HINT, url=url)
            case _Step.LOOK_UP:
                message = f"the address of the host of {url} was not found in time"
                return Unreachable(message, hint=_LOOK_UP_HINT, url=url)
    hint = _UNREACHABLE_HINT
    if isinstance(error, aiohttp.ClientSSLError):
        is_of_certificate = isinstance(error, aiohttp.ClientConnectorCertificateError)
        hint = _CERTIFICATE_HINT if is_of_certificate else _TLS_HINT
    return Unreachable(f"cannot connect to {url}: {_reason(error)}", hint=hint, url=url)


def _closed(url: str) -> ClientClosed:
    return ClientClosed(f"the client was closed before the request to {url} was sent", url=url)


def _unanswered(url: str, error: BaseException, limits: Limits, hint: str | None) -> Unanswered:
    if isinstance(error, aiohttp.SocketTimeoutError):
        return Unanswered(f"{url} has sent nothing for {limits.silence_s:g} s", hint=hint, url=url)
    if isinstance(error, TimeoutError):
        return Unanswered(f"{url} did not answer within {round(limits.answer_s, 2):g} s", hint=hint, url=url)
    return Unanswered(f"the connection to {url} broke before the answer was whole", hint=hint, url=url)


def _reason(error: Exception) -> str:
    """The reason in the words of the operating system, without aiohttp's own frame around it."""
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        if isinstance(cause, ssl.SSLError):
            # Its errno is no number of the operating system.
            return f"TLS failed: {_tls_reason(cause)}"
        # asyncio puts its own text into strerror; a failed name look-up has its own numbers, below zero.
        if cause.errno is not None and cause.errno > 0:
            return os.strerror(cause.errno)
        return cause.strerror or str(cause)
    if isinstance(error, TimeoutError):
        return "timed out"
    return str(error) or type(error).__name__


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_message:
        return error.verify_message
    return error.reason.replace("_", " ").lower() if error.reason else str(error)
