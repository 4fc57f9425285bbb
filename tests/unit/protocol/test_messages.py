"""The frames' types, field by field: numbers and order that must never change, ranges, and how they look in a log."""

from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

from kvnode.protocol.codec import from_wire, to_wire
from kvnode.protocol.errors import LocalProtocolError, RemoteProtocolError
from kvnode.protocol.fields import LogRecord, Member
from kvnode.protocol.messages import (
    FEATURE_READ,
    LAYOUTS,
    MAX_VERSION,
    MIN_VERSION,
    NODE_FEATURES,
    Entries,
    Error,
    FrameType,
    HistoryFrame,
    Message,
    Purpose,
    Role,
    SnapshotBegin,
    Subscribe,
    Write,
    WriteResult,
)
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import Epoch, History, Position, Reign, delete, put
from support.frames import EPOCH, HISTORY, ID, OTHER_ID, SAMPLES, plain

#: The format as it was first published. A line may get a longer tuple; nothing else may change.
PUBLISHED = {
    1: (
        "min_version",
        "max_version",
        "cluster_id",
        "node_id",
        "boot_id",
        "name",
        "purpose",
        "features",
        "auth",
        "address",
    ),
    2: ("version", "cluster_id", "node_id", "name", "role", "history", "last_seq", "features"),
    3: ("code", "message"),
    4: ("last_seq", "time_ms"),
    5: ("position", "incoming"),
    6: ("history", "members"),
    7: ("records",),
    8: ("received", "durable", "applied"),
    9: ("sync_id", "position", "first_position", "resumed"),
    10: ("crc", "data"),
    11: ("position", "keys"),
    12: ("request_id", "ops", "acks", "ack_timeout_ms"),
    13: ("request_id", "epoch", "seq", "deleted", "error_code", "error_message", "error_fields"),
    14: ("request_id",),
    15: ("request_id", "status"),
    16: ("request_id", "key", "min_epoch", "min_seq", "wait_ms"),
    17: (
        "request_id",
        "epoch",
        "seq",
        "value",
        "applied_epoch",
        "applied_seq",
        "error_code",
        "error_message",
        "error_fields",
    ),
}

U32 = 2**32
U64 = 2**64
E = int(EPOCH)

ADDRESS = "HOST:PORT of up to 300 characters, or no text"

