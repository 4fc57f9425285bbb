"""Frames of the peer protocol as lines of JSON, for debugging, and the way back.

Entries, records and values are shown readably. Where the readable form does not hold every byte (a value on several
lines, an unusual encoding, a wrong CRC, damage), a member whose name ends in ``_hex`` has the bytes, too; on the way
back it prevails.

Source: FORMAT.md of the protocol, "Frames as JSON lines".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgpack
import msgspec

from kvnode.cli.entryjson import (
    check_members,
    entry_text,
    key_text,
    op_text,
    parse_entry,
    parse_expires,
    parse_key,
    parse_op,
    stored_members,
)
from kvnode.cli.jsontext import check_json, split_array, split_object, to_json
from kvnode.protocol.entry import EntryEncoder, decode_entry, payload_crc
from kvnode.protocol.errors import KvError
from kvnode.protocol.fields import (
    Blob,
    EpochKind,
    HistoryKind,
    IncomingKind,
    JsonBytes,
    KeyBytes,
    Kind,
    Listing,
    LogRecord,
    Member,
    MemberKind,
    Nullable,
    Octets,
    OpsKind,
    PositionKind,
    RecordsKind,
)
from kvnode.protocol.messages import LAYOUTS, FrameType, Message, SnapshotChunk, WireField
from kvnode.protocol.snapshot import SnapshotRecord, decode_chunk, encode_chunk
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import Entry, Epoch, History, Op, Position, Put, Reign

T = TypeVar("T")

#: Members of a JSON object: names and the texts of their values.
#: What to do about a line that is no frame.
FRAME_LINE_HINT = "protocol/FORMAT.md has all frames; `kvnode frame observe | kvnode frame --decode` prints two of them"

_Members = dict[str, bytes]

_TYPES = {frame.name.lower(): frame for frame in FrameType}

_WRONG_CRC = "the CRC is that of other bytes"


def frame_line(message: Message) -> bytes:
    """``{"type":"...", ...}`` and a line feed; behind the type come the frame's fields in wire order."""
    members = {"type": to_json(message.TYPE.name.lower())}
    if isinstance(message, SnapshotChunk):
        members |= _show_chunk(message)
    else:
        for each in LAYOUTS[message.TYPE].fields:
            members |= _show_field(each, getattr(message, each.name))
    return _object(members) + b"\n"


def parse_frame(text: bytes) -> Message:
    """Read what `frame_line` wrote, or a person.

    Raises:
        ValueError: it is not a frame in that form; the message says why. What JSON can say and the format does not
            allow is left to the encoder.
    """
    text.decode("utf-8")
    members = split_object(text)
    name = _decode(members.pop("type", b'""'), str)
    if name not in _TYPES:
        raise ValueError(f'"type" is not one of {", ".join(_TYPES)}')
    layout = LAYOUTS[_TYPES[name]]
    try:
        if layout.frame is SnapshotChunk:
            return _parse_chunk(members)
        check_members(members, required=(), optional=[each for field in layout.fields for each in _member_names(field)])
        return layout.frame(*[_parse_field(each, members) for each in layout.fields])
    except (ValueError, TypeError, KvError) as error:
        raise ValueError(f"{name}: {error}") from error


# ---- fields --------------------------------------------------------------------------------------------------------


def _member_names(field: WireField) -> list[str]:
    """The members that may stand for a field."""
    match field.kind:
        case OpsKind() | JsonBytes() | KeyBytes() | Nullable(kind=JsonBytes()):
            return [field.name, f"{field.name}_hex"]
        case _:
            return [field.name]


def _show_field(field: WireField, value: Any) -> _Members:
    match field.kind:
        case RecordsKind():
            return {field.name: _array(map(_show_record, value))}
        case OpsKind():
            return _show_ops(field.name, value)
        case JsonBytes():
            return _show_json(field.name, value)
        case Nullable(kind=JsonBytes()) if value is not None:
            return _show_json(field.name, value, or_nil=True)
        case KeyBytes():
            return {name: to_json(text) for name, text in _plain_key(field.name, value).items()}
        case kind:
            return {field.name: to_json(_plain(kind, value))}


