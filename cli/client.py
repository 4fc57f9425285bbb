"""The asynchronous REST client: typed results, one error tree, values as the bytes that were sent."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from yarl import URL

from kvnode.cli.cluster import Promotion, decode_forgotten, decode_promotion
from kvnode.cli.errors import BadAnswer, ServerError, Unanswered, Unreachable
from kvnode.cli.jsontext import Item, item_text, parse_item, to_json
from kvnode.protocol.types import Epoch, Position

#: Where a node listens unless told otherwise.
DEFAULT_URL = "http://127.0.0.1:5001"

_CONNECT_TIMEOUT_S = 5.0
_NDJSON = "application/x-ndjson"

_MAYBE_WRITTEN = "the write may have happened: read it back to find out"
_MAYBE_CHANGED = "the change may have happened: `kvnode status` shows how the node is"

_T = TypeVar("_T")


class Written(NamedTuple):
    """A write that is durable.

    Attributes:
        position: (epoch, seq) of its entry.
    """

    position: Position


class Deleted(NamedTuple):
    """What a delete came to.

    Attributes:
        deleted: whether the key existed.
        position: of the delete's entry; the applied position where there was nothing to delete.
    """

    deleted: bool
    position: Position


class Record(NamedTuple):
    """A stored value.

    Attributes:
        value: JSON text as it was sent.
        version: the entry that wrote it.
        applied: the position that the read saw.
    """

    value: bytes
    version: Position
    applied: Position


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeQuery:
    """Which keys a range read is about; by default all, lowest first.

    Attributes:
        start: lowest key wanted, inclusive; None for no bound.
        end: highest key wanted, inclusive; None for no bound.
        prefix: only keys that begin with it.
        limit: at most this many items, at least 1; None for all.
        reverse: highest key first.
    """

    start: str | None = None
    end: str | None = None
    prefix: str = ""
    limit: int | None = None
    reverse: bool = False

    def parameters(self) -> dict[str, str]:
        """The query of the request, without what is left at its default."""
        given = {
            "start_key": self.start,
            "end_key": self.end,
            "prefix": self.prefix or None,
            "limit": None if self.limit is None else str(self.limit),
            "reverse": "true" if self.reverse else None,
        }
        return {name: text for name, text in given.items() if text is not None}


class Status(NamedTuple):
    """A node's account of itself.

    Attributes:
        text: the JSON object as the node sent it.
        fields: the same, decoded.
    """

    text: bytes
    fields: dict[str, Any]


class _PutAnswer(msgspec.Struct):
    seq: int


class _DeleteAnswer(msgspec.Struct):
    seq: int
    deleted: bool


class _ErrorAnswer(msgspec.Struct):
    error: dict[str, Any]


class Client:
    """A node's REST interface. Use it as an asynchronous context manager.

    Every method may raise `ServerError`, `Unreachable`, `Unanswered` or `BadAnswer`; after an `Unanswered` write nobody
    knows whether it happened. The client repeats no write.

    Args:
        url: `http://HOST:PORT`, with a path where a proxy wants one; see `parse_url`.
        timeout_s: longest wait for an answer, or for the next piece of a streamed one.
        connections: most requests in flight; more wait for a free connection.
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout_s: float = 30.0, connections: int = 1) -> None:
        self.url = parse_url(url)
        self._timeout_s = timeout_s
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def put(self, key: str, value: bytes) -> Written:
        """Set `key` to `value`, which is JSON text."""
        return await self._write("/put", item_text(key, value))

    async def delete(self, key: str) -> Deleted:
        """Remove `key`; removing a missing one changes nothing."""
        body = b'{"key":%b}' % to_json(key)
        answer, headers = await self._fetch("POST", "/delete", body=body, unanswered=_MAYBE_WRITTEN)
        decoded = _decode(answer, _DeleteAnswer)
        return Deleted(decoded.deleted, Position(_applied(headers).epoch, decoded.seq))

    async def batch(self, items: Iterable[Item]) -> Written:
        """Set all `items`, at least one, in one atomic write; the last of a repeated key wins."""
        return await self.batch_texts([item_text(item.key, item.value) for item in items])

    async def batch_texts(self, texts: Sequence[bytes]) -> Written:
        """`batch` for items that are already JSON objects ``{"key", "value"}``; they are sent as they are."""
        return await self._write("/batchput", b"[%b]" % b",".join(texts))

    async def get(self, key: str) -> Record:
        """Read `key`.

        Raises:
            ServerError: with the code `key_not_found` where there is no such key.
        """
        answer, headers = await self._fetch("GET", f"/read/{_path_segment(key)}")
        try:
            value = parse_item(answer).value
        except ValueError as error:
            raise _not_kvnode(f"GET /read: {error}") from error
        return Record(value, _version(headers), _applied(headers))

    async def range(self, query: RangeQuery) -> AsyncGenerator[Item, None]:
        """Yield the items of a range, all from one snapshot. Memory does not grow with the range.

        Raises:
            Unanswered: the stream broke; what was yielded is incomplete.
        """
        async with aclosing(self.dump(query)) as blocks:
            async for block in blocks:
                for line in block.removesuffix(b"\n").split(b"\n"):
                    try:
                        item = parse_item(line)
                    except ValueError as error:
                        raise _not_kvnode(f"GET /readrange: {error}") from error
                    yield item

    async def dump(self, query: RangeQuery) -> AsyncGenerator[bytes, None]:
        """Yield a range as JSON lines, untouched, in blocks that each end with a line's end.

        Raises:
            Unanswered: the stream broke; what was yielded is incomplete.
        """
        # Without a limit on the whole: a range may take hours, but not long without a byte.
        limits = aiohttp.ClientTimeout(sock_connect=_CONNECT_TIMEOUT_S, sock_read=self._timeout_s)
        path = _with_query("/readrange", query.parameters())
        async with self._open("GET", path, limits=limits, accept=_NDJSON) as response:
            if response.content_type != _NDJSON:
                raise _not_kvnode(f"GET /readrange: answered {response.content_type}, not {_NDJSON}")
            if response.content_length is None and not _is_chunked(response):
                # An end that is only a closed connection looks the same when the answer was cut.
                raise _not_kvnode("GET /readrange: the answer has no marked end")
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
                raise _not_kvnode("GET /readrange: the last line has no end")

    async def status(self) -> Status:
        """Ask the node about itself."""
        answer, _ = await self._fetch("GET", "/status")
        return Status(answer, _decode(answer, dict[str, Any]))

    async def promote(self, *, force: bool = False) -> Promotion:
        """Make the node the primary of its cluster.

        Args:
            force: also where the primary answers, or a replica is ahead of the node.

        Raises:
            ServerError: it stays what it is. With the code `promotion_refused` the fields are `reason` and `members`;
                see `members_in`.
        """
        body = b'{"force":%b}' % to_json(force)
        answer, _ = await self._fetch("POST", "/cluster/promote", body=body, unanswered=_MAYBE_CHANGED)
        return _read(answer, decode_promotion)

    async def forget(self, name: str) -> str:
        """Drop a member that is not connected; return its name."""
        body = b'{"name":%b}' % to_json(name)
        answer, _ = await self._fetch("POST", "/cluster/forget", body=body, unanswered=_MAYBE_CHANGED)
        return _read(answer, decode_forgotten)

    async def _write(self, path: str, body: bytes) -> Written:
        answer, headers = await self._fetch("POST", path, body=body, unanswered=_MAYBE_WRITTEN)
        return Written(Position(_applied(headers).epoch, _decode(answer, _PutAnswer).seq))

    async def _fetch(
        self, method: str, path: str, *, body: bytes | None = None, unanswered: str | None = None
    ) -> tuple[bytes, Mapping[str, str]]:
        limits = aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=_CONNECT_TIMEOUT_S)
        async with self._open(method, path, limits=limits, body=body, unanswered=unanswered) as response:
            return await response.read(), response.headers

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        *,
        limits: aiohttp.ClientTimeout,
        body: bytes | None = None,
        accept: str = "application/json",
        unanswered: str | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and hand out its answer if that is a 200; raise everything else as one of our errors.

        Args:
            unanswered: the hint of an `Unanswered`: what may have happened all the same.
        """
        assert self._session is not None, "enter the client first: async with Client(...) as client"
        headers = {"Accept": accept}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            # As a file, a large body is sent piece by piece and other requests can go on meanwhile.
            data = io.BytesIO(body)
        # Keys are escaped already; yarl must neither unescape them nor resolve a `..`.
        url = URL(self.url + path, encoded=True)
        try:
            async with self._session.request(
                method, url, data=data, headers=headers, timeout=limits, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise await _server_error(response)
                yield response
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Unreachable(
                f"cannot connect to {self.url}: {_reason(error)}",
                hint="is the node running? `kvnode start` starts one; --url or KVNODE_URL names another",
            ) from error
        except (aiohttp.ClientResponseError, aiohttp.InvalidURL) as error:
            raise _not_kvnode(f"{self.url}: {_reason(error)}") from error
        except TimeoutError as error:
            raise Unanswered(
                f"{self.url} did not answer within {self._timeout_s:g} s",
                hint=unanswered,
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unanswered(
                f"the connection to {self.url} broke before the answer was whole",
                hint=unanswered,
            ) from error


def parse_url(text: str) -> str:
    """A node's address in its one form: with a scheme, without a slash at the end.

    `HOST:PORT` is taken for `http://HOST:PORT`.

    Raises:
        ValueError: it is no such address.
    """
    full = text if "://" in text else f"http://{text}"
    try:
        url = URL(full)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host or url.query_string or url.fragment:
        raise ValueError(f"{text!r}: expected http://HOST:PORT")
    return str(url).rstrip("/")


def _path_segment(key: str) -> str:
    # `.` and `..` alone are steps in a path, so they need an escape too.
    return quote(key, safe="") if key.strip(".") else key.replace(".", "%2E")


def _with_query(path: str, parameters: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(parameters, quote_via=quote, safe='')}" if parameters else path


def _is_chunked(response: aiohttp.ClientResponse) -> bool:
    return "chunked" in response.headers.get("Transfer-Encoding", "").lower()


def _decode(answer: bytes, kind: type[_T]) -> _T:
    return _read(answer, lambda text: msgspec.json.decode(text, type=kind))


def _read(answer: bytes, decode: Callable[[bytes], _T]) -> _T:
    try:
        return decode(answer)
    except (ValueError, RecursionError) as error:
        raise _not_kvnode(f"an answer that cannot be read: {error}") from error


def _applied(headers: Mapping[str, str]) -> Position:
    try:
        return Position(Epoch.parse(headers["Kv-Epoch"]), int(headers["Kv-Seq"]))
    except (KeyError, ValueError) as error:
        raise _not_kvnode("an answer without Kv-Seq and Kv-Epoch") from error


def _version(headers: Mapping[str, str]) -> Position:
    epoch, _, seq = headers.get("ETag", "").strip('"').rpartition("-")
    try:
        return Position(Epoch.parse(epoch), int(seq))
    except ValueError as error:
        raise _not_kvnode("a value without the ETag of its version") from error


async def _server_error(response: aiohttp.ClientResponse) -> ServerError | BadAnswer:
    answer = await response.read()
    try:
        error = msgspec.json.decode(answer, type=_ErrorAnswer).error
        code, message = error.pop("code"), error.pop("message")
    except (msgspec.DecodeError, RecursionError, KeyError):
        return _not_kvnode(f"{response.url.origin()} answered HTTP {response.status} in a form of its own")
    hint = error.pop("hint", None)
    return ServerError(
        response.status,
        str(code),
        str(message),
        error,
        hint=None if hint is None else str(hint),
        retry_after_s=_retry_after_s(response),
    )


def _retry_after_s(response: aiohttp.ClientResponse) -> float | None:
    # The other form that HTTP allows, a date, is none that a node sends.
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else None


def _not_kvnode(what: str) -> BadAnswer:
    return BadAnswer(what, hint="is this a node's REST address, not its peer port or another service?")


def _reason(error: Exception) -> str:
    """The reason in the words of the operating system, without aiohttp's own frame around it."""
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        # asyncio puts its own text into strerror; a failed name look-up has its own numbers, below zero.
        if cause.errno is not None and cause.errno > 0:
            return os.strerror(cause.errno)
        return cause.strerror or str(cause)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "timed out"
    return str(error) or type(error).__name__