#: (type, field, what must not be read in its place, what the error says of it)
REFUSED: list[tuple[FrameType, str, Any, str]] = [
    (FrameType.HELLO, "min_version", 0, f"expected a whole number from 1 to {U32 - 1}, got 0"),
    (FrameType.HELLO, "min_version", True, f"expected a whole number from 1 to {U32 - 1}, got True"),
    (FrameType.HELLO, "min_version", 2, "max_version: 1 is below min_version 2"),
    (FrameType.HELLO, "max_version", "1", f"expected a whole number from 1 to {U32 - 1}, got text of 1 characters"),
    (FrameType.HELLO, "cluster_id", bytes(15), "expected 16 or 0 bytes, got 15 bytes"),
    (FrameType.HELLO, "node_id", b"", "expected 16 bytes, got 0 bytes"),
    (FrameType.HELLO, "node_id", "0123456789abcdef", "expected 16 bytes, got text of 16 characters"),
    (FrameType.HELLO, "boot_id", bytes(17), "expected 16 bytes, got 17 bytes"),
    (FrameType.HELLO, "name", "", "a replica must have one"),
    (FrameType.HELLO, "name", "-", "expected a name or no text, got text of 1 characters"),
    (FrameType.HELLO, "name", "a\n", "expected a name or no text, got text of 2 characters"),
    (FrameType.HELLO, "name", "n" * 64, "expected a name or no text, got text of 64 characters"),
    (FrameType.HELLO, "name", b"web2", "expected a name or no text, got 4 bytes"),
    (FrameType.HELLO, "purpose", "admin", "expected one of replica, client, observe, probe, got text of 5 characters"),
    (FrameType.HELLO, "purpose", 1, "expected one of replica, client, observe, probe, got 1"),
    (FrameType.HELLO, "purpose", ["replica"], "got an array of 1"),
    (FrameType.HELLO, "features", None, "expected an array, got None"),
    (FrameType.HELLO, "features", ["a b"], "expected 1 to 64 printable ASCII characters without blanks"),
    (FrameType.HELLO, "features", [""], "expected 1 to 64 printable ASCII characters without blanks"),
    (FrameType.HELLO, "features", [b"a"], "expected 1 to 64 printable ASCII characters without blanks, got 1 bytes"),
    (FrameType.HELLO, "auth", "secret", "expected at least 0 bytes, got text of 6 characters"),
    (FrameType.HELLO, "address", None, f"expected {ADDRESS}, got None"),
    (FrameType.HELLO, "address", b"web2:7001", f"expected {ADDRESS}, got 9 bytes"),
    (FrameType.HELLO, "address", "h" * 296 + ":7001", f"expected {ADDRESS}, got text of 301 characters"),
    *[
        (FrameType.HELLO, "address", bad, f"expected {ADDRESS}, got text of {len(bad)} characters")
        for bad in (
            *("web2", "web2:", ":7001", "web2:x", "web2:0", "web2:07001", "web2:65536", "web2:99999", "web2:100000"),
            *("web2:-1", "web2:+1", "web2:\u0661", "web2:7001\n", "web 2:7001", "w\u00e4b:7001", "w\x1bb:7001"),
            *("::1:7001", "[::1]", "[::1]7001", "[]:7001", "[[::1]]:7001", "[:: 1]:7001", "web[2]:7001", "a:1,b:1"),
        )
    ],
    (FrameType.WELCOME, "cluster_id", b"", "expected 16 bytes, got 0 bytes"),
    (FrameType.WELCOME, "name", "", "expected a name: 1 to 63 letters, digits, '.', '_' or '-', got text of 0"),
    (FrameType.WELCOME, "role", "leader", "expected one of primary, replica, got text of 6 characters"),
    (FrameType.WELCOME, "history", 1, "expected a history, [[epoch, first_seq], ...], got 1"),
    (FrameType.WELCOME, "history", [[E]], "expected a reign, [epoch, first_seq], got an array of 1"),
    (FrameType.WELCOME, "history", [[E, 1, 1]], "expected a reign, [epoch, first_seq], got an array of 3"),
    (FrameType.WELCOME, "history", [[E, -1]], f"expected a whole number from 0 to {U64 - 1}, got -1"),
    (FrameType.WELCOME, "history", [[E, 0]], "history is not rising"),
    (FrameType.WELCOME, "history", [[7, 1]], "history is not rising"),
    (FrameType.WELCOME, "history", [[E, 1], [E, 2]], "history is not rising"),
    (FrameType.WELCOME, "history", [[E, 5], [E + U32, 5]], "history is not rising"),
    (FrameType.WELCOME, "last_seq", -1, f"expected a whole number from 0 to {U64 - 1}, got -1"),
    (FrameType.WELCOME, "last_seq", 1.0, f"expected a whole number from 0 to {U64 - 1}, got 1.0"),
    (FrameType.ERROR, "code", "", "expected 1 to 64 printable ASCII characters"),
    (FrameType.ERROR, "code", "c" * 65, "expected 1 to 64 printable ASCII characters"),
    (FrameType.ERROR, "message", b"m", "expected text, got 1 bytes"),
    (FrameType.PING, "time_ms", None, f"expected a whole number from 0 to {U64 - 1}, got None"),
    (FrameType.SUBSCRIBE, "position", 1, "expected a position, [epoch, seq], got 1"),
    (FrameType.SUBSCRIBE, "position", [E], "expected a position, [epoch, seq], got an array of 1"),
    (FrameType.SUBSCRIBE, "position", [E, None], f"expected a whole number from 0 to {U64 - 1}, got None"),
    (FrameType.SUBSCRIBE, "position", [1.5, 1], f"expected a whole number from 0 to {U64 - 1}, got 1.5"),
    (FrameType.SUBSCRIBE, "incoming", b"", "expected a full sync, [sync_id, first, latest, last_key], got 0 bytes"),
    (FrameType.SUBSCRIBE, "incoming", [ID, [E, 1], [E, 2]], "[sync_id, first, latest, last_key], got an array of 3"),
    (FrameType.SUBSCRIBE, "incoming", [ID, [E, 1], [E, 2], b"", 0], "last_key], got an array of 5"),
    (FrameType.SUBSCRIBE, "incoming", [b"", [E, 1], [E, 2], b""], "expected 16 bytes, got 0 bytes"),
    (FrameType.SUBSCRIBE, "incoming", [ID, 1, [E, 2], b""], "expected a position, [epoch, seq], got 1"),
    (FrameType.SUBSCRIBE, "incoming", [ID, [E, 1], [E, -1], b""], f"expected a whole number from 0 to {U64 - 1}"),
    (FrameType.SUBSCRIBE, "incoming", [ID, [E, 1], [E, 2], "k"], "expected at least 0 bytes, got text of 1 characters"),
    (FrameType.SUBSCRIBE, "incoming", [ID, [E, 1], [E, 2], None], "expected at least 0 bytes, got None"),
    (FrameType.SUBSCRIBE, "incoming", [ID, [E, 3], [E, 2], b""], "first snapshot 3.9f2c1a7b-3 is after its latest"),
    (FrameType.HISTORY, "members", [[ID]], "expected a member, [node_id, name, address], got an array of 1"),
    (FrameType.HISTORY, "members", [[ID, "a"]], "expected a member, [node_id, name, address], got an array of 2"),
    (
        FrameType.HISTORY,
        "members",
        [[ID, "a", "", 0]],
        "expected a member, [node_id, name, address], got an array of 4",
    ),
    (FrameType.HISTORY, "members", [[ID, "a", ""], [ID, "b", ""]], "a node id or a name is there twice"),
    (FrameType.HISTORY, "members", [[ID, "a", ""], [OTHER_ID, "a", "a:1"]], "a node id or a name is there twice"),
    (FrameType.HISTORY, "members", [["a", ID, ""]], "expected 16 bytes, got text of 1 characters"),
    (FrameType.HISTORY, "members", [[ID, "", ""]], "expected a name: 1 to 63 letters, digits, '.', '_' or '-', got"),
    (FrameType.HISTORY, "members", [[ID, "a", None]], f"expected {ADDRESS}, got None"),
    (FrameType.HISTORY, "members", [[ID, "a", "a"]], f"expected {ADDRESS}, got text of 1 characters"),
    (FrameType.ENTRIES, "records", [], "expected at least one log record, got an array of 0"),
    (FrameType.ENTRIES, "records", b"", "expected at least one log record, got 0 bytes"),
    (FrameType.ENTRIES, "records", [b"p"], "expected a log record, [crc, payload], got 1 bytes"),
    (FrameType.ENTRIES, "records", [[0, b"p"], [0]], "expected a log record, [crc, payload], got an array of 1"),
    (FrameType.ENTRIES, "records", [[U32, b"p"]], f"expected a crc from 0 to {U32 - 1}, got {U32}"),
    (FrameType.ENTRIES, "records", [[False, b"p"]], f"expected a crc from 0 to {U32 - 1}, got False"),
    (FrameType.ENTRIES, "records", [[0, b""]], "expected a payload of at least 1 byte, got 0 bytes"),
    (FrameType.ENTRIES, "records", [[0, "p"]], "expected a payload of at least 1 byte, got text of 1 characters"),
    (FrameType.ACK, "received", U32 * -1, f"expected a whole number from 0 to {U64 - 1}, got -{U32}"),
    (FrameType.ACK, "durable", [], f"expected a whole number from 0 to {U64 - 1}, got an array of 0"),
    (FrameType.ACK, "applied", "", f"expected a whole number from 0 to {U64 - 1}, got text of 0 characters"),
    (FrameType.SNAPSHOT_BEGIN, "sync_id", None, "expected 16 bytes, got None"),
    (FrameType.SNAPSHOT_BEGIN, "first_position", [E, 42], "3.9f2c1a7b-42 is after position 3.9f2c1a7b-41"),
    (FrameType.SNAPSHOT_BEGIN, "resumed", 1, "expected true or false, got 1"),
    (FrameType.SNAPSHOT_CHUNK, "crc", U32, f"expected a whole number from 0 to {U32 - 1}, got {U32}"),
    (FrameType.SNAPSHOT_CHUNK, "data", b"", "expected at least 1 bytes, got 0 bytes"),
    (FrameType.SNAPSHOT_END, "keys", -1, f"expected a whole number from 0 to {U64 - 1}, got -1"),
    (FrameType.WRITE, "request_id", "7", f"expected a whole number from 0 to {U64 - 1}, got text of 1 characters"),
    (FrameType.WRITE, "ops", [], "expected at least one operation, got an array of 0"),
    (FrameType.WRITE, "ops", [[3, b"k"]], "entry has an operation of an unknown kind or shape"),
    (FrameType.WRITE, "ops", [[2, b""]], "entry has an operation of an unknown kind or shape"),
    (FrameType.WRITE, "ops", [7], "entry has an operation of an unknown kind or shape"),
    (FrameType.WRITE, "acks", -1, f"expected a whole number from 0 to {U32 - 1}, got -1"),
    (FrameType.WRITE, "acks", "majority", f"expected a whole number from 0 to {U32 - 1}, got text of 8 characters"),
    (FrameType.WRITE, "ack_timeout_ms", None, f"expected a whole number from 0 to {U32 - 1}, got None"),
    (FrameType.WRITE_RESULT, "error_code", "x", "it is there exactly when error_code is"),
    (FrameType.WRITE_RESULT, "error_message", "", "it is there exactly when error_code is"),
    (FrameType.WRITE_RESULT, "error_fields", b"{}", "it is there without error_code"),
    (FrameType.WRITE_RESULT, "error_fields", b"", "expected at least 1 bytes, got 0 bytes"),
    (FrameType.WRITE_RESULT, "error_fields", "{}", "expected at least 1 bytes, got text of 2 characters"),
    (FrameType.WRITE_RESULT, "deleted", True, f"expected a whole number from 0 to {U64 - 1}, got True"),
    (FrameType.STATUS, "request_id", None, f"expected a whole number from 0 to {U64 - 1}, got None"),
    (FrameType.STATUS_RESULT, "status", "{}", "expected at least 1 bytes, got text of 2 characters"),
    (FrameType.STATUS_RESULT, "status", b"", "expected at least 1 bytes, got 0 bytes"),
    (FrameType.READ, "request_id", -1, f"expected a whole number from 0 to {U64 - 1}, got -1"),
    (FrameType.READ, "key", b"", "expected at least 1 bytes, got 0 bytes"),
    (FrameType.READ, "key", "greeting", "expected at least 1 bytes, got text of 8 characters"),
    (FrameType.READ, "min_epoch", None, f"expected a whole number from 0 to {U64 - 1}, got None"),
    (FrameType.READ, "min_epoch", True, f"expected a whole number from 0 to {U64 - 1}, got True"),
    (FrameType.READ, "min_seq", U64, f"expected a whole number from 0 to {U64 - 1}, got {U64}"),
    (FrameType.READ, "wait_ms", U32, f"expected a whole number from 0 to {U32 - 1}, got {U32}"),
    (FrameType.READ, "wait_ms", 0.5, f"expected a whole number from 0 to {U32 - 1}, got 0.5"),
    (FrameType.READ_RESULT, "value", b"", "expected at least 1 bytes, got 0 bytes"),
    (FrameType.READ_RESULT, "value", "x", "expected at least 1 bytes, got text of 1 characters"),
    (FrameType.READ_RESULT, "value", None, "it is 0 exactly when there is no value"),
    (FrameType.READ_RESULT, "seq", 0, "it is 0 exactly when there is no value"),
    (FrameType.READ_RESULT, "seq", [1], f"expected a whole number from 0 to {U64 - 1}, got an array of 1"),
    (FrameType.READ_RESULT, "error_code", "internal", "it is there exactly when error_code is"),
    (FrameType.READ_RESULT, "error_fields", b"{}", "it is there without error_code"),
]

