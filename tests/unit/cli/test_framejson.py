"""Frames as JSON lines: every frame comes back as it was, and what a person gets wrong is named."""

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.cli.framejson import frame_line, parse_frame
from kvnode.protocol.codec import FrameDecoder, encode
from kvnode.protocol.entry import EntryEncoder, payload_crc
from kvnode.protocol.errors import LocalProtocolError
from kvnode.protocol.fields import LogRecord
from kvnode.protocol.messages import (
    Entries,
    FrameType,
    Message,
    Ping,
    Read,
    ReadResult,
    SnapshotChunk,
    StatusResult,
    Subscribe,
    Write,
    WriteResult,
)
from kvnode.protocol.snapshot import SnapshotRecord, encode_chunk
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import Entry, Epoch, Op, Position, delete, put
from support.documents import fenced_blocks, parse_hex
from support.frames import EPOCH, SAMPLES, log_record, messages
from support.project import ROOT

DOCUMENT = ROOT / "protocol" / "FORMAT.md"

SHOWN = {
    FrameType.HELLO: '{"type":"hello","min_version":1,"max_version":1,"cluster_id":"000102030405060708090a0b0c0d0e0f",'
    '"node_id":"101112131415161718191a1b1c1d1e1f","boot_id":"00000000000000000000000000000000","name":"web2",'
    '"purpose":"replica","features":["ops.1","ops.2"],"auth":"736563726574","address":"10.0.0.2:7001"}',
    FrameType.WELCOME: '{"type":"welcome","version":1,"cluster_id":"000102030405060708090a0b0c0d0e0f",'
    '"node_id":"101112131415161718191a1b1c1d1e1f","name":"web1","role":"primary","history":[{"epoch":"1.00000007",'
    '"first_seq":1},{"epoch":"3.9f2c1a7b","first_seq":40}],"last_seq":41,"features":[]}',
    FrameType.ERROR: '{"type":"error","code":"not_primary","message":"web2 is a replica\\nof web1"}',
    FrameType.PING: '{"type":"ping","last_seq":41,"time_ms":1700000000000}',
    FrameType.SUBSCRIBE: '{"type":"subscribe","position":"3.9f2c1a7b-41",'
    '"incoming":{"sync_id":"000102030405060708090a0b0c0d0e0f","first":"1.00000007-12","latest":"3.9f2c1a7b-50",'
    '"last_key":"greeting"}}',
    FrameType.HISTORY: '{"type":"history","history":[{"epoch":"1.00000007","first_seq":1},{"epoch":"3.9f2c1a7b",'
    '"first_seq":40}],"members":[{"node_id":"000102030405060708090a0b0c0d0e0f","name":"web1",'
    '"address":"web1.lan:7001"},{"node_id":"101112131415161718191a1b1c1d1e1f","name":"web2","address":""}]}',
    FrameType.ENTRIES: '{"type":"entries","records":[{"seq":42,"epoch":"3.9f2c1a7b","time":"2023-11-14T22:13:20.123Z",'
    '"ops":[{"op":"put","key":"greeting","value":"hello"},{"op":"delete","key":"gone"}]},{"seq":43,'
    '"epoch":"3.9f2c1a7b","time":"2023-11-14T22:13:20.123Z","ops":[{"op":"put","key":"greeting","value":"hello"},'
    '{"op":"delete","key":"gone"}]}]}',
    FrameType.ACK: '{"type":"ack","received":43,"durable":42,"applied":41}',
    FrameType.SNAPSHOT_BEGIN: '{"type":"snapshot_begin","sync_id":"000102030405060708090a0b0c0d0e0f",'
    '"position":"3.9f2c1a7b-41","first_position":"1.00000007-12","resumed":true}',
    FrameType.SNAPSHOT_CHUNK: '{"type":"snapshot_chunk","records":[{"key":"a","value":1,"seq":1,"epoch":"3.9f2c1a7b"},'
    '{"key":"b","value":"x","expires":"1970-01-01T00:00:00.099Z","seq":2,"epoch":"3.9f2c1a7b"}]}',
    FrameType.SNAPSHOT_END: '{"type":"snapshot_end","position":"3.9f2c1a7b-41","keys":2}',
    FrameType.WRITE: '{"type":"write","request_id":7,"ops":[{"op":"put","key":"greeting","value":"hello"},'
    '{"op":"delete","key":"gone"}],"acks":null,"ack_timeout_ms":5000}',
    FrameType.WRITE_RESULT: '{"type":"write_result","request_id":7,"epoch":"3.9f2c1a7b","seq":42,"deleted":1,'
    '"error_code":null,"error_message":null,"error_fields":null}',
    FrameType.STATUS: '{"type":"status","request_id":8}',
    FrameType.STATUS_RESULT: '{"type":"status_result","request_id":8,"status":{"name":"web1"}}',
    FrameType.READ: '{"type":"read","request_id":9,"key":"greeting","min_epoch":"3.9f2c1a7b","min_seq":41,'
    '"wait_ms":1500}',
    FrameType.READ_RESULT: '{"type":"read_result","request_id":9,"epoch":"3.9f2c1a7b","seq":41,"value":"hello",'
    '"applied_epoch":"3.9f2c1a7b","applied_seq":42,"error_code":null,"error_message":null,"error_fields":null}',
}


