"""`NativeClient`: one node over the peer protocol, with many requests in flight on one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec

from kvnode.cli.client.answers import decode_object, server_error
from kvnode.cli.client.jsonvalues import JsonText, JsonValue, encode_value
from kvnode.cli.client.pipeline import Pipeline
from kvnode.cli.client.results import Deleted, Record, Status, Written
from kvnode.cli.client.targets import Acks
from kvnode.cli.errors import PeerSilent, Refused, ServerError
from kvnode.cli.peer import WELCOME_TIMEOUT_S, check_welcome, open_socket
from kvnode.node.config import Address
from kvnode.node.rest.errors import STATUS_OF_CODE
from kvnode.protocol.codec import encode, encode_trusted
from kvnode.protocol.messages import (
    FEATURE_READ,
    FrameType,
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
        self._connection: Pipeline | None = None
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
                lambda: Pipeline(self.url, self._timeout_s, self._most_in_flight), sock=connected
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
    def _link(self) -> Pipeline:
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


def _put(key: str, value: JsonValue | JsonText) -> Op:
    # The format knows bytes only, and none of their subclasses.
    return put(_key(key), bytes(encode_value(value)))


def _key(key: str) -> bytes:
    if not key:
        raise ValueError("a key has at least one character")
    return key.encode()
