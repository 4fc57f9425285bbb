"""Entries as bytes: the msgpack payload that goes to the log, to every replica and into its log, and its CRC.

Source: FORMAT.md, "Entry".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple
from zlib import crc32

import msgpack
import msgspec

from kvnode.protocol.errors import EntryDamaged
from kvnode.protocol.types import OP_DELETE, OP_PUT, Delete, Entry, Epoch, Op, Put

_U64_MAX = 0xFFFF_FFFF_FFFF_FFFF

#: The first byte of every payload of this format: a msgpack array of four.
ENTRY_FIRST_BYTE = b"\x94"


#: The CRC-32 (ISO-HDLC, as zlib computes it) that travels with a payload, 0 to 2**32 - 1. It is zlib's own function:
#: a call in Python around it would take longer than the CRC of a small payload.
payload_crc: Callable[[bytes | memoryview], int] = crc32


class EntryEncoder:
    """Turns entries into payloads. Holds a buffer that it reuses, so one instance serves one thread.

    Attributes:
        encode: the payload of an entry; `decode_entry` is its inverse. It is the packer's own method, for the reason
            that `payload_crc` gives.
    """

    __slots__ = ("encode",)

    def __init__(self) -> None:
        self.encode: Callable[[Entry], bytes] = msgpack.Packer(use_bin_type=True).pack


def decode_entry(payload: bytes | memoryview) -> Entry:
    """The entry that `payload` holds.

    Raises:
        EntryDamaged: the bytes are not exactly one entry of a known shape.
    """
    try:
        fields: Any = msgpack.unpackb(payload, use_list=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise EntryDamaged(f"entry payload is not msgpack: {error}") from error
    if type(fields) is not tuple or len(fields) != 4:
        raise EntryDamaged("entry payload is not an array of four")
    seq, epoch, time_ms, ops = fields
    if not (_is_u64(seq) and seq > 0 and _is_u64(epoch) and _is_u64(time_ms)):
        raise EntryDamaged("entry seq, epoch or time is not an unsigned integer in range")
    if type(ops) is not tuple or not ops:
        raise EntryDamaged("entry has no operations")
    return Entry(seq, Epoch(epoch), time_ms, tuple([decode_op(op) for op in ops]))


class LoggedPut(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True, tag=OP_PUT):
    """A `Put` as `decode_logged` gives it."""

    key: Annotated[bytes, msgspec.Meta(min_length=1)]
    expires_ms: Annotated[int, msgspec.Meta(ge=0)]
    value: bytes


class LoggedDelete(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True, tag=OP_DELETE):
    """A `Delete` as `decode_logged` gives it."""

    key: Annotated[bytes, msgspec.Meta(min_length=1)]


class LoggedEntry(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """An `Entry` as `decode_logged` gives it; the epoch is a plain integer."""

    seq: Annotated[int, msgspec.Meta(ge=1)]
    epoch: Annotated[int, msgspec.Meta(ge=0)]
    time_ms: Annotated[int, msgspec.Meta(ge=0)]
    ops: Annotated[tuple[LoggedPut | LoggedDelete, ...], msgspec.Meta(min_length=1)]


#: A payload to what `decode_entry` gives, in another form; raises one of `NOT_AN_ENTRY` where that raises EntryDamaged.
#: For reading a whole log: all checks are done inside the decoder. An entry with one put takes 0.2 µs, with
#: `decode_entry` 1.5 µs, which was a quarter of a start with a full segment to replay.
decode_logged: Callable[[bytes], LoggedEntry] = msgspec.msgpack.Decoder(LoggedEntry).decode
NOT_AN_ENTRY = (msgspec.MsgspecError, RecursionError)


class EntryBeginning(NamedTuple):
    """An entry as far as somebody wants to see it.

    Attributes:
        entry: with its first operations only.
        ops_left_out: how many more it has.
    """

    entry: Entry
    ops_left_out: int


def decode_beginning(payload: bytes, max_ops: int) -> EntryBeginning:
    """The entry that `payload` holds, without what follows its first operations, which is not looked at.

    Args:
        max_ops: at least 1.

    Raises:
        EntryDamaged: the bytes do not begin as an entry of a known shape does.
    """
    unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=len(payload))
    unpacker.feed(payload)
    try:
        if unpacker.read_array_header() != 4:
            raise EntryDamaged("entry payload is not an array of four")
        seq, epoch, time_ms = unpacker.unpack(), unpacker.unpack(), unpacker.unpack()
        count = unpacker.read_array_header()
        ops = [unpacker.unpack() for _ in range(min(count, max_ops))]
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise EntryDamaged(f"entry payload is not msgpack: {error}") from error
    if not (_is_u64(seq) and seq > 0 and _is_u64(epoch) and _is_u64(time_ms)):
        raise EntryDamaged("entry seq, epoch or time is not an unsigned integer in range")
    if not ops:
        raise EntryDamaged("entry has no operations")
    return EntryBeginning(Entry(seq, Epoch(epoch), time_ms, tuple([decode_op(op) for op in ops])), count - len(ops))


def decode_op(fields: Any) -> Op:
    """The operation that an unpacked array stands for.

    Raises:
        EntryDamaged: its kind is not known, or its shape is not that of its kind.
    """
    if isinstance(fields, tuple) and fields and type(fields[0]) is int:
        match fields:
            case (kind, key, expires_ms, value) if kind == OP_PUT:
                if type(key) is bytes and key and _is_u64(expires_ms) and type(value) is bytes:
                    return Put._make(fields)
            case (kind, key) if kind == OP_DELETE:
                if type(key) is bytes and key:
                    return Delete._make(fields)
    raise EntryDamaged("entry has an operation of an unknown kind or shape")


def _is_u64(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _U64_MAX
