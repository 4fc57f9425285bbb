"""The replica's work for its disk: one piece under way, the others in order behind it."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from kvnode.protocol.fields import LogRecord
from kvnode.protocol.replica_events import AppendEntries, StoreChunk, Work
from kvnode.protocol.snapshot import RecordFields
from kvnode.protocol.types import Entry


class _Queued(NamedTuple):
    work: Work
    #: what it holds in memory, in bytes, roughly
    size: int


class WorkQueue:
    """Work in the order in which it must take effect. Appends that follow each other share one fsync, and so do chunks.

    Attributes (read only):
        under_way: what was asked for and is not answered.
        size: what all of it holds in memory, in bytes, roughly.
    """

    def __init__(self, group_bytes: int) -> None:
        """No work.

        Args:
            group_bytes: an append or chunk that has as many payload bytes takes no more along.
        """
        self._group_bytes = group_bytes
        self._waiting: deque[_Queued] = deque()
        self._under_way: _Queued | None = None
        self.size = 0

    def __len__(self) -> int:
        """How many pieces wait, the one under way not counted."""
        return len(self._waiting)

    @property
    def appends_next(self) -> bool:
        """Whether entries wait at the front, to be appended next."""
        return bool(self._waiting) and isinstance(self._waiting[0].work, AppendEntries)

    @property
    def under_way(self) -> Work | None:
        return None if self._under_way is None else self._under_way.work

    @property
    def waiting(self) -> list[Work]:
        """What waits, in order."""
        return [queued.work for queued in self._waiting]

    def add(self, work: Work) -> None:
        """Put a piece at the end."""
        queued = _Queued(work, _size(work))
        self._waiting.append(queued)
        self.size += queued.size

    def begin(self) -> Work | None:
        """Take the next piece under way; None if there is none, or one is under way already."""
        if self._under_way is not None or not self._waiting:
            return None
        group = [self._waiting.popleft()]
        size = group[0].size
        kind = type(group[0].work)
        if kind in (AppendEntries, StoreChunk):
            while self._waiting and size < self._group_bytes and type(self._waiting[0].work) is kind:
                group.append(self._waiting.popleft())
                size += group[-1].size
        self._under_way = _Queued(_merge(group) if len(group) > 1 else group[0].work, size)
        return self._under_way.work

    def end(self) -> Work:
        """The piece under way was answered; returns it."""
        assert self._under_way is not None, "an answer to work that nobody asked for"
        work, size = self._under_way
        self._under_way = None
        self.size -= size
        return work

    def clear(self) -> None:
        """Forget what waits; the piece under way goes on."""
        self._waiting.clear()
        self.size = 0 if self._under_way is None else self._under_way.size


def _merge(group: list[_Queued]) -> AppendEntries | StoreChunk:
    """One piece of work for several of a kind."""
    records: list[LogRecord] = []
    entries: list[Entry] = []
    stored: list[RecordFields] = []
    for work, _ in group:
        if isinstance(work, AppendEntries):
            records += work.records
            entries += work.entries
        else:
            assert isinstance(work, StoreChunk)
            stored += work.records
    return StoreChunk(tuple(stored)) if stored else AppendEntries(tuple(records), tuple(entries))


def _size(work: Work) -> int:
    match work:
        case AppendEntries(records, _):
            return sum([len(record.payload) for record in records])
        case StoreChunk(records):
            return sum([len(key) + len(value) for key, _, _, _, value in records])
        case _:
            return 0