def shown(message: Message) -> dict[str, Any]:
    """What a reader of the line sees; the line is checked to be one and to be read back as the same message."""
    line = frame_line(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert b"\r" not in line
    assert parse_frame(line) == message
    members: dict[str, Any] = json.loads(line.decode("utf-8"))
    return members


def entries_of(*ops: Op, time_ms: int = 0) -> Entries:
    return Entries((log_record(Entry(1, EPOCH, time_ms, ops)),))


# ---- there and back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", FrameType)
def test_every_type_has_its_form(frame: FrameType) -> None:
    assert frame_line(SAMPLES[frame]).decode() == SHOWN[frame] + "\n"
    assert parse_frame(SHOWN[frame].encode()) == SAMPLES[frame]


@settings(deadline=None, max_examples=400)
@given(messages)
def test_any_frame_comes_back_as_it_was(message: Message) -> None:
    assert shown(message)["type"] == message.TYPE.name.lower()


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes_that_are_no_frame_are_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_frame(text)


@settings(deadline=None, max_examples=300)
@given(messages, st.data())
def test_a_mutated_line_is_a_frame_or_a_value_error(message: Message, data: st.DataObject) -> None:
    line = bytearray(frame_line(message))
    at = data.draw(st.integers(0, len(line) - 1), label="at")
    line[at : at + data.draw(st.integers(0, 3), label="removed")] = data.draw(
        st.one_of(st.binary(max_size=2), st.sampled_from([b'"', b"null", b"[", b"{}", b"1", b"-", b"1e9"])), label="new"
    )
    try:
        read = parse_frame(bytes(line))
    except ValueError:
        return
    try:
        encoded = encode(read)
    except LocalProtocolError:
        return
    decoder = FrameDecoder()
    decoder.feed(encoded)
    assert list(decoder) == [read]


def test_the_documented_lines() -> None:
    (block,) = fenced_blocks(DOCUMENT, "json")
    decoder = FrameDecoder()
    for hex_block in fenced_blocks(DOCUMENT, "hex")[1:]:
        decoder.feed(parse_hex(hex_block)[0])
    assert block.encode() == b"".join(map(frame_line, decoder))


# ---- values, keys, times -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [b"1.0", b"1e400", b"-0", b"12345678901234567890123", b'{"b": 1, "a":[ ]}', b'"\\ud800"', b'"\\u00e4\xc3\xa4"'],
)
def test_values_stand_as_they_are(value: bytes) -> None:
    message = entries_of(put(b"k", value))
    assert b'"value":%b}' % value in frame_line(message)
    assert "payload_hex" not in shown(message)["records"][0]


def test_a_value_on_several_lines_is_shown_on_one_with_its_bytes_beside_it() -> None:
    ops = (put(b"k", b'{\r\n  "a": 1\n}'),)
    (record,) = shown(entries_of(*ops))["records"]
    assert record["ops"] == [{"op": "put", "key": "k", "value": {"a": 1}}]
    assert bytes.fromhex(record["payload_hex"]) == EntryEncoder().encode(Entry(1, EPOCH, 0, ops))
    assert "damaged" not in record
    write = shown(Write(1, ops, 1, 0))
    assert write["ops"] == record["ops"]
    assert msgpack.unpackb(bytes.fromhex(write["ops_hex"])) == [list(ops[0])]
    chunk = shown(encode_chunk([SnapshotRecord(b"k", 1, EPOCH, 0, ops[0].value)]))
    assert chunk["records"][0]["value"] == {"a": 1}
    assert msgpack.unpackb(bytes.fromhex(chunk["data_hex"]))[0][4] == ops[0].value
    refused = shown(WriteResult(1, EPOCH, 0, 0, "x", "", b'{\n"a":1}'))
    assert refused["error_fields"] == {"a": 1}
    assert bytes.fromhex(refused["error_fields_hex"]) == b'{\n"a":1}'
    status = shown(StatusResult(1, b'{\n"a":1}'))
    assert status["status"] == {"a": 1}
    assert bytes.fromhex(status["status_hex"]) == b'{\n"a":1}'


