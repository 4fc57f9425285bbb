"""Entries as JSON: the form in which `wal dump` and `frame` show them, and the way back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta

import msgspec

from kvnode.cli.jsontext import split_array, split_object
from kvnode.protocol.entry import EntryEncoder, decode_entry
from kvnode.protocol.errors import EntryDamaged
from kvnode.protocol.types import Entry, Epoch, Op, Put, delete, put

_START = datetime(1970, 1, 1, tzinfo=UTC)

#: The last millisecond that a date of four-digit years can name.
_LAST_DATE_MS = 253_402_300_799_999


def entry_line(entry: Entry) -> bytes:
    """`entry_text` and a line feed."""
    return entry_text(entry) + b"\n"


def entry_text(entry: Entry) -> bytes:
    """``{"seq","epoch","time","ops":[...]}`` on one line.

    An operation is ``{"op":"put","key","value"}`` or ``{"op":"delete","key"}``; a put that expires has ``"expires"`` as
    well. Times are ISO 8601, UTC, with milliseconds. A value is the JSON text as it was stored, but for line feeds and
    carriage returns: they are only allowed between its tokens and become spaces, so that the line stays one. A key that
    is not UTF-8, which no node accepts, is shown with replacement characters.
    """
    ops = b",".join(map(op_text, entry.ops))
    epoch = str(entry.epoch).encode()
    return b'{"seq":%d,"epoch":"%b","time":%b,"ops":[%b]}' % (entry.seq, epoch, _time_text(entry.time_ms), ops)


def op_text(op: Op) -> bytes:
    """An operation as it stands in `entry_text`."""
    if not isinstance(op, Put):
        return b'{"op":"delete","key":%b}' % key_text(op.key)
    return b'{"op":"put","key":%b,%b}' % (key_text(op.key), stored_members(op.value, op.expires_ms))


def key_text(key: bytes) -> bytes:
    """A key as a JSON string, with replacement characters for what is not UTF-8."""
    return msgspec.json.encode(key.decode("utf-8", "replace"))


def stored_members(value: bytes, expires_ms: int) -> bytes:
    """``"value":...`` and, for what expires, ``"expires":...``."""
    text = value.replace(b"\n", b" ").replace(b"\r", b" ")
    return b'"value":%b' % text + (b',"expires":%b' % _time_text(expires_ms) if expires_ms else b"")


def parse_entry(text: bytes) -> Entry:
    """Read what `entry_text` wrote; times may be numbers of milliseconds, too.

    Raises:
        ValueError: it is not an entry; the message says why.
    """
    members = split_object(text)
    check_members(members, required=("seq", "epoch", "time", "ops"))
    entry = Entry(
        msgspec.json.decode(members["seq"], type=int),
        Epoch.parse(msgspec.json.decode(members["epoch"], type=str)),
        _parse_time(members["time"]),
        tuple(map(parse_op, split_array(members["ops"]))),
    )
    try:
        # The format's own rules: ranges, at least one operation, no empty key.
        return decode_entry(EntryEncoder().encode(entry))
    except (EntryDamaged, OverflowError) as error:
        raise ValueError(str(error)) from error


def parse_op(text: bytes) -> Op:
    """Read what `op_text` wrote.

    Raises:
        ValueError: it is not an operation; the message says why.
    """
    members = split_object(text)
    match msgspec.json.decode(members.get("op", b'""')):
        case "put":
            check_members(members, required=("op", "key", "value"), optional=("expires",))
            return put(parse_key(members), members["value"], parse_expires(members))
        case "delete":
            check_members(members, required=("op", "key"))
            return delete(parse_key(members))
        case _:
            raise ValueError('"op" is neither "put" nor "delete"')


def parse_key(members: Mapping[str, bytes]) -> bytes:
    """The member "key" in UTF-8."""
    return msgspec.json.decode(members["key"], type=str).encode("utf-8")


def parse_expires(members: Mapping[str, bytes]) -> int:
    """The member "expires" in milliseconds, 0 where there is none."""
    return _parse_time(members["expires"]) if "expires" in members else 0


def check_members(members: Mapping[str, bytes], required: Collection[str], optional: Collection[str] = ()) -> None:
    """Raise ValueError unless the required names are among the members, and none but these and the optional ones."""
    for name in required:
        if name not in members:
            raise ValueError(f'the member "{name}" is missing')
    for name in members:
        if name not in required and name not in optional:
            raise ValueError(f"there is no member {name!a}; there are {', '.join([*required, *optional])}")


def _time_text(ms: int) -> bytes:
    """The time as a JSON string; beyond the year 9999 as the number of milliseconds."""
    if ms > _LAST_DATE_MS:
        return b"%d" % ms
    seconds, rest_ms = divmod(ms, 1000)
    return b'"%b.%03dZ"' % (datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode(), rest_ms)


def _parse_time(text: bytes) -> int:
    time = msgspec.json.decode(text, type=int | str)
    if isinstance(time, int):
        return time
    date = datetime.fromisoformat(time)
    if date.tzinfo is None:
        raise ValueError(f"the time {time!a} does not say its zone; write Z for UTC")
    return (date - _START) // timedelta(milliseconds=1)
