"""What the node's network fronts may ask of it: the store's and the service's interfaces, and their values.

REST and the peer shells know these protocols only; `kvnode.node.store.Store` and
`kvnode.node.service.Node` implement them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

from kvnode.protocol.entry import EntryBeginning
from kvnode.protocol.types import Epoch, Op, Position, Seq

#: (key, value) as bytes, in the shape in which range reads hand them over.
Item: TypeAlias = tuple[bytes, bytes]


class Record(NamedTuple):
    """A stored value with its version.

    Attributes:
        position: the entry that wrote it; the version that conditions and ETags speak of.
        expires_ms: UTC milliseconds since 1970; 0 = never.
        value: JSON text as the client sent it.
    """

    position: Position
    expires_ms: int
    value: bytes


class ReadResult(NamedTuple):
    """One key's record, or None where there is none, and the position that the read saw."""

    record: Record | None
    applied: Position


class WriteResult(NamedTuple):
    """What a durable and published write came to.

    Attributes:
        position: of the write's entry; of the last applied entry where nothing had to be logged.
        deleted: how many keys existed among those that the write deletes.
    """

    position: Position
    deleted: int


@dataclass(frozen=True, slots=True)
class Acks:
    """How many replicas besides the primary must hold a write durably before it is answered.

    Attributes:
        count: 0 or more; None means a majority of the members, the primary counted.
        timeout_s: how long the answer may wait for them once the write is durable here.
    """

    count: int | None = 0
    timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class ReadToken:
    """A read's wish to see at least `seq`, of history `epoch` when given, waiting up to `wait_s` for it."""

    seq: Seq
    epoch: Epoch | None = None
    wait_s: float = 1.0


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Keys in byte order between two inclusive bounds; None leaves a side open.

    Attributes:
        first: lowest key wanted.
        last: highest key wanted.
        prefix: only keys that begin with these bytes; empty for all.
        limit: at most this many items, at least 1; None for all.
        reverse: highest key first.
    """

    first: bytes | None = None
    last: bytes | None = None
    prefix: bytes = b""
    limit: int | None = None
    reverse: bool = False


class RangeStream(Protocol):
    """A range read in progress over one snapshot. An asynchronous iterator of chunks; close it in any case.

    Each chunk is what the `encode` function given to `StoreApi.read_range` made of some items, in order. When the
    iteration has ended normally, the range was read to its end (or its limit) and that end was confirmed.

    Attributes:
        applied: the position that the snapshot shows; known from the beginning.
        count: items handed over so far.
        next_key: after the end: the first key left out because of `limit`, else None.

    Raises (from iteration):
        RecordDamaged: what was handed over is incomplete.
        Syncing: it is incomplete, because LevelDB was closed for repair; the range can be read again soon.
    """

    applied: Position
    count: int
    next_key: bytes | None

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes: ...

    async def aclose(self) -> None: ...


class NewestEntries(NamedTuple):
    """Entries for those who watch a node.

    Attributes:
        entries: the newest, in order.
        left_out: how many came between what was seen before and these.
        last: the last published entry, up to which nothing is to be told any more.
    """

    entries: Sequence[EntryBeginning]
    left_out: int
    last: Position


class StoreApi(Protocol):
    """The store as the network fronts see it. All methods are called on the event loop."""

    @property
    def applied(self) -> Position:
        """The last published entry's position; of an empty store, epoch 0 and seq 0.

        The epoch is the one that ordered that entry, so that the position stays part of the history whatever follows.
        """

    def write(self, ops: Sequence[Op], acks: Acks | None = None) -> asyncio.Future[WriteResult]:
        """Queue one atomic write; the future resolves when it is durable, applied and published.

        A cancelled future does not undo the write.

        Raises (at once):
            TooLarge: a key, value, batch or item count is over its limit.
            Overloaded: too many bytes are queued for commit.
            Draining, NotEnoughReplicas, Syncing, StorageFull: this write was not taken.

        Raises (from the future):
            StorageFull: nothing was written.
            OutcomeUnknown, ReplicationTimeout: it was, or may have been.
        """

    def cached(self, key: bytes) -> Record | None:
        """The published record of `key` if it is in the cache; counts a hit or a miss."""

    def read(self, key: bytes) -> asyncio.Future[ReadResult]:
        """The record of `key` from LevelDB, for a key that `cached` just missed. Fills the cache.

        Raises (at once, or from the future):
            RecordDamaged, Syncing.
        """

    async def read_range(self, wanted: KeyRange, encode: Callable[[Sequence[Item]], bytes]) -> RangeStream:
        """Begin a range read on one snapshot; `encode` runs on a worker thread, never on the loop.

        Raises:
            RecordDamaged, Syncing.
        """

    async def wait_applied(self, token: ReadToken) -> None:
        """Return once this node has applied `token.seq`.

        Raises:
            NotCaughtUp: not within the token's wait.
            HistoryLost: the token names an entry that this node's history does not have.
        """


class NodeApi(Protocol):
    """The node as a whole, as the operator's routes see it. All methods are called on the event loop, none blocks."""

    def status(self) -> dict[str, Any]:
        """The JSON object of GET /status."""

    def watched(self) -> dict[str, Any]:
        """`status`, and what a picture of the node and of its cluster needs besides; see `kvnode.node.watching`.

        While this is called now and then, a replica asks its primary about the others.
        """

    def newest_entries(self, after: Position | None) -> NewestEntries:
        """Entries that are in memory, newer than one that was seen.

        Args:
            after: what was seen last; None, or one that is not in this node's history, for nothing.

        Raises:
            EntryDamaged: one is not what it was.
        """

    def check_ready(self, max_lag: int | None) -> None:
        """Return if the node may be sent traffic, else raise an `Unavailable` that says why not."""

    def check_role(self, role: str) -> None:
        """Return if the node's role is `role` ("primary" or "replica"), else raise `NotPrimary` or `NotReplica`."""

    async def promote(self, *, force: bool) -> dict[str, Any]:
        """Make this node the primary; returns what POST /cluster/promote answers.

        Args:
            force: also when the primary answers or another member is ahead.

        Raises:
            AlreadyPrimary, PromotionRefused, Syncing.
        """

    async def forget(self, name: str) -> None:
        """Let a member go that will not return.

        Raises:
            NotPrimary, MemberNotFound, MemberConnected.
        """

    async def render_metrics(self, accept: str) -> tuple[str, bytes]:
        """(Content-Type, body) of GET /metrics: Prometheus' text format, or OpenMetrics where `accept` asks for it.

        Args:
            accept: the request's Accept header; may be empty.
        """
