"""The stored form of records and meta values, and the stored bounds of ranges."""

import pytest

from kvnode.node.api import KeyRange, Record
from kvnode.node.storage.engine import Applied
from kvnode.node.storage.records import (
    decode_applied,
    decode_format,
    decode_record,
    encode_applied,
    encode_format,
    encode_header,
    stored_bounds,
)
from kvnode.protocol.types import Epoch, Position
from support.engines import EPOCH


def test_record_has_a_header_of_three_integers_before_the_value() -> None:
    stored = encode_header(5, EPOCH, 7) + b'"v"'
    assert stored.hex() == "0000000000000005" + "000000039f2c1a7b" + "0000000000000007" + b'"v"'.hex()
    record = decode_record(stored, Epoch)
    assert record == Record(Position(EPOCH, 5), 7, b'"v"')
    assert isinstance(record.position.epoch, Epoch)


def test_record_without_a_whole_header_is_refused() -> None:
    assert decode_record(bytes(24), Epoch).value == b""
    with pytest.raises(ValueError, match="23 bytes"):
        decode_record(bytes(23), Epoch)


@pytest.mark.parametrize("synced", [False, True])
def test_applied_comes_back(synced: bool) -> None:
    applied = Applied(Position(EPOCH, 2**40), synced, 1_700_000_000_000)
    stored = encode_applied(applied)
    assert stored.hex() == f"{2**40:016x}" + "000000039f2c1a7b" + f"{1_700_000_000_000:016x}" + f"{synced:02x}"
    assert decode_applied(stored) == applied
    assert isinstance(decode_applied(stored).position.epoch, Epoch)


@pytest.mark.parametrize("stored", [b"", bytes(24), bytes(26), bytes(24) + b"\x02"])
def test_malformed_applied_is_refused(stored: bytes) -> None:
    with pytest.raises(ValueError, match="mapplied"):
        decode_applied(stored)


def test_format_comes_back_and_a_malformed_one_is_refused() -> None:
    assert encode_format(1) == b"\x00\x00\x00\x01"
    assert decode_format(encode_format(2**32 - 1)) == 2**32 - 1
    with pytest.raises(ValueError, match="mformat"):
        decode_format(b"\x00\x00\x01")


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [
        (KeyRange(), b"k", b"l"),
        (KeyRange(first=b"a"), b"ka", b"l"),
        (KeyRange(last=b"b"), b"k", b"kb\x00"),
        (KeyRange(first=b"a", last=b"a"), b"ka", b"ka\x00"),
        (KeyRange(prefix=b"user:"), b"kuser:", b"kuser;"),
        (KeyRange(prefix=b"a\xff\xff"), b"ka\xff\xff", b"kb"),
        (KeyRange(prefix=b"\xff"), b"k\xff", b"l"),
        (KeyRange(prefix=b"p", first=b"pm"), b"kpm", b"kq"),
        (KeyRange(prefix=b"p", last=b"pm"), b"kp", b"kpm\x00"),
        (KeyRange(prefix=b"p", first=b"a", last=b"z"), b"kp", b"kq"),
    ],
)
def test_bounds_hold_exactly_the_wanted_keys(wanted: KeyRange, start: bytes, stop: bytes) -> None:
    assert stored_bounds(wanted) == (start, stop)


@pytest.mark.parametrize(
    "wanted", [KeyRange(first=b"b", last=b"a"), KeyRange(prefix=b"p", first=b"q"), KeyRange(prefix=b"p", last=b"o")]
)
def test_bounds_of_an_empty_range_are_not_in_order(wanted: KeyRange) -> None:
    start, stop = stored_bounds(wanted)
    assert start >= stop
