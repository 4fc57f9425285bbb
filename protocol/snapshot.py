"""What SNAPSHOT_CHUNK frames carry: records of a snapshot in key order, and the CRC over them.

Packed on its own inside the frame, so that the CRC covers bytes that travel untouched from disk to disk.

Source: FORMAT.md, "Snapshot data".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from kvnode.protocol.entry import payload_crc
from kvnode.protocol.errors import LocalProtocolError, RemoteProtocolError
from kvnode.protocol.fields import U64_MAX
from kvnode.protocol.messages import SnapshotChunk
from kvnode.protocol.types import Epoch, Seq


class SnapshotRecord(NamedTuple):
    """A key with its stored record. The order of the fields is the format's.

    Attributes:
        key: at least one byte.
        seq: of the entry that wrote it, at least 1.
        epoch: of that entry.
        expires_ms: UTC milliseconds since 1970; 0 = never.
        value: JSON text, UTF-8, as the client sent it.
    """

    key: bytes
    seq: Seq
    epoch: Epoch
    expires_ms: int
    value: bytes


def encode_chunk(records: Sequence[SnapshotRecord]) -> SnapshotChunk:
    """The frame that carries `records`; `decode_chunk` is the inverse.

    Raises:
        LocalProtocolError: there is none, they are not in rising order of their keys, or a field is out of range.
    """
    records = tuple(records)
    try:
        _check(records)
    except ValueError as error:
        raise LocalProtocolError(f"SNAPSHOT_CHUNK.data: {error}") from error
    data: bytes = msgpack.packb(records, use_bin_type=True)
    return SnapshotChunk(payload_crc(data), data)


def decode_chunk(chunk: SnapshotChunk) -> tuple[SnapshotRecord, ...]:
    """The records in `chunk`: at least one, in strictly rising order of their keys.

    Raises:
        RemoteProtocolError: the CRC is wrong, or the data is not of that form.
    """
    if payload_crc(chunk.data) != chunk.crc:
        raise RemoteProtocolError("SNAPSHOT_CHUNK.crc: does not match the data")
    try:
        records: Any = msgpack.unpackb(chunk.data, use_list=False)
        _check(records)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"SNAPSHOT_CHUNK.data: {error}") from error
    return tuple([SnapshotRecord(key, seq, Epoch(epoch), at, value) for key, seq, epoch, at, value in records])


def _check(records: Any) -> None:
    """Raise ValueError unless `records` is what a chunk may hold."""
    if not isinstance(records, tuple) or not records:
        raise ValueError("expected at least one record")
    previous = b""
    for record in records:
        if not isinstance(record, tuple) or len(record) != 5:
            raise ValueError("expected a record, [key, seq, epoch, expires_ms, value]")
        key, seq, epoch, expires_ms, value = record
        if type(key) is not bytes or type(value) is not bytes:
            raise ValueError("expected bytes as key and value")
        # This also refuses an empty key.
        if key <= previous:
            raise ValueError("expected each key to be above the one before it")
        if not (_is_u64(seq) and seq > 0 and _is_u64(epoch) and _is_u64(expires_ms)):
            raise ValueError("expected seq, epoch and expires_ms to be unsigned integers in range")
        previous = key


def _is_u64(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= U64_MAX
