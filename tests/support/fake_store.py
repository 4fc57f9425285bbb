"""A store and a node in memory for tests of the network fronts; they answer at once unless they are told otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from kvnode.node.api import (
    Acks,
    Item,
    KeyRange,
    NewestEntries,
    RangeStream,
    ReadResult,
    ReadToken,
    Record,
    WriteResult,
)
from kvnode.node.config import Config
from kvnode.node.errors import NotPrimary, NotReplica, TooLarge
from kvnode.protocol.entry import EntryBeginning
from kvnode.protocol.types import Epoch, Op, Position, Put

EPOCH = Epoch.of(3, 0x9F2C1A7B)

#: What `FakeNode` shows at once of its log.
SHOWN_ENTRIES = 3


class FakeStore:
    """Implements `kvnode.node.api.StoreApi` with a dictionary.

    Attributes:
        records: what is stored.
        is_caching: whether `cached` finds anything.
        write_error: raised by `write` at once, if set.
        outcome_error: what futures of writes end with, if set.
        read_error: raised by `read` and by `read_range`, if set.
        wait_error: raised by `wait_applied`, if set.
        range_error_after: chunks after which a range read fails with `range_error`; None for never.
        range_chunk_items: items of a range read in each chunk.
        hold: while set, writes are done but their futures, collected in `held`, are not; nor do range reads go on.
        writes: what was written: operations and acks.
        tokens: what reads waited for.
        open_ranges: range reads that were begun and not closed.
    """

    def __init__(self, config: Config | None = None) -> None:
        self.records: dict[bytes, Record] = {}
        self.is_caching = True
        self.write_error: Exception | None = None
        self.outcome_error: Exception | None = None
        self.read_error: Exception | None = None
        self.wait_error: Exception | None = None
        self.range_error: Exception | None = None
        self.range_error_after: int | None = None
        self.range_chunk_items = 100
        self.hold = False
        self.held: list[asyncio.Future[WriteResult]] = []
        self.writes: list[tuple[tuple[Op, ...], Acks | None]] = []
        self.ranges: list[KeyRange] = []
        self.tokens: list[ReadToken] = []
        self.open_ranges = 0
        self.ranges_began = 0
        self.range_chunks = 0
        #: Set whenever something is written or held.
        self.wrote = asyncio.Event()
        #: Set whenever no range read is open.
        self.ranges_closed = asyncio.Event()
        self._config = config or Config()
        self._seq = 0

    @property
    def applied(self) -> Position:
        return Position(EPOCH, self._seq)

    def write(self, ops: Sequence[Op], acks: Acks | None = None) -> asyncio.Future[WriteResult]:
        if self.write_error is not None:
            raise self.write_error
        self._check_limits(ops)
        self.writes.append((tuple(ops), acks))
        deleted = 0
        is_noop = True
        for op in ops:
            if isinstance(op, Put):
                is_noop = False
            elif op.key in self.records:
                deleted += 1
                is_noop = False
        self._seq += not is_noop
        for op in ops:
            if isinstance(op, Put):
                self.records[op.key] = Record(self.applied, op.expires_ms, op.value)
            else:
                self.records.pop(op.key, None)
        future: asyncio.Future[WriteResult] = asyncio.get_running_loop().create_future()
        if self.hold:
            self.held.append(future)
        elif self.outcome_error is not None:
            future.set_exception(self.outcome_error)
        else:
            future.set_result(WriteResult(self.applied, deleted))
        self.wrote.set()
        return future

    def cached(self, key: bytes) -> Record | None:
        return self.records.get(key) if self.is_caching else None

    def read(self, key: bytes) -> asyncio.Future[ReadResult]:
        future: asyncio.Future[ReadResult] = asyncio.get_running_loop().create_future()
        if self.read_error is not None:
            future.set_exception(self.read_error)
        else:
            future.set_result(ReadResult(self.records.get(key), self.applied))
        return future

    async def read_range(self, wanted: KeyRange, encode: Callable[[Sequence[Item]], bytes]) -> RangeStream:
        self.ranges.append(wanted)
        await asyncio.sleep(0)
        if self.read_error is not None:
            raise self.read_error
        return FakeRange(self, wanted, encode)

    async def wait_applied(self, token: ReadToken) -> None:
        self.tokens.append(token)
        await asyncio.sleep(0)
        if self.wait_error is not None:
            raise self.wait_error

    def _check_limits(self, ops: Sequence[Op]) -> None:
        config = self._config
        for op in ops:
            if len(op.key) > config.max_key_bytes:
                raise TooLarge("max_key_bytes", config.max_key_bytes, len(op.key))
            if isinstance(op, Put) and len(op.value) > config.max_value_bytes:
                raise TooLarge("max_value_bytes", config.max_value_bytes, len(op.value))
        if len(ops) > config.max_batch_items:
            raise TooLarge("max_batch_items", config.max_batch_items, len(ops))


class FakeRange:
    """Implements `kvnode.node.api.RangeStream` over the records that are there when it begins."""

    def __init__(self, store: FakeStore, wanted: KeyRange, encode: Callable[[Sequence[Item]], bytes]) -> None:
        self.applied = store.applied
        self.count = 0
        self.next_key: bytes | None = None
        self._store = store
        self._encode = encode
        self._chunks = 0
        self._is_open = True
        keys = [key for key in sorted(store.records) if _is_in(key, wanted)]
        if wanted.reverse:
            keys.reverse()
        stop = len(keys) if wanted.limit is None else wanted.limit
        self._items = [(key, store.records[key].value) for key in keys[:stop]]
        self._left_out = keys[stop] if stop < len(keys) else None
        store.open_ranges += 1
        store.ranges_closed.clear()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        assert self._is_open, "read after it was closed"
        await asyncio.sleep(0)
        store = self._store
        if store.range_error is not None and self._chunks == store.range_error_after:
            raise store.range_error
        items = self._items[self.count : self.count + store.range_chunk_items]
        if not items:
            self.next_key = self._left_out
            raise StopAsyncIteration
        self._chunks += 1
        store.range_chunks += 1
        self.count += len(items)
        return self._encode(items)

    async def aclose(self) -> None:
        if self._is_open:
            self._is_open = False
            self._store.open_ranges -= 1
            if not self._store.open_ranges:
                self._store.ranges_closed.set()


def _is_in(key: bytes, wanted: KeyRange) -> bool:
    return (
        key.startswith(wanted.prefix)
        and (wanted.first is None or key >= wanted.first)
        and (wanted.last is None or key <= wanted.last)
    )


class FakeNode:
    """Implements `kvnode.node.api.NodeApi`.

    Attributes:
        ready_error: raised by `check_ready`, if set.
        role: "primary" or "replica".
        lags: what `check_ready` was asked.
        accepts: what `render_metrics` was.
        looks: how often it was watched.
        watched_error: raised by `watched`, if set.
        padding: what `watched` holds besides.
        entries: what is in memory of its log.
    """

    def __init__(self) -> None:
        self.ready_error: Exception | None = None
        self.role = "primary"
        self.lags: list[int | None] = []
        self.accepts: list[str] = []
        self.looks = 0
        self.watched_error: Exception | None = None
        self.padding = ""
        self.entries: list[EntryBeginning] = []

    def status(self) -> dict[str, Any]:
        return {"name": "fake", "role": self.role, "epoch": str(EPOCH), "replicas": [], "primary": None}

    def watched(self) -> dict[str, Any]:
        self.looks += 1
        if self.watched_error is not None:
            raise self.watched_error
        return self.status() | {"look": self.looks, "padding": self.padding}

    def newest_entries(self, after: Position | None) -> NewestEntries:
        last = self.entries[-1].entry.position if self.entries else Position(Epoch(0), 0)
        is_known = after is not None and (not after.seq or after in [each.entry.position for each in self.entries])
        after_seq = after.seq if after is not None and is_known else 0
        new = [each for each in self.entries if each.entry.seq > after_seq]
        shown = new[-SHOWN_ENTRIES:]
        return NewestEntries(shown, len(new) - len(shown) if is_known else 0, last)

    def check_ready(self, max_lag: int | None) -> None:
        self.lags.append(max_lag)
        if self.ready_error is not None:
            raise self.ready_error

    def check_role(self, role: str) -> None:
        if role != self.role:
            raise (NotPrimary if role == "primary" else NotReplica)(f"this node is a {self.role}")

    async def render_metrics(self, accept: str) -> tuple[str, bytes]:
        self.accepts.append(accept)
        return "text/plain; version=0.0.4; charset=utf-8", b"kvnode_up 1\n"