@pytest.mark.parametrize("value", [b"", b"nope", b'"\xff"', b"1 2", b'{"a":1'])
def test_a_value_that_is_no_json_is_shown_as_bytes_only(value: bytes) -> None:
    (record,) = shown(entries_of(put(b"k", value)))["records"]
    assert record.keys() == {"damaged", "crc", "payload_hex"}
    assert record["damaged"].startswith("a value is not JSON: ")
    assert shown(Write(1, (put(b"k", value),), None, 0)).keys() == {
        *("type", "request_id", "ops_hex", "acks", "ack_timeout_ms")
    }
    assert shown(encode_chunk([SnapshotRecord(b"k", 1, EPOCH, 0, value)])).keys() == {
        *("type", "damaged", "crc", "data_hex")
    }
    if value:
        assert shown(StatusResult(1, value)).keys() == {"type", "request_id", "status_hex"}
        refused = shown(WriteResult(1, EPOCH, 0, 0, "x", "", value))
        assert bytes.fromhex(refused["error_fields_hex"]) == value
        assert "error_fields" not in refused


def test_a_key_that_is_not_utf_8_has_its_bytes_beside_it() -> None:
    (record,) = shown(entries_of(delete(b"k\xff")))["records"]
    assert record["ops"] == [{"op": "delete", "key": "k\N{REPLACEMENT CHARACTER}"}]
    assert record["payload_hex"]
    assert shown(Write(1, (delete(b"k\xff"),), None, 0))["ops_hex"]


def test_the_last_key_of_a_sync_is_text_or_its_bytes() -> None:
    at = Position(EPOCH, 1)
    for key, members in (
        (b"", {"last_key": ""}),
        ("ä\n".encode(), {"last_key": "ä\n"}),
        (b"k\xff", {"last_key_hex": "6bff"}),
    ):
        sync = shown(Subscribe(at, Incoming(bytes(16), at, at, key)))["incoming"]
        assert sync == {"sync_id": "00" * 16, "first": str(at), "latest": str(at)} | members
    assert shown(Subscribe(at, None))["incoming"] is None
    both = frame_line(Subscribe(at, Incoming(bytes(16), at, at, b"k\xff"))).replace(
        b'"last_key_hex"', b'"last_key":"k","last_key_hex"'
    )
    assert parse_frame(both) == Subscribe(at, Incoming(bytes(16), at, at, b"k\xff"))


def test_what_is_known_of_an_error_stands_as_it_is() -> None:
    message = WriteResult(1, EPOCH, 0, 0, "too_large", "", b'{"limit":"value","max":1.0}')
    assert b'"error_fields":{"limit":"value","max":1.0}}' in frame_line(message)
    assert shown(message)["error_fields"] == {"limit": "value", "max": 1.0}
    assert shown(WriteResult(1, EPOCH, 0, 0, "x", "", None))["error_fields"] is None
    # Not nil, but bytes that say the same in JSON.
    assert shown(WriteResult(1, EPOCH, 0, 0, "x", "", b"null"))["error_fields_hex"] == b"null".hex()
    assert shown(ReadResult(1, EPOCH, 1, b"null", EPOCH, 1, None, None, None))["value_hex"] == b"null".hex()
    assert "value_hex" not in shown(ReadResult(1, EPOCH, 0, None, EPOCH, 1, None, None, None))


def test_the_key_of_a_read_that_is_not_utf8_is_shown_in_hex() -> None:
    read = shown(Read(1, b"k\xff", EPOCH, 0, 0))
    assert (read["key_hex"], "key" in read) == ("6bff", False)
    both = b'{"type":"read","request_id":1,"key":"k","key_hex":"6bff","min_epoch":"0.00000000","min_seq":0,"wait_ms":0}'
    assert parse_frame(both) == Read(1, b"k\xff", Epoch(0), 0, 0)


def test_times_are_dates_as_long_as_there_are_any() -> None:
    last_ms = 253_402_300_799_999
    ops = [put(b"k", b"1", expires_ms) for expires_ms in (0, 1, last_ms, last_ms + 1)]
    (record,) = shown(entries_of(*ops, time_ms=last_ms))["records"]
    assert record["time"] == "9999-12-31T23:59:59.999Z"
    assert [op.get("expires") for op in record["ops"]] == [
        None,
        "1970-01-01T00:00:00.001Z",
        "9999-12-31T23:59:59.999Z",
        last_ms + 1,
    ]
    assert "payload_hex" not in record