#: Of an error that tells of two fields, the one that it names.
BLAMED = {
    "a replica must": "name",
    "is below": "max_version",
    "exactly when error_code": "error_message",
    "there is no value": "seq",
}


def as_unpacked(value: Any) -> Any:
    return tuple(map(as_unpacked, value)) if isinstance(value, list) else value


def unpacked(message: Message) -> tuple[Any, ...]:
    """What msgpack makes of the frame's bytes."""
    wire: tuple[Any, ...] = as_unpacked(plain(message))
    return wire


def with_field(frame: FrameType, name: str, value: Any) -> tuple[Any, ...]:
    wire = list(unpacked(SAMPLES[frame]))
    wire[1 + PUBLISHED[frame].index(name)] = as_unpacked(value)
    return tuple(wire)


# ---- what must never change --------------------------------------------------------------------------------------


def test_type_numbers_and_the_order_of_fields_are_as_published() -> None:
    assert {number: tuple(each.name for each in layout.fields) for number, layout in LAYOUTS.items()} == PUBLISHED
    assert {each.value: each.name for each in FrameType} == {
        1: "HELLO",
        2: "WELCOME",
        3: "ERROR",
        4: "PING",
        5: "SUBSCRIBE",
        6: "HISTORY",
        7: "ENTRIES",
        8: "ACK",
        9: "SNAPSHOT_BEGIN",
        10: "SNAPSHOT_CHUNK",
        11: "SNAPSHOT_END",
        12: "WRITE",
        13: "WRITE_RESULT",
        14: "STATUS",
        15: "STATUS_RESULT",
        16: "READ",
        17: "READ_RESULT",
    }
    assert {each.value for each in Purpose} == {"replica", "client", "observe", "probe"}
    assert {each.value for each in Role} == {"primary", "replica"}
    assert (MIN_VERSION, MAX_VERSION) == (1, 1)
    assert (FEATURE_READ, NODE_FEATURES) == ("read", ("read",))


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=lambda sample: sample.TYPE.name)
def test_a_frame_is_its_number_and_its_fields(sample: Message) -> None:
    assert as_unpacked(list(to_wire(sample))) == unpacked(sample)
    read = from_wire(unpacked(sample))
    assert read == sample
    assert type(read) is type(sample)
    for each in fields(sample):
        assert type(getattr(read, each.name)) is type(getattr(sample, each.name)), each.name


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=lambda sample: sample.TYPE.name)
def test_frames_are_values(sample: Message) -> None:
    assert not hasattr(sample, "__dict__")
    assert hash(sample) == hash(replace(sample))
    with pytest.raises(FrozenInstanceError):
        setattr(sample, fields(sample)[0].name, None)