def _parse_field(field: WireField, members: Mapping[str, bytes]) -> Any:
    # The bytes, where they may be and are there, come last and prevail.
    name = [each for each in _member_names(field) if each in members][-1:]
    if not name:
        raise ValueError(f'the member "{field.name}" is missing')
    text = members[name[0]]
    is_hex = name[0] != field.name
    try:
        match field.kind:
            case RecordsKind():
                return tuple(map(_parse_record, split_array(text)))
            case OpsKind() as kind:
                if is_hex:
                    return kind.read(msgpack.unpackb(_decode_hex(text), use_list=False))
                return tuple(map(parse_op, split_array(text)))
            case JsonBytes():
                return _decode_hex(text) if is_hex else text
            case Nullable(kind=JsonBytes()):
                if is_hex:
                    return _decode_hex(text)
                return None if text == b"null" else text
            case KeyBytes():
                return _decode_hex(text) if is_hex else _decode(text, str).encode("utf-8")
            case kind:
                return _from_plain(kind, _decode(text, Any))
    except (ValueError, TypeError, KvError) as error:
        raise ValueError(f'"{name[0]}": {error}') from error


def _plain(kind: Kind[Any], value: Any) -> Any:
    """The value as what JSON has: ids and credentials in hex, epochs and positions as they print."""
    match kind:
        case Nullable():
            return None if value is None else _plain(kind.kind, value)
        case Octets() | Blob():
            return value.hex()
        case EpochKind() | PositionKind():
            return str(value)
        case HistoryKind():
            return [{"epoch": str(reign.epoch), "first_seq": reign.first_seq} for reign in value]
        case MemberKind():
            return {"node_id": value.node_id.hex(), "name": value.name, "address": value.address}
        case IncomingKind():
            sync = {"sync_id": value.sync_id.hex(), "first": str(value.first), "latest": str(value.latest)}
            return sync | _plain_key("last_key", value.last_key)
        case Listing():
            return [_plain(kind.item, each) for each in value]
        case _:
            return value


def _from_plain(kind: Kind[Any], plain: Any) -> Any:
    match kind:
        case Nullable():
            return None if plain is None else _from_plain(kind.kind, plain)
        case Listing():
            return tuple([_from_plain(kind.item, each) for each in _of_type(plain, list)])
        case Octets() | Blob():
            return bytes.fromhex(_of_type(plain, str))
        case EpochKind():
            return Epoch.parse(_of_type(plain, str))
        case PositionKind():
            return _parse_position(plain)
        case HistoryKind():
            reigns = [_pick(each, "epoch", "first_seq") for each in _of_type(plain, list)]
            return History(tuple([Reign(Epoch.parse(epoch), _of_type(first, int)) for epoch, first in reigns]))
        case MemberKind():
            node_id, name, address = _pick(plain, "node_id", "name", "address")
            return Member(bytes.fromhex(node_id), name, address)
        case IncomingKind():
            return _parse_incoming(_of_type(plain, dict))
        case _:
            return kind.read(plain)


def _parse_position(plain: Any) -> Position:
    epoch, _, seq = _of_type(plain, str).rpartition("-")
    return Position(Epoch.parse(epoch), int(seq))


def _plain_key(name: str, key: bytes) -> dict[str, str]:
    """A key as text, or in hex where it is none."""
    try:
        return {name: key.decode("utf-8")}
    except UnicodeDecodeError:
        return {f"{name}_hex": key.hex()}


def _parse_incoming(plain: dict[str, Any]) -> Incoming:
    key = "last_key_hex" if "last_key_hex" in plain else "last_key"
    check_members(plain, required=("sync_id", "first", "latest", key), optional=("last_key",))
    last_key = _of_type(plain[key], str)
    return Incoming(
        bytes.fromhex(_of_type(plain["sync_id"], str)),
        _parse_position(plain["first"]),
        _parse_position(plain["latest"]),
        bytes.fromhex(last_key) if key == "last_key_hex" else last_key.encode("utf-8"),
    )


# ---- what has bytes inside -----------------------------------------------------------------------------------------


def _show_record(record: LogRecord) -> bytes:
    """An entry as `entry_text` has it, as far as there is one, and its bytes where that is not all."""
    exact = {"crc": to_json(record.crc), "payload_hex": to_json(record.payload.hex())}
    try:
        entry = decode_entry(record.payload)
        _check_values(entry.ops)
    except (ValueError, KvError) as error:
        return _object({"damaged": to_json(str(error))} | exact)
    text = entry_text(entry)
    if _says_all(lambda: _log_record(parse_entry(text)) == record):
        return text
    damaged = {} if payload_crc(record.payload) == record.crc else {"damaged": to_json(_WRONG_CRC)}
    return text[:-1] + b"," + _object(damaged | exact)[1:]


def _parse_record(text: bytes) -> LogRecord:
    members = split_object(text)
    if "payload_hex" not in members:
        return _log_record(parse_entry(text))
    payload = _decode_hex(members["payload_hex"])
    return LogRecord(_decode(members["crc"], int) if "crc" in members else payload_crc(payload), payload)


