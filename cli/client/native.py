"""`NativeClient`: one node over the peer protocol, with many requests in flight on one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import msgspec

from kvnode.cli.client.answers import decode_object, server_error
from kvnode.cli.client.jsonvalues import JsonText, JsonValue, encode_value
from kvnode.cli.client.results import Deleted, Record, Status, Written
from kvnode.cli.client.targets import Acks
from kvnode.cli.errors import PeerSilent, Refused, ServerError, Unanswered, Unreachable
from kvnode.cli.peer import WELCOME_TIMEOUT_S, check_welcome, make_hello, open_socket
from kvnode.node.config import Address
from kvnode.node.rest.errors import STATUS_OF_CODE
from kvnode.protocol.codec import FrameDecoder, encode, encode_trusted
from kvnode.protocol.errors import KvError, RemoteProtocolError
from kvnode.protocol.messages import (
    FEATURE_READ,
    Error,
    FrameType,
    Message,
    Purpose,
    Read,
    ReadResult,
    StatusResult,
    Welcome,
    Write,
    WriteResult,
)
from kvnode.protocol.messages import Status as StatusFrame
from kvnode.protocol.types import Epoch, Op, Position, delete, put

#: What an address may begin with.
SCHEME = "kv://"

#: How long a node waits for replicas, and for an entry, unless told otherwise: as long as over REST.
_ACK_TIMEOUT_S = 5.0
_WAIT_S = 1.0

#: Reads that `get_many` makes one call of.
_PART = 64

#: How exact the end of a call's time is.
_SWEEP_S = 0.25

_READ_BACK = "a write may have happened: read it back to find out"

_T = TypeVar("_T", WriteResult, ReadResult, StatusResult)


class NativeClient:
    """A node's peer port. Use it as an asynchronous context manager, from one event loop.

        async with NativeClient("127.0.0.1:7001") as client:
            await client.put("greeting", "hello")
            record = await client.get("greeting")

    Calls may be made concurrently, and that is what makes it fast: each is sent at once, whatever became of those
    before, and answers come in any order. A read sees the writes that had returned before it began, on the node that
    took them.

    It is one connection to one node, and nothing is ever sent twice. Writes are for the primary: another node answers
    `not_primary`. When the connection is lost, calls that were sent end with `Unanswered`, all others with
    `Unreachable`, and so do those that are made later: make another client.

    Every method may raise a `ClientError`; after one of a write, its `maybe_written` says whether it may have happened.
    A call that is cancelled may have been sent.

    Args:
        address: HOST:PORT of the peer port, as it is or behind ``kv://``.
        timeout_s: longest time of a call, of which it may wait for its turn first. Choose it longer than the
            `ack_timeout_s` of writes and the `wait_s` of reads.
        most_in_flight: calls that are sent and not answered; more wait for their turn.

    Raises:
        ValueError: the address is none.
    """

    def __init__(self, address: Address | str, *, timeout_s: float = 30.0, most_in_flight: int = 1024) -> None:
        self._address = Address.parse(address.removeprefix(SCHEME)) if isinstance(address, str) else address
        self._timeout_s = timeout_s
        self._most_in_flight = most_in_flight
        self._connection: _Connection | None = None
        self._welcome: Welcome | None = None

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            Unreachable: there is no connection.
            Refused: the node does not take it.
            PeerSilent, RemoteProtocolError: what answers is no peer port.
        """
        loop = asyncio.get_running_loop()
        connected = await open_socket(self._address)
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(self.url, self._timeout_s, self._most_in_flight), sock=connected
            )
        except BaseException:
            connected.close()
            raise
        try:
            async with asyncio.timeout(WELCOME_TIMEOUT_S):
                answer = await connection.greet()
            self._welcome = check_welcome(self._address, answer)
        except TimeoutError as error:
            connection.close()
            raise PeerSilent(f"{self._address} did not answer HELLO", hint="is this the node's peer port?") from error
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._link.close()

    @property
    def url(self) -> str:
        """The node, as ``kv://HOST:PORT``."""
        return f"{SCHEME}{self._address}"

    @property
    def welcome(self) -> Welcome:
        """What the node said of itself when this client connected."""
        assert self._welcome is not None, "enter the client first: async with NativeClient(...) as client"
        return self._welcome

    @property
    def _link(self) -> _Connection:
        assert self._connection is not None, "enter the client first: async with NativeClient(...) as client"
        return self._connection

    # ---- writes ----------------------------------------------------------------------------------------------------

    async def put(
        self, key: str, value: JsonValue | JsonText, *, acks: Acks | None = None, ack_timeout_s: float = _ACK_TIMEOUT_S
    ) -> Written:
        """Set `key` to `value`; it is durable when this returns. Arguments and errors are those of `Client.put`."""
        result = await self._write((_put(key, value),), acks, ack_timeout_s)
        return Written(Position(result.epoch, result.seq))

    async def batch(
        self,
        items: Mapping[str, JsonValue | JsonText] | Iterable[tuple[str, JsonValue | JsonText]],
        *,
        acks: Acks | None = None,
        ack_timeout_s: float = _ACK_TIMEOUT_S,
    ) -> Written:
        """Set all `items` in one atomic write. Arguments and errors are those of `Client.batch`."""
        pairs = items.items() if isinstance(items, Mapping) else items
        ops = tuple([_put(key, value) for key, value in pairs])
        if not ops:
            raise ValueError("a batch needs at least one item")
        result = await self._write(ops, acks, ack_timeout_s)
        return Written(Position(result.epoch, result.seq))

    async def delete(self, key: str, *, acks: Acks | None = None, ack_timeout_s: float = _ACK_TIMEOUT_S) -> Deleted:
        """Remove `key`; removing a missing one changes nothing."""
        result = await self._write((delete(_key(key)),), acks, ack_timeout_s)
        return Deleted(result.deleted > 0, Position(result.epoch, result.seq))

    async def _write(self, ops: tuple[Op, ...], acks: Acks | None, ack_timeout_s: float) -> WriteResult:
        count = None if acks == "majority" else acks or 0
        timeout_ms = round(ack_timeout_s * 1000)
        result = await self._link.ask(lambda number: Write(number, ops, count, timeout_ms), WriteResult)
        if result.error_code is not None:
            position = Position(result.epoch, result.seq) if result.seq else None
            raise self._error(result.error_code, result.error_message, result.error_fields, position)
        return result

    # ---- reads -----------------------------------------------------------------------------------------------------

    async def get(self, key: str, *, position: Position | None = None, wait_s: float = _WAIT_S) -> Record | None:
        """Read `key`; None where there is no such key.

        Args:
            position: what the read has to see at least, such as that of a write to another node.
            wait_s: how long the node may wait until it has that.

        Raises:
            HistoryLost: the node will never have it.
            Refused: the node is of a release that cannot be read over its peer port; nothing was sent.
            ClientError: as for writes.
        """
        (record,) = await self._read([_key(key)], position, wait_s)
        return record

    async def get_many(
        self, keys: Iterable[str], *, position: Position | None = None, wait_s: float = _WAIT_S
    ) -> list[Record | None]:
        """Read `keys`, each as `get` does, and return what there is in their order.

        It costs this process half of what so many calls of `get` cost. Each read is for itself: they show no single
        state of the data. Up to 64 of them count as one call.

        Args:
            position: as for `get`, and so is `wait_s`.

        Raises:
            ClientError: as `get`, of the first read that failed.
        """
        names = list(map(_key, keys))
        parts = [names[first : first + _PART] for first in range(0, len(names), _PART)]
        found = await asyncio.gather(*[self._read(part, position, wait_s) for part in parts])
        return [record for part in found for record in part]

    async def _read(self, keys: Sequence[bytes], position: Position | None, wait_s: float) -> list[Record | None]:
        if FEATURE_READ not in self.welcome.features:
            raise Refused(
                "unsupported",
                f"{self._address} does not answer reads on its peer port",
                hint="update the node, or read over REST",
            )
        epoch, seq = position or (Epoch(0), 0)
        wait_ms = round(wait_s * 1000)

        def encode_all(first_id: int) -> bytes:
            # All but their keys is the same in all of them, so the first one is checked for all.
            first = encode(Read(first_id, keys[0], epoch, seq, wait_ms))
            others = [
                encode_trusted(FrameType.READ, number, key, epoch, seq, wait_ms)
                for number, key in enumerate(keys[1:], first_id + 1)
            ]
            return b"".join([first, *others])

        return [self._record(result) for result in await self._link.ask_all(encode_all, len(keys), ReadResult)]

    def _record(self, result: ReadResult) -> Record | None:
        if result.error_code is not None:
            raise self._error(result.error_code, result.error_message, result.error_fields, None)
        if result.value is None:
            return None
        return Record(
            JsonText.trusted(result.value),
            Position(result.epoch, result.seq),
            Position(result.applied_epoch, result.applied_seq),
        )

    async def status(self) -> Status:
        """What the node says of itself."""
        result = await self._link.ask(StatusFrame, StatusResult)
        return Status(result.status, decode_object(self.url, result.status), self.url)

    def _error(self, code: str, message: str | None, more: bytes | None, position: Position | None) -> ServerError:
        """The error that a result tells of."""
        try:
            fields: dict[str, Any] = msgspec.json.decode(more or b"{}", type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            fields = {}
        # A code that is not known says nothing about what was written: it counts as the worst.
        return server_error(self.url, STATUS_OF_CODE.get(code, 500), code, message or "", fields, position=position)


class _Call:
    """Requests with consecutive ids that were made together and are on their way.

    Attributes:
        ids: of the requests.
        ended: resolves when all are answered.
        end_by: when their time is up, by the loop's clock.
        is_sent: whether the transport has them.
        results: in the order of the requests; None where there is none yet.
    """

    __slots__ = ("_left", "end_by", "ended", "ids", "is_sent", "results")

    def __init__(self, ids: range, ended: asyncio.Future[None], end_by: float) -> None:
        self.ids = ids
        self.ended = ended
        self.end_by = end_by
        self.is_sent = False
        self.results: list[Message | None] = [None] * len(ids)
        self._left = len(ids)

    def take(self, result: ReadResult | WriteResult | StatusResult) -> None:
        """Keep a result, the first one of its request."""
        self.results[result.request_id - self.ids.start] = result
        self._left -= 1
        if not self._left and not self.ended.done():
            self.ended.set_result(None)

    def fail(self, error: KvError) -> None:
        """End it, unless it has ended."""
        if not self.ended.done():
            self.ended.set_exception(error)
            # Whoever called may have been cancelled in this turn: an error that nobody fetches is no event.
            self.ended.exception()


class _Connection(asyncio.Protocol):
    """A connection: calls out, each with a request id of its own, and results in."""

    def __init__(self, url: str, timeout_s: float, most_in_flight: int) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._welcome: asyncio.Future[Message | None] = self._loop.create_future()
        self._next_id = 1
        #: by request id: of the requests that are sent or about to be, and not answered
        self._calls: dict[int, _Call] = {}
        #: frames of this turn of the loop, with their calls: a transport would make a system call of each
        self._unsent: list[tuple[_Call, bytes]] = []
        self._slots = asyncio.Semaphore(most_in_flight)
        self._may_write = asyncio.Event()
        self._may_write.set()
        #: why nothing can be sent any more; None = it can
        self._reason: str | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None

    async def greet(self) -> Message | None:
        """Say HELLO, and return the answer; None where there is none."""
        assert self._transport is not None
        self._transport.write(encode(make_hello(Purpose.CLIENT)))
        return await self._welcome

    async def ask(self, make: Callable[[int], Message], kind: type[_T]) -> _T:
        """Send a request and return its result; see `ask_all`.

        Args:
            make: the message, given its request id.
        """
        (result,) = await self.ask_all(lambda number: encode(make(number)), 1, kind)
        return result

    async def ask_all(self, make: Callable[[int], bytes], count: int, kind: type[_T]) -> list[_T]:
        """Send requests together and return their results, in the order of the requests.

        Args:
            make: their frames, given the request id of the first; the others have those that follow.
            count: of the requests.
            kind: of the results.

        Raises:
            Unreachable: they were not sent.
            Unanswered: they were, and not all are answered.
            LocalProtocolError: the format does not allow one; none was sent.
        """
        end_by = self._loop.time() + self._timeout_s
        await self._take_slot(end_by)
        ids = range(self._next_id, self._next_id + count)
        self._next_id = ids.stop
        try:
            call = self._send(ids, make(ids.start), end_by)
            await call.ended
        finally:
            for number in ids:
                self._calls.pop(number, None)
            self._slots.release()
        results = [result for result in call.results if isinstance(result, kind)]
        if len(results) < count:
            self.close(f"something else than {kind.__name__} came for a request")
            raise Unanswered(f"{self._url} answered something else than what it was asked", url=self._url)
        return results

    def close(self, reason: str = "this client was closed") -> None:
        """Send no more, and give up what is not answered."""
        self._end(reason)
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size():
            # The node may never take it, and nobody waits for what comes of it.
            self._transport.abort()
        else:
            self._transport.close()

    # ---- out -------------------------------------------------------------------------------------------------------

    async def _take_slot(self, end_by: float) -> None:
        """Return when a request may be sent; its slot is to be released.

        Raises:
            Unreachable: it may not in time.
        """
        if self._may_write.is_set() and not self._slots.locked():
            await self._slots.acquire()
            return
        try:
            async with asyncio.timeout_at(end_by):
                await self._may_write.wait()
                await self._slots.acquire()
        except TimeoutError:
            message = f"{self._url} takes no more requests: this one was not sent within {self._timeout_s:g} s"
            raise Unreachable(message, url=self._url) from None

    def _send(self, ids: range, frames: bytes, end_by: float) -> _Call:
        if self._reason is not None:
            raise self._not_sent()
        call = _Call(ids, self._loop.create_future(), end_by)
        for number in ids:
            self._calls[number] = call
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append((call, frames))
        if self._sweep_timer is None:
            self._sweep_timer = self._loop.call_later(_SWEEP_S, self._sweep)
        return call

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and self._transport is not None:
            for call, _ in unsent:
                call.is_sent = True
            self._transport.write(b"".join([frames for _, frames in unsent]))

    # ---- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one in all but its class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._reason is not None:
            return
        try:
            self._decoder.feed(data)
            for message in self._decoder:
                self._take(message)
        except RemoteProtocolError as error:
            if not self._welcome.done():
                self._welcome.set_exception(error)
            self.close(str(error))

    def _take(self, message: Message) -> None:
        match message:
            case ReadResult() | WriteResult() | StatusResult():
                call = self._calls.pop(message.request_id, None)
                # There is none when its time was up, or it was cancelled.
                if call is not None:
                    call.take(message)
            case Error(code, text) if self._welcome.done():
                self._end(f"{code}: {text}")
            case _ if not self._welcome.done():
                self._welcome.set_result(message)

    def eof_received(self) -> bool:
        # The node is done: it sends no more answers.
        return False

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._end("the node closed the connection" if error is None else f"the connection broke: {error}")
        self._transport = None

    # ---- the end ---------------------------------------------------------------------------------------------------

    def _end(self, reason: str) -> None:
        """Nothing more can be sent, and no more answers come."""
        if self._reason is not None:
            return
        self._reason = reason
        self._unsent.clear()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for call in self._calls.values():
            call.fail(self._unanswered(reason) if call.is_sent else self._not_sent())
        if not self._welcome.done():
            self._welcome.set_result(None)
        # Those that wait find out that it is too late.
        self._may_write.set()

    def _sweep(self) -> None:
        """End the calls whose time is up."""
        now = self._loop.time()
        for call in self._calls.values():
            if now >= call.end_by:
                call.fail(self._unanswered(f"no answer came within {self._timeout_s:g} s"))
        self._sweep_timer = self._loop.call_later(_SWEEP_S, self._sweep) if self._calls else None

    def _unanswered(self, reason: str) -> Unanswered:
        return Unanswered(f"{self._url}: sent, and not answered: {reason}", hint=_READ_BACK, url=self._url)

    def _not_sent(self) -> Unreachable:
        return Unreachable(f"{self._url}: not sent: {self._reason}", hint="connect again", url=self._url)


def _put(key: str, value: JsonValue | JsonText) -> Op:
    # The format knows bytes only, and none of their subclasses.
    return put(_key(key), bytes(encode_value(value)))


def _key(key: str) -> bytes:
    if not key:
        raise ValueError("a key has at least one character")
    return key.encode()
