"""Reading the running log for a replica: records with their CRC, untouched, from wherever it is to where it ended.

Sequential reading costs as much as its bytes: a reader stays where it stopped, in an open file. So a segment that is
dropped while it is read can be read to its end.
"""

from __future__ import annotations

from zlib import crc32

from kvnode.node.errors import LogDamaged, LogTrimmed
from kvnode.node.fs import File, Fs
from kvnode.node.storage.segment import (
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    RECORD_HEADER_BYTES,
    check_header,
    payload_seq,
    segment_name,
    unpack_record_header,
)
from kvnode.node.storage.wal import Segment, Wal
from kvnode.protocol.fields import LogRecord
from kvnode.protocol.types import Seq

#: How much is read at a time to get from record to record on the way to a seq, in bytes.
_SKIP_BYTES = 256 * 1024

#: What is read for a record besides its payload, at the least; so that small limits do not lead to a second read.
_EXTRA_BYTES = 4096


class LogReader:
    """One reader's place in the log. One thread at a time calls it; the log is appended to and trimmed meanwhile."""

    def __init__(self, fs: Fs, wal: Wal) -> None:
        """Nothing is opened before the first `read`."""
        self._fs = fs
        self._wal = wal
        self._file: File | None = None
        #: Of the segment that is open.
        self._first_seq: Seq = 0
        # The place: the record of this seq begins at this offset, or will.
        self._seq: Seq = 0
        self._offset = HEADER_BYTES

    def read(self, first_seq: Seq, last_seq: Seq, max_bytes: int) -> tuple[tuple[LogRecord, ...], int]:
        """Consecutive records from `first_seq` on, each of which matches its CRC, and the payloads' bytes in total.

        It may be fewer than there are: a read goes into one segment, and there is about `max_bytes` long.

        Args:
            first_seq: of the first record; not above `last_seq`.
            last_seq: none above is wanted; it is in the log.
            max_bytes: of payloads in total; the first record counts as fitting in any case.

        Returns:
            At least one record.

        Raises:
            LogTrimmed: the log begins later, and no open file has the record.
            LogDamaged: the log does not hold what it held.
            OSError: the disk refuses.
        """
        end = self._go_to(first_seq)
        records, size = self._take(last_seq - first_seq + 1, max_bytes, end)
        self._seq += len(records)
        self._offset += size + RECORD_HEADER_BYTES * len(records)
        return tuple(records), size

    def close(self) -> None:
        """Close the open file, if there is one; the next `read` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    # ---- the place -------------------------------------------------------------------------------------------------

    def _go_to(self, seq: Seq) -> int:
        """Stand before the record of `seq`; returns the offset at which its segment's records end."""
        segments = self._wal.segments
        if self._file is not None and self._seq <= seq:
            end = self._end_of_open(segments, seq)
            if self._skip_to(seq, end):
                return end
        segment = self._open(segments, seq)
        if not self._skip_to(seq, segment.end):
            raise self._damaged(f"the segment reached up to seq {segment.last_seq} before")
        return segment.end

    def _end_of_open(self, segments: list[Segment], seq: Seq) -> int:
        """The offset up to which the open segment can be read on the way to `seq`."""
        assert self._file is not None
        for segment in reversed(segments):
            if segment.first_seq == self._first_seq:
                return segment.end if seq <= segment.last_seq else self._offset
        # It was dropped: a closed segment, which is as long as its records.
        return self._file.size()

    def _open(self, segments: list[Segment], seq: Seq) -> Segment:
        """Open the segment that holds `seq`, and stand before its first record."""
        self.close()
        wal = self._wal
        if seq < segments[0].first_seq:
            raise LogTrimmed(wal.directory, seq, segments[0].first_seq)
        segment = next(each for each in reversed(segments) if each.first_seq <= seq)
        assert seq <= segment.last_seq, f"a read of seq {seq}, which is not in the log yet"
        path = wal.directory / segment.name
        try:
            file = self._fs.open(path, writable=False)
        except FileNotFoundError:
            # The file goes before the list says so.
            if wal.first_seq >= segment.first_seq:
                raise LogTrimmed(wal.directory, seq, segment.last_seq + 1) from None
            raise LogDamaged(path, 0, segment.first_seq, "the segment is missing") from None
        try:
            check_header(path, file.read_at(0, HEADER_BYTES), wal.cluster_id)
        except BaseException:
            file.close()
            raise
        self._file = file
        self._first_seq = self._seq = segment.first_seq
        self._offset = HEADER_BYTES
        return segment

    def _skip_to(self, seq: Seq, end: int) -> bool:
        """Go on to the record of `seq` in the open segment, by the lengths only; returns whether it is before `end`."""
        assert self._file is not None
        while self._seq < seq and self._offset < end:
            data = self._file.read_at(self._offset, min(_SKIP_BYTES, end - self._offset))
            at, number, limit = 0, self._seq, end - self._offset
            while number < seq and at + RECORD_HEADER_BYTES <= len(data):
                length = unpack_record_header(data, at)[0] & MAX_PAYLOAD_BYTES
                if length == 0 or at + RECORD_HEADER_BYTES + length > limit:
                    break
                at += RECORD_HEADER_BYTES + length
                number += 1
            if at == 0:
                raise self._damaged(self._explain(data, limit))
            self._seq, self._offset = number, self._offset + at
        return self._seq == seq and self._offset < end

    # ---- the records -----------------------------------------------------------------------------------------------

    def _take(self, count: int, max_bytes: int, end: int) -> tuple[list[LogRecord], int]:
        """Up to `count` records from the place on, and their payloads' bytes in total."""
        assert self._file is not None
        offset, left = self._offset, end - self._offset
        data = self._file.read_at(offset, min(left, max_bytes + max(_EXTRA_BYTES, max_bytes >> 3)))
        records, size = _parse(data, count, max_bytes)
        if not records and RECORD_HEADER_BYTES <= len(data) < left:
            length = unpack_record_header(data, 0)[0] & MAX_PAYLOAD_BYTES
            data = self._file.read_at(offset, min(left, RECORD_HEADER_BYTES + length))
            records, size = _parse(data, 1, max_bytes)
        if not records:
            raise self._damaged(self._explain(data, left))
        if _is_not(records[0], self._seq) or _is_not(records[-1], self._seq + len(records) - 1):
            right = next(i for i, record in enumerate(records) if _is_not(record, self._seq + i))
            if right == 0:
                raise self._damaged(f"an intact record has seq {payload_seq(records[0].payload)}")
            records = records[:right]
            size = sum([len(record.payload) for record in records])
        return records, size

    def _explain(self, data: bytes, left: int) -> str:
        """Why no record begins `data`, which was read at the place, `left` bytes before the segment's end."""
        if len(data) < RECORD_HEADER_BYTES:
            return "the file ends inside a record header"
        length = unpack_record_header(data, 0)[0] & MAX_PAYLOAD_BYTES
        if length == 0:
            return "unused space where a record was"
        if RECORD_HEADER_BYTES + length > min(left, len(data)):
            return f"a record of {length} bytes would reach past the end of the segment"
        return "the payload does not match its CRC"

    def _damaged(self, reason: str) -> LogDamaged:
        """The error for what is wrong at the place."""
        return LogDamaged(self._wal.directory / segment_name(self._first_seq), self._offset, self._seq, reason)


def _parse(data: bytes, count: int, max_bytes: int) -> tuple[list[LogRecord], int]:
    """The intact records at the begin of `data`, up to `count` and to `max_bytes` of payloads, and those bytes.

    The first one counts as fitting. The hot path of a replica that catches up.
    """
    records: list[LogRecord] = []
    append, unpack, crc_of = records.append, unpack_record_header, crc32
    at, size, stop = 0, 0, len(data)
    while count > 0 and at + RECORD_HEADER_BYTES <= stop:
        length, crc = unpack(data, at)
        length &= MAX_PAYLOAD_BYTES
        begin = at + RECORD_HEADER_BYTES
        at = begin + length
        if at > stop or length == 0 or (size + length > max_bytes and records):
            break
        payload = data[begin:at]
        if crc_of(payload) != crc:
            break
        append(LogRecord(crc, payload))
        size += length
        count -= 1
    return records, size


def _is_not(record: LogRecord, seq: Seq) -> bool:
    return payload_seq(record.payload) != seq
