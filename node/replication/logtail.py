"""The newest records of the log in memory: what replicas that keep up are sent without asking a disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from kvnode.protocol.codec import encode
from kvnode.protocol.fields import LogRecord
from kvnode.protocol.messages import Entries
from kvnode.protocol.types import Seq

#: Payload bytes that are kept. Beyond, a replica is behind, and its feed reads the log's files.
_KEEP_BYTES = 8 * 1024 * 1024
#: What a record costs in memory besides its payload, about.
_RECORD_BYTES = 150


class Stretch(NamedTuple):
    """Consecutive records.

    Attributes:
        records: at least one.
        payload_bytes: of all of them.
    """

    records: tuple[LogRecord, ...]
    payload_bytes: int


class _Group(NamedTuple):
    first_seq: Seq
    records: Sequence[LogRecord]
    payload_bytes: int


class LogTail:
    """A window over the end of the log, by groups as they were published. Used on the event loop only."""

    def __init__(self, keep_bytes: int = _KEEP_BYTES) -> None:
        self._keep_bytes = keep_bytes
        self._groups: deque[_Group] = deque()
        self._bytes = 0
        #: What was read or encoded last: replicas that keep up all ask for the same.
        self._read: tuple[tuple[Seq, Seq, int], Stretch] | None = None
        self._encoded: tuple[tuple[LogRecord, ...], bytes] | None = None

    def add(self, first_seq: Seq, records: Sequence[LogRecord]) -> None:
        """Take in a group that was just published."""
        groups = self._groups
        if groups and groups[-1].first_seq + len(groups[-1].records) != first_seq:
            # The log was replaced under it.
            self.clear()
        payload_bytes = sum([len(payload) for _, payload in records])
        groups.append(_Group(first_seq, records, payload_bytes))
        self._bytes += payload_bytes + _RECORD_BYTES * len(records)
        while self._bytes > self._keep_bytes and len(groups) > 1:
            oldest = groups.popleft()
            self._bytes -= oldest.payload_bytes + _RECORD_BYTES * len(oldest.records)

    def clear(self) -> None:
        """Forget everything."""
        self._groups.clear()
        self._bytes = 0
        self._read = self._encoded = None

    def read(self, first_seq: Seq, last_seq: Seq, max_bytes: int) -> Stretch | None:
        """Records from `first_seq` on, or None if it does not reach back so far.

        Args:
            last_seq: was published.
            max_bytes: of payloads; the first record counts as fitting in any case.
        """
        groups = self._groups
        if not groups or first_seq < groups[0].first_seq:
            return None
        wanted = (first_seq, last_seq, max_bytes)
        if self._read is not None and self._read[0] == wanted:
            return self._read[1]
        index = len(groups) - 1
        while groups[index].first_seq > first_seq:
            index -= 1
        records: list[LogRecord] = []
        size = 0
        seq = first_seq
        for position in range(index, len(groups)):
            group = groups[position]
            start, stop = seq - group.first_seq, last_seq + 1 - group.first_seq
            if start == 0 and stop >= len(group.records) and size + group.payload_bytes <= max_bytes:
                records += group.records
                size += group.payload_bytes
                seq += len(group.records)
                continue
            for record in group.records[start:stop]:
                if records and size + len(record.payload) > max_bytes:
                    break
                records.append(record)
                size += len(record.payload)
                seq += 1
            if seq < group.first_seq + len(group.records):
                break
        if not records:
            return None
        stretch = Stretch(tuple(records), size)
        self._read = (wanted, stretch)
        return stretch

    def newest(self, after_seq: Seq, last_seq: Seq, count: int) -> list[LogRecord]:
        """The last records up to `last_seq`, of those that come after `after_seq` and are here; at most `count`.

        Unlike `read` it keeps nothing: what replicas asked for last stays at hand.
        """
        found: list[LogRecord] = []
        for group in reversed(self._groups):
            start, stop = max(0, after_seq + 1 - group.first_seq), max(0, last_seq + 1 - group.first_seq)
            found[:0] = group.records[start:stop][-count:]
            if start > 0 or len(found) >= count:
                break
        return found[-count:]

    def encode(self, records: tuple[LogRecord, ...], max_frame_bytes: int) -> bytes:
        """The ENTRIES frame of some records, encoded once for all replicas that are sent the same."""
        if self._encoded is None or self._encoded[0] is not records:
            self._encoded = (records, encode(Entries(records), max_frame_bytes))
        return self._encoded[1]