@pytest.mark.parametrize("time", ['"2023-11-14T22:13:20.123Z"', '"2023-11-14T23:13:20.123+01:00"', "1700000000123"])
def test_a_time_may_be_written_in_several_ways(time: str) -> None:
    line = SHOWN[FrameType.ENTRIES].replace('"2023-11-14T22:13:20.123Z"', time)
    assert parse_frame(line.encode()) == SAMPLES[FrameType.ENTRIES]


# ---- damage --------------------------------------------------------------------------------------------------------


def test_a_wrong_crc_is_told_beside_what_the_bytes_say() -> None:
    (good, _) = SAMPLES[FrameType.ENTRIES].records
    (record,) = shown(Entries((LogRecord(good.crc ^ 1, good.payload),)))["records"]
    assert record["seq"] == 42
    assert record["damaged"] == "the CRC is that of other bytes"
    assert record["crc"] == good.crc ^ 1
    sample = SAMPLES[FrameType.SNAPSHOT_CHUNK]
    chunk = shown(SnapshotChunk(sample.crc ^ 1, sample.data))
    assert [each["key"] for each in chunk["records"]] == ["a", "b"]
    assert chunk["damaged"] == "the CRC is that of other bytes"


def test_what_cannot_be_read_is_shown_as_bytes() -> None:
    (record,) = shown(Entries((LogRecord(7, b"\xc1\x00"),)))["records"]
    assert record["damaged"].startswith("entry payload is not msgpack: ")
    assert (record["crc"], record["payload_hex"]) == (7, "c100")
    chunk = shown(SnapshotChunk(7, b"\x90"))
    assert chunk["damaged"] == "SNAPSHOT_CHUNK.data: expected at least one record"
    assert (chunk["crc"], chunk["data_hex"]) == (7, "90")


def test_an_unusual_encoding_keeps_its_bytes() -> None:
    (usual, _) = SAMPLES[FrameType.ENTRIES].records
    payload = b"\xdc\x00\x04" + usual.payload[1:]
    (record,) = shown(Entries((LogRecord(payload_crc(payload), payload),)))["records"]
    assert record["seq"] == 42
    assert record["payload_hex"] == payload.hex()
    assert "damaged" not in record


# ---- by hand -------------------------------------------------------------------------------------------------------


def test_a_crc_is_computed_when_it_is_not_given() -> None:
    assert parse_frame(b'{"type":"entries","records":[{"payload_hex":"90"}]}') == Entries(
        (LogRecord(payload_crc(b"\x90"), b"\x90"),)
    )
    assert parse_frame(b'{"type":"snapshot_chunk","data_hex":"90"}') == SnapshotChunk(payload_crc(b"\x90"), b"\x90")


def test_members_may_come_in_any_order_with_blanks_between() -> None:
    assert parse_frame(b' { "time_ms" : 2 , "last_seq":1,"type":"ping" }\r\n') == Ping(1, 2)


