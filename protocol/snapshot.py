"""What SNAPSHOT_CHUNK frames carry: records of a snapshot in key order, and the CRC over them.

Packed on its own inside the frame, so that the CRC covers bytes that travel untouched from disk to disk.

Source: FORMAT.md, "Snapshot data".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import lt
from typing import Any, NamedTuple, TypeAlias, cast

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


#: A `SnapshotRecord`, or the plain tuple of its fields with the epoch as its number. A full sync hands the latter from
#: step to step: to make named records at both ends took a fifth of what it costs besides LevelDB.
RecordFields: TypeAlias = tuple[bytes, Seq, int, int, bytes]

_COLUMNS = len(SnapshotRecord._fields)
_new_record = partial(tuple.__new__, SnapshotRecord)


def encode_chunk(records: Sequence[RecordFields]) -> SnapshotChunk:
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
    """The records in `chunk`, as `unpack_chunk`.

    Raises:
        RemoteProtocolError: the CRC is wrong, or the data is not of that form.
    """
    keys, seqs, epochs, expiries, values = zip(*unpack_chunk(chunk), strict=True)
    # Records share their epochs, and a record is made without a call in Python.
    shared = {epoch: Epoch(epoch) for epoch in set(epochs)}
    columns = zip(keys, seqs, map(shared.__getitem__, epochs), expiries, values, strict=True)
    return tuple(map(_new_record, columns))


def unpack_chunk(chunk: SnapshotChunk) -> tuple[RecordFields, ...]:
    """The plain records in `chunk`: at least one, in strictly rising order of their keys.

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
    return cast(tuple[RecordFields, ...], records)


def _check(records: Any) -> None:
    """Check each column of `records` as a whole: there are a million records in a full sync.

    Raises:
        ValueError: it is not what a chunk may hold.
    """
    if not isinstance(records, tuple) or not records:
        raise ValueError("expected at least one record")
    if not set(map(type, records)) <= {tuple, SnapshotRecord} or set(map(len, records)) != {_COLUMNS}:
        raise ValueError("expected a record, [key, seq, epoch, expires_ms, value]")
    keys, seqs, epochs, expiries, values = zip(*records, strict=True)
    if set(map(type, keys)) != {bytes} or set(map(type, values)) != {bytes}:
        raise ValueError("expected bytes as key and value")
    if not keys[0] or not all(map(lt, keys, keys[1:])):
        raise ValueError("expected each key to be above the one before it")
    for column, lowest in ((seqs, 1), (epochs, 0), (expiries, 0)):
        if not set(map(type, column)) <= {int, Epoch} or min(column) < lowest or max(column) > U64_MAX:
            raise ValueError("expected seq, epoch and expires_ms to be unsigned integers in range")
