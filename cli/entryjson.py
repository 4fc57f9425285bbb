"""An entry as a line of JSON, the form in which `wal dump` shows it."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from kvnode.protocol.types import Entry, Op, Put

#: The last millisecond that a date of four-digit years can name.
_LAST_DATE_MS = 253_402_300_799_999


def entry_line(entry: Entry) -> bytes:
    """``{"seq","epoch","time","ops":[...]}`` and a line feed.

    An operation is ``{"op":"put","key","value"}`` or ``{"op":"delete","key"}``; a put that expires has ``"expires"`` as
    well. Times are ISO 8601, UTC, with milliseconds. A value is the JSON text as it was stored, but for line feeds and
    carriage returns: they are only allowed between its tokens and become spaces, so that the line stays one. A key that
    is not UTF-8, which no node accepts, is shown with replacement characters.
    """
    return b'{"seq":%d,"epoch":"%b","time":%b,"ops":[%b]}\n' % (
        entry.seq,
        str(entry.epoch).encode(),
        _time(entry.time_ms),
        b",".join(map(_op, entry.ops)),
    )


def _op(op: Op) -> bytes:
    key = msgspec.json.encode(op.key.decode("utf-8", "replace"))
    if not isinstance(op, Put):
        return b'{"op":"delete","key":%b}' % key
    value = op.value.replace(b"\n", b" ").replace(b"\r", b" ")
    expires = b',"expires":%b' % _time(op.expires_ms) if op.expires_ms else b""
    return b'{"op":"put","key":%b,"value":%b%b}' % (key, value, expires)


def _time(ms: int) -> bytes:
    """The time as a JSON string; beyond the year 9999 as the number of milliseconds."""
    if ms > _LAST_DATE_MS:
        return b"%d" % ms
    seconds, rest_ms = divmod(ms, 1000)
    return b'"%b.%03dZ"' % (datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode(), rest_ms)
