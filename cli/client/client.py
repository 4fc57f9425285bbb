"""`Client`, the face of the client: what can be asked of a cluster's nodes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias, TypeVar

from kvnode.cli.client.answers import (
    decode_deleted,
    decode_line,
    decode_object,
    decode_record,
    decode_written,
    not_kvnode,
    position_of,
    read_answer,
)
from kvnode.cli.client.cluster import Promotion, decode_forgotten, decode_promotion
from kvnode.cli.client.failover import FailOver
from kvnode.cli.client.jsonvalues import JsonText, JsonValue, encode_value
from kvnode.cli.client.results import Deleted, RangeItem, RangeQuery, Record, Status, Written
from kvnode.cli.client.session import Session, parse_position
from kvnode.cli.client.targets import Acks, range_target, read_target, write_target
from kvnode.cli.client.transport import NDJSON, Answer, Limits, Request, Transport
from kvnode.cli.errors import BadAnswer, ClientError, ServerError
from kvnode.cli.jsontext import item_text, to_json
from kvnode.cli.urls import DEFAULT_URL, parse_each
from kvnode.protocol.types import Position, Seq

_MAYBE_WRITTEN = "the write may have happened: read it back to find out"
_MAYBE_CHANGED = "the change may have happened: `kvnode status` shows how the node is"

_T = TypeVar("_T")

#: Makes a read of one node: (what it found, the position that it saw).
_Read: TypeAlias = Callable[[str, Limits, Position | None], Awaitable[tuple[_T, Position]]]


class Client:
    """A cluster of nodes, or a single one. Use it as an asynchronous context manager, from one event loop.

        async with Client("http://127.0.0.1:5001", "http://127.0.0.1:5002") as client:
            await client.put("greeting", "hello")
            record = await client.get("greeting")

    **A client is a session.** Each read sees at least what this client wrote and read before, whichever node answers:
    it is sent with the furthest position seen, and a node that has not got there waits, or is passed over. Calls may be
    made concurrently; a read sees the writes that had returned before it began.

    **Fail-over.** A call goes to the node that answered last. Whatever is safe to repeat goes to the next one when that
    fails, and after a pause to all again, until `timeout_s` is over. A write that may have happened is never sent
    again. `kvnode.cli.client.failover` has the table.

    Every method may raise a `ClientError`; after one of a write, its `maybe_written` says whether it may have happened.
    A call that is cancelled may have been sent.

    Args:
        urls: of the nodes, each `http://HOST:PORT`, with a path where a proxy wants one; or sequences of such. The
            first is preferred at first. None means http://127.0.0.1:5001.
        timeout_s: longest time of a call with all its attempts, and longest silence within a range. Choose it longer
            than the `ack_timeout_s` of writes.
        node_timeout_s: longest wait for one node's answer to a read while there are others.
        connections: most requests in flight to one node; more wait for a free connection.
        retries: how often all nodes are asked again after each was asked once; None for as often as the time allows.
        position: where the session begins: a position of another client, or its text.

    Raises:
        ValueError: a URL or the position is none, or a number cannot be.
        RuntimeError: when a call is made outside `async with`, or the client entered twice.
    """

    def __init__(
        self,
        *urls: str | Iterable[str],
        timeout_s: float = 30.0,
        node_timeout_s: float = 5.0,
        connections: int = 16,
        retries: int | None = None,
        position: Position | str | None = None,
    ) -> None:
        given = [each for url in urls for each in ([url] if isinstance(url, str) else url)]
        self._urls = parse_each(given or [DEFAULT_URL])
        self._session = Session(parse_position(position) if isinstance(position, str) else position)
        self._transport = Transport(connections)
        self._failover = FailOver(
            self._urls,
            timeout_s=timeout_s,
            node_timeout_s=node_timeout_s,
            retries=retries,
            clock=lambda: asyncio.get_running_loop().time(),
            jitter=random.random,
        )

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, traceback)

    # ---- the nodes and the session ---------------------------------------------------------------------------------

    @property
    def urls(self) -> tuple[str, ...]:
        """The nodes, in the order in which they were given."""
        return self._urls

    @property
    def url(self) -> str:
        """The node that answered last; before the first answer, the first."""
        return self._failover.preferred

    @property
    def position(self) -> Position | None:
        """The furthest position that this client saw.

        Its `str` can go to another process, so that the reads of a client there see it, too.
        """
        return self._session.position

    def advance(self, position: Position | str) -> None:
        """Let later reads see a position of another client, too.

        Raises:
            ValueError: the text is no position.
        """
        self._session.saw(parse_position(position) if isinstance(position, str) else position)

    def forget_position(self) -> None:
        """Begin a new session: reads need not see anything that was seen before. The way on after `HistoryLost`."""
        self._session.forget()

    # ---- writes ----------------------------------------------------------------------------------------------------

    async def put(
        self, key: str, value: JsonValue | JsonText, *, acks: Acks | None = None, ack_timeout_s: float | None = None
    ) -> Written:
        """Set `key` to `value`; it is durable when this returns.

        Args:
            key: 1 to 4,096 bytes in UTF-8.
            value: a Python object for a JSON value, or JSON text that is to stay byte for byte as it is.
            acks: replicas that must hold the write durably, too, or "majority" of the members; None for 0.
            ack_timeout_s: how long the node waits for them; None for its default, 5 s.

        Raises:
            ClientError: its `maybe_written` says whether the write may have happened. With the code
                `replication_timeout` it did, but fewer replicas than asked for hold it.
            TypeError, ValueError: the value is none that JSON has.
        """
        return await self._write("/put", item_text(key, encode_value(value)), acks, ack_timeout_s)

    async def batch(
        self,
        items: Mapping[str, JsonValue | JsonText] | Iterable[tuple[str, JsonValue | JsonText]],
        *,
        acks: Acks | None = None,
        ack_timeout_s: float | None = None,
    ) -> Written:
        """Set all `items` in one atomic write.

        Args:
            items: keys with their values, at least one; of pairs with the same key the last one wins.
            acks: as for `put`, and so is `ack_timeout_s`.

        Raises:
            ClientError, TypeError, ValueError: as `put`.
        """
        pairs = items.items() if isinstance(items, Mapping) else items
        texts = [item_text(key, encode_value(value)) for key, value in pairs]
        return await self.batch_texts(texts, acks=acks, ack_timeout_s=ack_timeout_s)

    async def batch_texts(
        self, texts: Sequence[bytes], *, acks: Acks | None = None, ack_timeout_s: float | None = None
    ) -> Written:
        """`batch` for items that are already JSON objects ``{"key", "value"}``; they are sent as they are."""
        return await self._write("/batchput", b"[%b]" % b",".join(texts), acks, ack_timeout_s)

    async def delete(self, key: str, *, acks: Acks | None = None, ack_timeout_s: float | None = None) -> Deleted:
        """Remove `key`; removing a missing one changes nothing.

        Args:
            acks: as for `put`, and so is `ack_timeout_s`.

        Raises:
            ClientError: as `put`.
        """
        target = write_target("/delete", acks, ack_timeout_s)

        def read(url: str, answer: Answer) -> Deleted:
            deleted, seq = decode_deleted(url, answer.body)
            return Deleted(deleted, self._wrote(url, answer, seq))

        return await self._change(target, b'{"key":%b}' % to_json(key), _MAYBE_WRITTEN, read)

    # ---- reads -----------------------------------------------------------------------------------------------------

    async def get(self, key: str, *, consistent: bool = True) -> Record | None:
        """Read `key`; None where there is no such key.

        Args:
            consistent: see at least what this client saw before. If not, the answer may be older, comes from the first
                node that has any, and does not count as seen.

        Raises:
            HistoryLost: what this client saw before is lost.
            ClientError: no node answered.
        """

        async def read(url: str, limits: Limits, token: Position | None) -> tuple[Record | None, Position]:
            return await self._read_key(key, url, limits, token)

        return await self._read(read, consistent)

    async def range(
        self,
        *,
        start: str | None = None,
        end: str | None = None,
        prefix: str = "",
        limit: int | None = None,
        reverse: bool = False,
        consistent: bool = True,
    ) -> AsyncGenerator[RangeItem, None]:
        """Yield the items of a range in key order, all from one snapshot. Memory does not grow with the range.

        A range that is not read to its end holds a connection until the generator is closed; `contextlib.aclosing`
        does that at once. Other nodes are tried until the first item has come, not later: theirs would be another
        snapshot.

        Args:
            start: lowest key wanted, inclusive; None for no bound.
            end: highest key wanted, inclusive; None for no bound.
            prefix: only keys that begin with it. Of the bounds only the one where the range begins can be combined with
                it, and must begin with it, too.
            limit: at most this many items, at least 1; None for all.
            reverse: highest key first.
            consistent: as for `get`.

        Raises:
            Unanswered: the stream broke; what was yielded is incomplete.
            ClientError: as `get`.
        """
        query = RangeQuery(start=start, end=end, prefix=prefix, limit=limit, reverse=reverse)
        async with aclosing(self._blocks(query, consistent)) as blocks:
            async for url, block in blocks:
                for line in block.removesuffix(b"\n").split(b"\n"):
                    yield decode_line(url, line)

    async def dump(
        self,
        *,
        start: str | None = None,
        end: str | None = None,
        prefix: str = "",
        limit: int | None = None,
        reverse: bool = False,
        consistent: bool = True,
    ) -> AsyncGenerator[bytes, None]:
        """Yield the items of a range as JSON lines, untouched, in blocks that each end with a line's end.

        All arguments and errors are those of `range`.
        """
        query = RangeQuery(start=start, end=end, prefix=prefix, limit=limit, reverse=reverse)
        async with aclosing(self._blocks(query, consistent)) as blocks:
            async for _, block in blocks:
                yield block

    # ---- nodes -----------------------------------------------------------------------------------------------------

    async def status(self) -> Status:
        """Ask a node about itself: the one that answered last, and if it cannot the others, each only once."""

        async def ask(url: str, limits: Limits) -> Status:
            answer = await self._transport.fetch(url, Request("GET", "/status"), limits)
            return Status(answer.body, decode_object(url, answer.body), url)

        return await self._call(ask, is_read=True, retries=0)

    async def promote(self, *, force: bool = False) -> Promotion:
        """Make the node the primary of its cluster. Only for a client of a single node.

        Args:
            force: also where the primary answers, or a replica is ahead of the node.

        Raises:
            ServerError: it stays what it is. With the code `promotion_refused` the fields are `reason` and `members`;
                see `kvnode.cli.client.cluster.members_in`.
            ValueError: the client has several nodes.
        """
        if len(self._urls) != 1:
            raise ValueError("promote is for a client of one node: which one is to be the primary?")
        body = b'{"force":%b}' % to_json(force)
        return await self._change(
            "/cluster/promote",
            body,
            _MAYBE_CHANGED,
            lambda url, answer: read_answer(url, answer.body, decode_promotion),
        )

    async def forget(self, name: str) -> str:
        """Drop a member that is not connected; return its name."""
        body = b'{"name":%b}' % to_json(name)
        return await self._change(
            "/cluster/forget",
            body,
            _MAYBE_CHANGED,
            lambda url, answer: read_answer(url, answer.body, decode_forgotten),
        )

    # ---- inside ----------------------------------------------------------------------------------------------------

    async def _write(self, path: str, body: bytes, acks: Acks | None, ack_timeout_s: float | None) -> Written:
        def read(url: str, answer: Answer) -> Written:
            return Written(self._wrote(url, answer, decode_written(url, answer.body)))

        return await self._change(write_target(path, acks, ack_timeout_s), body, _MAYBE_WRITTEN, read)

    def _wrote(self, url: str, answer: Answer, seq: Seq) -> Position:
        position = Position(position_of(url, answer.headers).epoch, seq)
        self._session.saw(position)
        return position

    async def _call(
        self, attempt: Callable[[str, Limits], Awaitable[_T]], *, is_read: bool, retries: int | None = None
    ) -> _T:
        self._transport.require_open()
        return await self._failover.call(attempt, is_read=is_read, retries=retries)

    async def _change(self, target: str, body: bytes, maybe: str, read: Callable[[str, Answer], _T]) -> _T:
        """Send what must not be sent twice.

        Args:
            maybe: the hint where it may have happened.
            read: makes of a node's URL and its answer what is returned.
        """
        request = Request("POST", target, body, unanswered=maybe)

        async def send(url: str, limits: Limits) -> _T:
            return read(url, await self._transport.fetch(url, request, limits))

        try:
            return await self._call(send, is_read=False)
        except ServerError as error:
            if error.position is not None:
                self._session.saw(error.position)
            elif error.maybe_written and error.code != "outcome_unknown":
                error.hint = _joined(error.hint, maybe)
            raise
        except BadAnswer as error:
            error.hint = _joined(error.hint, maybe)
            raise

    async def _read(self, read: _Read[_T], consistent: bool) -> _T:
        """What a read finds on the first node that can show what this client saw before."""

        async def attempt(url: str, limits: Limits) -> _T:
            if not consistent:
                found, _ = await read(url, limits, None)
                return found
            await self._prove(url, limits)
            token = self._session.position
            found, seen = await read(url, limits, token)
            self._session.saw(seen, token)
            return found

        return await self._call(attempt, is_read=True)

    async def _prove(self, url: str, limits: Limits) -> None:
        """Have a node confirm that what was seen in earlier reigns is part of the newest; see `session`.

        Raises:
            HistoryLost: it is not.
            ServerError: with the code `not_caught_up`, the node did not say.
        """
        if not self._session.unproven:
            return
        # Each takes a read of some key. The first one waits until the node is in the newest reign.
        for token in (self._session.position, *(unproven := self._session.unproven)):
            _, seen = await self._read_key("-", url, limits, token)
            self._session.saw(seen, token)
        if not set(unproven).isdisjoint(self._session.unproven):
            # Two nodes behind one URL have answered.
            raise ServerError(503, "not_caught_up", f"{url} is not in the newest epoch yet", url=url)

    async def _read_key(
        self, key: str, url: str, limits: Limits, token: Position | None
    ) -> tuple[Record | None, Position]:
        try:
            answer = await self._transport.fetch(url, Request("GET", read_target(key, token)), limits)
        except ServerError as error:
            if error.code != "key_not_found":
                raise
            if error.position is None:
                raise not_kvnode(f"{url}: an answer without Kv-Seq and Kv-Epoch", url) from error
            return None, error.position
        record = decode_record(url, answer.body, answer.headers)
        return record, record.applied

    async def _blocks(self, query: RangeQuery, consistent: bool) -> AsyncGenerator[tuple[str, bytes], None]:
        """Yield a range in blocks of whole lines, each with the node that it comes from."""

        async def begin(url: str, limits: Limits, token: Position | None) -> tuple[_Range, Position]:
            request = Request("GET", range_target(query, token), accept=NDJSON)
            async with AsyncExitStack() as stack:
                stream = await stack.enter_async_context(self._transport.stream(url, request, limits))
                blocks = await stack.enter_async_context(aclosing(stream.blocks()))
                # Up to here another node can take over.
                first = await anext(blocks, None)
                seen = position_of(url, stream.headers)
                stream.let_run()
                return _Range(url, first, blocks, stack.pop_all()), seen

        found = await self._read(begin, consistent)
        try:
            async with found.stack:
                if found.first is not None:
                    yield found.url, found.first
                    async for block in found.rest:
                        yield found.url, block
        except ClientError:
            self._failover.failed(found.url)
            raise


class _Range(NamedTuple):
    """A range that has begun to come.

    Attributes:
        url: of the node.
        first: its first block; None where it is empty.
        rest: the others.
        stack: ends it.
    """

    url: str
    first: bytes | None
    rest: AsyncGenerator[bytes, None]
    stack: AsyncExitStack


def _joined(*hints: str | None) -> str:
    return "; ".join(hint for hint in hints if hint)
