"""Checks of the log records that a replica was sent, before any of them is stored.

A record passes if its CRC is right, its payload is an entry that this version knows, its seq follows the one before,
and its epoch is the one that the primary's history names for that seq. One that does not spoils its whole frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack

from kvnode.protocol.entry import decode_entry, payload_crc
from kvnode.protocol.errors import EntryDamaged, RemoteProtocolError
from kvnode.protocol.fields import LogRecord
from kvnode.protocol.types import OP_DELETE, OP_PUT, Entry, History, Seq


class UnsupportedOp(RemoteProtocolError):
    """An intact entry holds a kind of operation that this version does not know."""

    code = "unsupported_op"


def check_records(records: Sequence[LogRecord], after_seq: Seq, history: History) -> tuple[Entry, ...]:
    """The entries of records that follow `after_seq` in a log with this history.

    Raises:
        EntryDamaged: a CRC is wrong, or a payload is not an entry.
        UnsupportedOp: an entry cannot be applied by this version.
        RemoteProtocolError: a seq does not follow the one before, or an epoch is not the history's.
    """
    entries = []
    seq, epoch = after_seq, history.epoch_of(after_seq + 1)
    last_of_epoch = _last_of_reign(history, after_seq + 1)
    for crc, payload in records:
        seq += 1
        if payload_crc(payload) != crc:
            raise EntryDamaged(f"the CRC of the entry after {seq - 1} does not match")
        try:
            entry = decode_entry(payload)
        except EntryDamaged as error:
            kind = _unknown_kind(payload)
            if kind is None:
                raise
            raise UnsupportedOp(
                f"the entry after {seq - 1} has an operation of kind {kind}",
                hint="update this node to the version of its primary",
            ) from error
        if last_of_epoch is not None and seq > last_of_epoch:
            epoch, last_of_epoch = history.epoch_of(seq), _last_of_reign(history, seq)
        if entry.seq != seq:
            raise RemoteProtocolError(f"entry {entry.seq} came after {seq - 1}")
        if entry.epoch != epoch or not epoch:
            raise RemoteProtocolError(f"entry {seq} has epoch {entry.epoch}, the history names {epoch}")
        entries.append(entry)
    return tuple(entries)


def _last_of_reign(history: History, seq: Seq) -> Seq | None:
    """The last seq of the reign that `seq` falls in; None = the reign goes on."""
    return next((reign.first_seq - 1 for reign in history if reign.first_seq > seq), None)


def _unknown_kind(payload: bytes) -> int | None:
    """The first unknown kind of operation in a payload of an otherwise known shape; None = it has none."""
    try:
        fields: Any = msgpack.unpackb(payload, use_list=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        return None
    if type(fields) is not tuple or len(fields) != 4 or type(fields[3]) is not tuple:
        return None
    for op in fields[3]:
        if type(op) is not tuple or not op or type(op[0]) is not int:
            return None
        if op[0] not in (OP_PUT, OP_DELETE):
            return op[0]
    return None