def _log_record(entry: Entry) -> LogRecord:
    payload = EntryEncoder().encode(entry)
    return LogRecord(payload_crc(payload), payload)


def _show_ops(name: str, ops: tuple[Op, ...]) -> _Members:
    exact = {f"{name}_hex": to_json(msgpack.packb(ops).hex())}
    try:
        _check_values(ops)
    except ValueError:
        return exact
    texts = [op_text(op) for op in ops]
    members = {name: _array(texts)}
    return members if _says_all(lambda: tuple(map(parse_op, texts)) == ops) else members | exact


def _show_chunk(chunk: SnapshotChunk) -> _Members:
    exact = {"crc": to_json(chunk.crc), "data_hex": to_json(chunk.data.hex())}
    try:
        records = decode_chunk(SnapshotChunk(payload_crc(chunk.data), chunk.data))
        _check_values(records)
    except (ValueError, KvError) as error:
        return {"damaged": to_json(str(error))} | exact
    texts = [_snapshot_record_text(record) for record in records]
    members = {"records": _array(texts)}
    damaged = {} if payload_crc(chunk.data) == chunk.crc else {"damaged": to_json(_WRONG_CRC)}
    if _says_all(lambda: encode_chunk(list(map(_parse_snapshot_record, texts))) == chunk):
        return members
    return members | damaged | exact


def _parse_chunk(members: Mapping[str, bytes]) -> SnapshotChunk:
    check_members(members, required=(), optional=("records", "damaged", "crc", "data_hex"))
    if "data_hex" not in members:
        check_members(members, required=("records",))
        return encode_chunk([_parse_snapshot_record(text) for text in split_array(members["records"])])
    data = _decode_hex(members["data_hex"])
    return SnapshotChunk(_decode(members["crc"], int) if "crc" in members else payload_crc(data), data)


def _snapshot_record_text(record: SnapshotRecord) -> bytes:
    stored = stored_members(record.value, record.expires_ms)
    epoch = str(record.epoch).encode()
    return b'{"key":%b,%b,"seq":%d,"epoch":"%b"}' % (key_text(record.key), stored, record.seq, epoch)


def _parse_snapshot_record(text: bytes) -> SnapshotRecord:
    members = split_object(text)
    check_members(members, required=("key", "value", "seq", "epoch"), optional=("expires",))
    epoch = Epoch.parse(_decode(members["epoch"], str))
    return SnapshotRecord(
        parse_key(members), _decode(members["seq"], int), epoch, parse_expires(members), members["value"]
    )


def _show_json(name: str, value: bytes, *, or_nil: bool = False) -> _Members:
    exact = {f"{name}_hex": to_json(value.hex())}
    try:
        _check_value(value)
    except ValueError:
        return exact
    line = value.replace(b"\n", b" ").replace(b"\r", b" ")
    members = {name: line}
    says_all = check_json(line) == value and not (or_nil and value == b"null")
    return members if says_all else members | exact


def _says_all(is_same: Callable[[], bool]) -> bool:
    """Whether a readable form, read back, is what it was made from."""
    try:
        return is_same()
    except (ValueError, KvError):
        return False


def _check_values(written: Iterable[Op | SnapshotRecord]) -> None:
    """Raise ValueError unless all values are JSON, and so can stand in a line of JSON."""
    for each in written:
        if isinstance(each, Put | SnapshotRecord):
            _check_value(each.value)


def _check_value(value: bytes) -> None:
    try:
        value.decode("utf-8")
        check_json(value)
    except ValueError as error:
        raise ValueError(f"a value is not JSON: {error}") from error


# ---- JSON ----------------------------------------------------------------------------------------------------------


def _object(members: _Members) -> bytes:
    return b"{%b}" % b",".join([b"%b:%b" % (to_json(name), text) for name, text in members.items()])


def _array(texts: Any) -> bytes:
    return b"[%b]" % b",".join(texts)


def _decode(text: bytes, wanted: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=wanted)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def _decode_hex(text: bytes) -> bytes:
    return bytes.fromhex(_decode(text, str))


def _of_type(plain: Any, wanted: type[T]) -> T:
    if not isinstance(plain, wanted):
        raise ValueError(f"expected {wanted.__name__}, got {type(plain).__name__}")
    return plain


def _pick(plain: Any, *names: str) -> list[Any]:
    """The values of an object's members, which are exactly these."""
    check_members(_of_type(plain, dict), required=names)
    return [plain[name] for name in names]
