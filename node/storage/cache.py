"""The read cache: the most recently used records, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict

from kvnode.node.api import Record

#: What an entry takes besides the bytes of its key and value: two bytes objects, a record, a position, a seq, and its
#: place in the dictionary. Measured as resident memory: about 375 in a cache that was just filled, 480 in one whose
#: hash table has grown under a long exchange of its entries.
ENTRY_BYTES = 430

#: A record of more than this part of the cache would push out too much for one key.
_LARGEST_PART = 8


class LruCache:
    """Records by key, of which the least recently used leave first. Used on the event loop only.

    Attributes:
        bytes: memory that the entries take, keys and `ENTRY_BYTES` included; at most the maximum.
        hits: calls of `get` that found a record.
        misses: calls of `get` that did not.
    """

    __slots__ = ("_largest", "_max_bytes", "_records", "bytes", "hits", "misses")

    def __init__(self, max_bytes: int) -> None:
        """Make an empty cache of at most `max_bytes`; 0 caches nothing."""
        self._max_bytes = max_bytes
        self._largest = max_bytes // _LARGEST_PART
        self._records: OrderedDict[bytes, Record] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    @property
    def entries(self) -> int:
        """How many records are cached."""
        return len(self._records)

    def __contains__(self, key: bytes) -> bool:
        """Whether `key` has a record; neither counted nor a use."""
        return key in self._records

    def get(self, key: bytes) -> Record | None:
        """The record of `key`, which becomes the most recently used, or None; counted as a hit or a miss."""
        records = self._records
        record = records.get(key)
        if record is None:
            self.misses += 1
            return None
        records.move_to_end(key)
        self.hits += 1
        return record

    def put(self, key: bytes, record: Record) -> None:
        """Make `record` the most recently used one, in place of what `key` had.

        A record that is too large to be cached leaves nothing under `key`.
        """
        records = self._records
        size = len(key) + len(record.value) + ENTRY_BYTES
        if size > self._largest:
            self.discard(key)
            return
        previous = records.get(key)
        records[key] = record
        if previous is None:
            self.bytes += size
        else:
            self.bytes += len(record.value) - len(previous.value)
            records.move_to_end(key)
        while self.bytes > self._max_bytes:
            oldest, evicted = records.popitem(last=False)
            self.bytes -= len(oldest) + len(evicted.value) + ENTRY_BYTES

    def discard(self, key: bytes) -> None:
        """Forget `key`; nothing happens where it has no record."""
        record = self._records.pop(key, None)
        if record is not None:
            self.bytes -= len(key) + len(record.value) + ENTRY_BYTES

    def clear(self) -> None:
        """Forget everything; the counts of hits and misses go on."""
        self._records.clear()
        self.bytes = 0