def test_what_was_read_has_the_types_that_callers_rely_on() -> None:
    subscribe = from_wire((5, (E, 41), (ID, (E, 1), (E, 2), b"k")))
    assert isinstance(subscribe, Subscribe)
    assert isinstance(subscribe.position, Position)
    assert subscribe.position.epoch.term == 3
    assert subscribe.incoming == Incoming(ID, Position(EPOCH, 1), Position(EPOCH, 2), b"k")
    assert subscribe.incoming.latest.epoch.term == 3
    history = from_wire((6, ((E, 1),), ((ID, "web1", "web1:7001"),)))
    assert isinstance(history, HistoryFrame)
    assert history.history.current == EPOCH
    assert history.members == (Member(ID, "web1", "web1:7001"),)
    assert isinstance(history.members[0], Member)
    received = from_wire((7, ((1, b"p"),)))
    assert isinstance(received, Entries)
    assert received.records[0].payload == b"p"
    write = from_wire((12, 1, ((1, b"k", 0, b"1"), (2, b"k")), None, 0))
    assert isinstance(write, Write)
    assert write.ops == (put(b"k", b"1"), delete(b"k"))
    assert write.ops[0].key == b"k"


ADDRESSES = (
    *("web2:1", "web2.lan:65535", "0.0.0.0:7001", "[::]:7001", "[fe80::1%eth0]:7001", "h:9999", "h:59999", "h:65499"),
    "h" * 295 + ":7001",
    "[" + ":" * 293 + "]:7001",
)


