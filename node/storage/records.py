"""What LevelDB's keys and values hold: stored records, meta values, and the bounds of a range in stored keys.

    b"k" + key    a record: seq u64 | epoch u64 | expires_ms u64 | the value's JSON text
    b"mapplied"   the last applied entry: seq u64 | epoch u64 | time_ms u64 | synced u8, 0 or 1; absent before the first
    b"mformat"    the format version of all of this: u32

All integers are big-endian. Data keys sort below meta keys, so a walk over data always finds something behind its end.

Source: FORMAT.md, "LevelDB".
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from kvnode.node.api import KeyRange, Record
from kvnode.node.storage.engine import Applied
from kvnode.protocol.types import Epoch, Position

#: The version of the stored keys and values that this program reads and writes.
FORMAT_VERSION = 1

DATA_PREFIX = b"k"
APPLIED_KEY = b"mapplied"
FORMAT_KEY = b"mformat"

_HEADER = Struct(">QQQ")
_APPLIED = Struct(">QQQB")
_FORMAT = Struct(">I")

#: Bytes of a stored record before the value.
HEADER_BYTES = _HEADER.size

#: (seq, epoch, expires_ms) to a stored record's header.
encode_header = _HEADER.pack

#: A stored record to its (seq, epoch, expires_ms); raises `struct.error` when it is too short to be one.
decode_header = _HEADER.unpack_from


def decode_record(stored: bytes, to_epoch: Callable[[int], Epoch]) -> Record:
    """The record in a data key's value.

    Args:
        stored: the value as LevelDB gave it.
        to_epoch: makes an epoch of its integer; may hand out the same object again.

    Raises:
        ValueError: it is too short to be one.
    """
    if len(stored) < HEADER_BYTES:
        raise ValueError(f"a stored record of {len(stored)} bytes has no header")
    seq, epoch, expires_ms = _HEADER.unpack_from(stored)
    return Record(Position(to_epoch(epoch), seq), expires_ms, stored[HEADER_BYTES:])


def encode_applied(applied: Applied) -> bytes:
    """The value of `APPLIED_KEY`; `decode_applied` is its inverse."""
    return _APPLIED.pack(applied.position.seq, applied.position.epoch, applied.time_ms, applied.synced)


def decode_applied(stored: bytes) -> Applied:
    """What the value of `APPLIED_KEY` says.

    Raises:
        ValueError: it is not one.
    """
    if len(stored) != _APPLIED.size or stored[-1] > 1:
        raise ValueError(f"{APPLIED_KEY.decode()} does not hold a position: {stored.hex()}")
    seq, epoch, time_ms, synced = _APPLIED.unpack(stored)
    return Applied(Position(Epoch(epoch), seq), bool(synced), time_ms)


def encode_format(version: int) -> bytes:
    """The value of `FORMAT_KEY`."""
    return _FORMAT.pack(version)


def decode_format(stored: bytes) -> int:
    """The version in the value of `FORMAT_KEY`.

    Raises:
        ValueError: it holds none.
    """
    if len(stored) != _FORMAT.size:
        raise ValueError(f"{FORMAT_KEY.decode()} does not hold a version: {stored.hex()}")
    version: int = _FORMAT.unpack(stored)[0]
    return version


def stored_bounds(wanted: KeyRange) -> tuple[bytes, bytes]:
    """The half-open range [start, stop) of stored keys that `wanted` means; empty when start >= stop."""
    start = DATA_PREFIX + wanted.prefix
    stop = _behind_prefix(start)
    if wanted.first is not None:
        start = max(start, DATA_PREFIX + wanted.first)
    if wanted.last is not None:
        # The smallest byte string above a key is that key and a zero byte.
        stop = min(stop, DATA_PREFIX + wanted.last + b"\x00")
    return start, stop


def _behind_prefix(prefix: bytes) -> bytes:
    """The smallest byte string above all that begin with `prefix`, which has a byte other than 0xff."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1])
