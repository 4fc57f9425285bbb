"""Snapshot chunks: what is packed is unpacked, and nothing that is damaged, malformed or out of order."""

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.protocol.entry import payload_crc
from kvnode.protocol.errors import LocalProtocolError, RemoteProtocolError
from kvnode.protocol.messages import SnapshotChunk
from kvnode.protocol.snapshot import SnapshotRecord, decode_chunk, encode_chunk
from kvnode.protocol.types import Epoch
from support.frames import EPOCH, snapshot_records

RECORDS = (
    SnapshotRecord(b"a", 1, EPOCH, 0, b"1"),
    SnapshotRecord(b"a\x00", 2**64 - 1, EPOCH, 2**64 - 1, b""),
    SnapshotRecord(b"\xff", 3, Epoch(0), 0, b'"x"'),
)


def chunk_of(value: Any) -> SnapshotChunk:
    data = msgpack.packb(value)
    return SnapshotChunk(payload_crc(data), data)


def test_records_come_back_as_they_were() -> None:
    chunk = encode_chunk(list(RECORDS))
    assert decode_chunk(chunk) == RECORDS
    assert all(isinstance(record.epoch, Epoch) for record in decode_chunk(chunk))


def test_the_data_byte_for_byte() -> None:
    chunk = encode_chunk([SnapshotRecord(b"a", 1, Epoch(2), 3, b"4")])
    assert chunk.data == bytes.fromhex("91 95 c4 01 61 01 02 03 c4 01 34")


@settings(deadline=None)
@given(st.lists(snapshot_records, min_size=1, max_size=5, unique_by=lambda record: record.key))
def test_any_records_come_back(records: list[SnapshotRecord]) -> None:
    records.sort()
    assert decode_chunk(encode_chunk(records)) == tuple(records)


@pytest.mark.parametrize(
    ("records", "text"),
    [
        ([], "expected at least one record"),
        ([RECORDS[1], RECORDS[0]], "expected each key to be above the one before it"),
        ([RECORDS[0], RECORDS[0]], "expected each key to be above the one before it"),
        ([RECORDS[0]._replace(key=b"")], "expected each key to be above the one before it"),
        ([RECORDS[0]._replace(seq=0)], "expected seq, epoch and expires_ms to be unsigned integers in range"),
        ([RECORDS[0]._replace(seq=True)], "expected seq, epoch and expires_ms to be unsigned integers in range"),
        ([RECORDS[0]._replace(epoch=-1)], "expected seq, epoch and expires_ms to be unsigned integers in range"),
        ([RECORDS[0]._replace(expires_ms=1.5)], "expected seq, epoch and expires_ms to be unsigned integers in range"),
        ([RECORDS[0]._replace(key="a")], "expected bytes as key and value"),
        ([RECORDS[0]._replace(value=None)], "expected bytes as key and value"),
        ([RECORDS[0][:4]], "expected a record, [key, seq, epoch, expires_ms, value]"),
        ([1], "expected a record, [key, seq, epoch, expires_ms, value]"),
    ],
)
def test_what_no_chunk_may_hold_is_neither_sent_nor_taken(records: list[Any], text: str) -> None:
    with pytest.raises(LocalProtocolError) as not_sent:
        encode_chunk(records)
    with pytest.raises(RemoteProtocolError) as not_taken:
        decode_chunk(chunk_of(records))
    assert not_sent.value.message == not_taken.value.message == f"SNAPSHOT_CHUNK.data: {text}"


@pytest.mark.parametrize("value", [None, 1, {}, {b"a": 1}, b"x", [[b"a", 1, 1, 0, {}]]], ids=repr)
def test_data_of_another_shape_is_refused(value: Any) -> None:
    with pytest.raises(RemoteProtocolError, match=r"SNAPSHOT_CHUNK\.data: "):
        decode_chunk(chunk_of(value))


def test_a_seq_beyond_u64_is_not_sent() -> None:
    with pytest.raises(LocalProtocolError, match="unsigned integers in range"):
        encode_chunk([RECORDS[0]._replace(seq=2**64)])


def test_damage_is_noticed_at_every_byte() -> None:
    chunk = encode_chunk(RECORDS)
    for at in range(len(chunk.data)):
        damaged = bytearray(chunk.data)
        damaged[at] ^= 1
        with pytest.raises(RemoteProtocolError, match=r"SNAPSHOT_CHUNK\.crc: does not match the data"):
            decode_chunk(SnapshotChunk(chunk.crc, bytes(damaged)))


@settings(deadline=None, max_examples=300)
@given(st.binary(min_size=1))
def test_any_data_is_records_or_the_remote_error(data: bytes) -> None:
    try:
        records = decode_chunk(SnapshotChunk(payload_crc(data), data))
    except RemoteProtocolError:
        return
    assert decode_chunk(encode_chunk(records)) == records