@pytest.mark.parametrize(
    "wire",
    [
        (1, 1, U32 - 1, b"", ID, ID, "", "observe", (), b"", ""),
        *[(1, 1, 1, ID, ID, ID, "a", "replica", (), b"", address) for address in ADDRESSES],
        (2, 1, ID, ID, "n" * 63, "replica", (), 0, ()),
        (3, "!~", ""),
        (4, 0, U64 - 1),
        (5, (0, 0), None),
        (5, (0, U64 - 1), None),
        (5, (0, 0), (ID, (0, 0), (0, 0), b"")),
        (5, (E, 1), (ID, (E, U64 - 1), (0, U64 - 1), b"k" * 5000)),
        (6, (), ()),
        (6, (), ((ID, "a", "h:1"), (OTHER_ID, "b", "h:1"))),
        (6, (), ((ID, "a", ""), (OTHER_ID, "b", ""))),
        (7, ((U32 - 1, b"p"),)),
        (9, ID, (E, 1), (E, 1), False),
        (12, 0, ((2, b"k"),), 0, U32 - 1),
        (12, 0, ((1, b"k", 0, b""),), None, 0),
        (13, 1, 0, 0, 0, "overloaded", "", None),
        (13, 1, 0, 0, 0, "too_large", "", b"{}"),
        (13, 1, E, 2, 1, None, None, None),
        (16, 0, b"\x00", 0, 0, 0),
        (16, U64 - 1, b"k" * 5000, U64 - 1, U64 - 1, U32 - 1),
        (17, 0, 0, 0, None, 0, 0, None, None, None),
        (17, 1, E, 1, b"1", E, U64 - 1, None, None, None),
        (17, 1, 0, 0, None, 0, 0, "syncing", "", b"{}"),
    ],
    ids=lambda wire: str(wire)[:60],
)
def test_the_edges_of_the_ranges_are_inside(wire: tuple[Any, ...]) -> None:
    assert to_wire(from_wire(wire)) == wire


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frame", "name", "value", "text"), REFUSED)
def test_a_bad_field_is_refused_by_name(frame: FrameType, name: str, value: Any, text: str) -> None:
    blamed = next((field for part, field in BLAMED.items() if part in text), name)
    with pytest.raises(RemoteProtocolError) as caught:
        from_wire(with_field(frame, name, value))
    assert caught.value.message.startswith(f"{frame.name}.{blamed}: ")
    assert text in caught.value.message