def test_an_observer_may_know_no_epoch() -> None:
    text = b'{"type":"subscribe","position":"0.00000000-41","incoming":null}'
    assert parse_frame(text) == Subscribe(Position(Epoch(0), 41), None)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "Input data was truncated"),
        ("[]", "Expected `object`, got `array`"),
        ("{}", '"type" is not one of hello, welcome, '),
        ('{"type":"HELLO"}', '"type" is not one of hello, welcome, '),
        ('{"type":1}', "Expected `str`, got `int`"),
        ('{"type":"ping","last_seq":1}', 'ping: the member "time_ms" is missing'),
        ('{"type":"ping","last_seq":1,"time_ms":1,"x":1}', "ping: there is no member 'x'; there are last_seq, time_ms"),
        ('{"type":"ping","last_seq":"1","time_ms":1}', 'ping: "last_seq": expected a whole number from 0'),
        ('{"type":"ping","last_seq":1.5,"time_ms":1}', 'ping: "last_seq": expected a whole number from 0'),
        ('{"type":"ping","last_seq":1,"time_ms":-1}', 'ping: "time_ms": expected a whole number from 0'),
        ('{"type":"subscribe","position":"41"}', 'subscribe: "position": not an epoch'),
        ('{"type":"subscribe","position":"1.00000000-x"}', 'subscribe: "position": invalid literal for int'),
        ('{"type":"subscribe","position":41}', 'subscribe: "position": expected str, got int'),
        ('{"type":"subscribe","position":"1.00000000-1"}', 'subscribe: the member "incoming" is missing'),
        ('{"type":"snapshot_end","position":"1.00000000-1","keys":null}', 'snapshot_end: "keys": expected a whole'),
        ('{"type":"history","history":[{"epoch":"1.00000000"}],"members":[]}', 'the member "first_seq" is missing'),
        ('{"type":"history","history":[],"members":[["a","b"]]}', '"members": expected dict, got list'),
        ('{"type":"history","history":[],"members":[{"node_id":"","name":"a"}]}', 'the member "address" is missing'),
        (
            '{"type":"history","history":[],"members":[{"node_id":"xx","name":"a","address":""}]}',
            "non-hexadecimal number found",
        ),
        ('{"type":"entries","records":{}}', 'entries: "records": Expected `array`, got `object`'),
        ('{"type":"entries","records":[{"seq":1}]}', 'entries: "records": the member "epoch" is missing'),
        ('{"type":"entries","records":[{"crc":1}]}', 'entries: "records": the member "seq" is missing'),
        (
            '{"type":"entries","records":[{"seq":0,"epoch":"1.00000000","time":0,"ops":[]}]}',
            "entry seq, epoch or time is not an unsigned integer in range",
        ),
        (
            '{"type":"entries","records":[{"seq":1,"epoch":"1.00000000","time":"2023-01-01T00:00:00","ops":[]}]}',
            "does not say its zone",
        ),
        (
            '{"type":"write","request_id":1,"ops":[{"op":"get","key":"k"}],"acks":0,"ack_timeout_ms":0}',
            'write: "ops": "op" is neither "put" nor "delete"',
        ),
        (
            '{"type":"write","request_id":1,"ops":[{"op":"delete","key":"k","value":1}],"acks":0,"ack_timeout_ms":0}',
            "write: \"ops\": there is no member 'value'",
        ),
        ('{"type":"write","request_id":1,"ops_hex":"c1","acks":0,"ack_timeout_ms":0}', 'write: "ops_hex": '),
        ('{"type":"status_result","request_id":1}', 'status_result: the member "status" is missing'),
        ('{"type":"read","request_id":1}', 'read: the member "key" is missing'),
        ('{"type":"read","request_id":1,"key":1}', 'read: "key": Expected `str`, got `int`'),
        ('{"type":"read","request_id":1,"key_hex":"x"}', 'read: "key_hex": non-hexadecimal number'),
        ('{"type":"read","request_id":1,"key":"k","min_epoch":0}', 'read: "min_epoch": expected str, got int'),
        ('{"type":"snapshot_chunk","records":[]}', "snapshot_chunk: SNAPSHOT_CHUNK.data: expected at least one record"),
        ('{"type":"snapshot_chunk","crc":1}', 'snapshot_chunk: the member "records" is missing'),
        ('{"type":"status","request_id":' + "[" * 100_000, ""),
    ],
)
def test_what_is_wrong_is_named(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_frame(text.encode())
    assert error in str(caught.value)


@pytest.mark.parametrize(
    ("incoming", "error"),
    [
        ("[]", "expected dict, got list"),
        ('{"sync_id":"","first":"0.00000000-0"}', 'the member "latest" is missing'),
        ('{"sync_id":"","first":"0.00000000-0","latest":"0.00000000-0","key":""}', 'the member "last_key" is missing'),
        ('{"sync_id":"","first":"0.00000000-0","latest":"0.00000000-0","last_key":1}', "expected str, got int"),
        ('{"sync_id":"","first":"0.00000000-0","latest":"0.00000000-0","last_key_hex":"x"}', "non-hexadecimal number"),
        ('{"sync_id":"","first":0,"latest":"0.00000000-0","last_key":""}', "expected str, got int"),
        (
            '{"sync_id":"","first":"0.00000000-1","latest":"0.00000000-0","last_key":""}',
            "a sync's first snapshot 0.00000000-1 is after its latest 0.00000000-0",
        ),
    ],
)
def test_what_is_wrong_with_a_sync_is_named(incoming: str, error: str) -> None:
    with pytest.raises(ValueError, match=r"^subscribe: \"incoming\": ") as caught:
        parse_frame(b'{"type":"subscribe","position":"1.00000000-1","incoming":%b}' % incoming.encode())
    assert error in str(caught.value)


def test_what_json_can_say_and_the_format_cannot_is_left_to_the_encoder() -> None:
    read = parse_frame(b'{"type":"entries","records":[]}')
    with pytest.raises(LocalProtocolError, match=r"ENTRIES\.records: expected at least one log record"):
        encode(read)