def test_every_field_is_among_those_refused() -> None:
    tried = {(frame, name) for frame, name, _, _ in REFUSED}
    shares_its_kind = {
        (FrameType.WELCOME, "version"),
        (FrameType.WELCOME, "node_id"),
        (FrameType.WELCOME, "features"),
        (FrameType.PING, "last_seq"),
        (FrameType.HISTORY, "history"),
        (FrameType.SNAPSHOT_BEGIN, "position"),
        (FrameType.SNAPSHOT_END, "position"),
        (FrameType.WRITE_RESULT, "request_id"),
        (FrameType.WRITE_RESULT, "epoch"),
        (FrameType.WRITE_RESULT, "seq"),
        (FrameType.STATUS_RESULT, "request_id"),
        (FrameType.READ_RESULT, "request_id"),
        (FrameType.READ_RESULT, "epoch"),
        (FrameType.READ_RESULT, "applied_epoch"),
        (FrameType.READ_RESULT, "applied_seq"),
        (FrameType.READ_RESULT, "error_message"),
    }
    assert tried | shares_its_kind == {(FrameType(n), name) for n, names in PUBLISHED.items() for name in names}


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=lambda sample: sample.TYPE.name)
def test_a_missing_field_is_refused_and_a_trailing_one_ignored(sample: Message) -> None:
    wire = unpacked(sample)
    for kept in range(1, len(wire)):
        with pytest.raises(RemoteProtocolError) as caught:
            from_wire(wire[:kept])
        assert caught.value.message == f"{sample.TYPE.name}.{PUBLISHED[sample.TYPE][kept - 1]}: missing"
    assert from_wire((*wire, "new", (1, 2))) == sample


@pytest.mark.parametrize("wire", [(), None, 1, "x", b"x", [1], {}], ids=repr)
def test_what_is_no_frame_is_refused(wire: Any) -> None:
    with pytest.raises(RemoteProtocolError, match="expected an array that begins with a type number"):
        from_wire(wire)


@pytest.mark.parametrize("number", [0, 18, -1, 2**64 - 1, True, 1.0, "1", b"\x01", None, (1,)], ids=repr)
def test_an_unknown_type_is_refused(number: Any) -> None:
    with pytest.raises(RemoteProtocolError, match="frame of unknown type: expected 1 to 17, got "):
        from_wire((number, 1, 2))


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (Subscribe(Position(EPOCH, -1), None), "SUBSCRIBE.position: expected a whole number from 0 to"),
        (replace(SAMPLES[FrameType.SUBSCRIBE], incoming=(ID, 1, 1, b"")), "SUBSCRIBE.incoming: expected a full sync, "),
        (
            replace(SAMPLES[FrameType.SUBSCRIBE], incoming=Incoming(b"", Position(EPOCH, 1), Position(EPOCH, 1))),
            "SUBSCRIBE.incoming: expected 16 bytes",
        ),
        (Error("not ok", ""), "ERROR.code: expected 1 to 64 printable ASCII characters without blanks"),
        (Entries(()), "ENTRIES.records: expected at least one log record, got an array of 0"),
        (Entries((LogRecord(0, b""),)), "ENTRIES.records: expected a payload of at least 1 byte"),
        (HistoryFrame(HISTORY, (Member(ID, "a"), Member(ID, "b"))), "HISTORY.members: a node id or a name is there"),
        (HistoryFrame(HISTORY, (Member(ID, "a", "a:0"),)), f"HISTORY.members: expected {ADDRESS}"),
        (replace(SAMPLES[FrameType.HELLO], address="web2"), f"HELLO.address: expected {ADDRESS}"),
        (SnapshotBegin(ID, Position(EPOCH, 1), Position(EPOCH, 2), resumed=False), "SNAPSHOT_BEGIN.first_position: "),
        (Write(1, (), None, 0), "WRITE.ops: expected at least one operation"),
        (replace(SAMPLES[FrameType.HELLO], name=""), "HELLO.name: a replica must have one"),
        (replace(SAMPLES[FrameType.WELCOME], history=((E, 1),)), "WELCOME.history: expected a history"),
        (replace(SAMPLES[FrameType.WRITE_RESULT], error_code="x"), "WRITE_RESULT.error_message: it is there exactly"),
        (
            replace(SAMPLES[FrameType.WRITE_RESULT], error_fields=b"{}"),
            "WRITE_RESULT.error_fields: it is there without",
        ),
        (replace(SAMPLES[FrameType.READ], key=b""), "READ.key: expected at least 1 bytes, got 0 bytes"),
        (replace(SAMPLES[FrameType.READ_RESULT], value=None), "READ_RESULT.seq: it is 0 exactly when there is no"),
        (
            replace(SAMPLES[FrameType.READ_RESULT], error_code="x", error_message=""),
            "READ_RESULT.value: it is there beside error_code",
        ),
    ],
)
def test_what_would_be_refused_is_not_sent(message: Message, text: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        to_wire(message)
    assert caught.value.message.startswith(text)


# ---- in a log ----------------------------------------------------------------------------------------------------

SHOWN = {
    FrameType.HELLO: "HELLO min_version=1 max_version=1 cluster_id=000102030405060708090a0b0c0d0e0f "
    "node_id=101112131415161718191a1b1c1d1e1f boot_id=00000000000000000000000000000000 name=web2 purpose=replica "
    "features=[ops.1,ops.2] auth=<6 bytes> address=10.0.0.2:7001",
    FrameType.WELCOME: "WELCOME version=1 cluster_id=000102030405060708090a0b0c0d0e0f "
    "node_id=101112131415161718191a1b1c1d1e1f name=web1 role=primary history=[1.00000007@1,3.9f2c1a7b@40] last_seq=41 "
    "features=[]",
    FrameType.ERROR: r"ERROR code=not_primary message='web2 is a replica\nof web1'",
    FrameType.PING: "PING last_seq=41 time_ms=1700000000000",
    FrameType.SUBSCRIBE: "SUBSCRIBE position=3.9f2c1a7b-41 "
    "incoming=000102030405060708090a0b0c0d0e0f:1.00000007-12..3.9f2c1a7b-50",
    FrameType.HISTORY: "HISTORY history=[1.00000007@1,3.9f2c1a7b@40] members=[web1,web2]",
    FrameType.ENTRIES: "ENTRIES records=<2 of 102 bytes>",
    FrameType.ACK: "ACK received=43 durable=42 applied=41",
    FrameType.SNAPSHOT_BEGIN: "SNAPSHOT_BEGIN sync_id=000102030405060708090a0b0c0d0e0f position=3.9f2c1a7b-41 "
    "first_position=1.00000007-12 resumed=true",
    FrameType.SNAPSHOT_CHUNK: "SNAPSHOT_CHUNK crc=849692471 data=<39 bytes>",
    FrameType.SNAPSHOT_END: "SNAPSHOT_END position=3.9f2c1a7b-41 keys=2",
    FrameType.WRITE: "WRITE request_id=7 ops=<2> acks=- ack_timeout_ms=5000",
    FrameType.WRITE_RESULT: "WRITE_RESULT request_id=7 epoch=3.9f2c1a7b seq=42 deleted=1 error_code=- error_message=- "
    "error_fields=-",
    FrameType.STATUS: "STATUS request_id=8",
    FrameType.STATUS_RESULT: "STATUS_RESULT request_id=8 status=<15 bytes>",
    FrameType.READ: "READ request_id=9 key=<8 bytes> min_epoch=3.9f2c1a7b min_seq=41 wait_ms=1500",
    FrameType.READ_RESULT: "READ_RESULT request_id=9 epoch=3.9f2c1a7b seq=41 value=<7 bytes> "
    "applied_epoch=3.9f2c1a7b applied_seq=42 error_code=- error_message=- error_fields=-",
}


@pytest.mark.parametrize("frame", FrameType)
def test_str_is_made_for_logs(frame: FrameType) -> None:
    assert str(SAMPLES[frame]) == SHOWN[frame]


def test_str_of_long_and_hostile_fields_stays_short_and_on_one_line() -> None:
    assert str(Error("x", "\x1b[2J\u2028é" + "m" * 1000)) == rf"ERROR code=x message='\x1b[2J\u2028\xe9{'m' * 114}...'"
    reigns = History(tuple(Reign(Epoch.of(term, 0), term) for term in range(1, 7)))
    members = tuple(Member(bytes([number]) * 16, f"n{number}") for number in range(6))
    assert str(HistoryFrame(reigns, members)) == (
        "HISTORY history=[(2 more),3.00000000@3,4.00000000@4,5.00000000@5,6.00000000@6] members=[n0,n1,n2,n3,(2 more)]"
    )


def test_str_of_what_may_be_nil() -> None:
    assert str(Subscribe(Position(Epoch(0), 0), None)) == "SUBSCRIBE position=0.00000000-0 incoming=-"
    assert str(WriteResult(1, Epoch(0), 0, 0, "too_large", "value: too large", b'{"limit":1}')) == (
        "WRITE_RESULT request_id=1 epoch=0.00000000 seq=0 deleted=0 error_code=too_large "
        "error_message='value: too large' error_fields=<11 bytes>"
    )


def test_credentials_and_bulk_are_not_in_any_form_of_text() -> None:
    assert "secret" not in repr(SAMPLES[FrameType.HELLO])
    assert "data" not in repr(SAMPLES[FrameType.SNAPSHOT_CHUNK])
    for sample in SAMPLES.values():
        assert "greeting" not in str(sample)
        assert "hello" not in str(sample)
    for number in (FrameType.READ, FrameType.READ_RESULT):
        assert "greeting" not in repr(SAMPLES[number])
        assert "hello" not in repr(SAMPLES[number])
