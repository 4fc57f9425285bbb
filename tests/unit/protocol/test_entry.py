"""Entries as bytes: what is written, what is read back, and what is refused."""

from collections.abc import Callable

import msgpack
import pytest

from kvnode.protocol.entry import (
    ENTRY_FIRST_BYTE,
    NOT_AN_ENTRY,
    EntryEncoder,
    decode_beginning,
    decode_entry,
    decode_logged,
    payload_crc,
)
from kvnode.protocol.errors import EntryDamaged, RemoteProtocolError
from kvnode.protocol.types import Delete, Entry, Epoch, Put, delete, put
from support.logged import entry_of

EPOCH = Epoch.of(3, 0x9F2C1A7B)
U64_MAX = 2**64 - 1

ENTRIES = [
    Entry(1, EPOCH, 0, (put(b"k", b"null"),)),
    Entry(U64_MAX, Epoch(U64_MAX), U64_MAX, (put(b"k", b"1", U64_MAX), delete(b"k"), put(b"k", b""))),
    Entry(7, Epoch(0), 1_700_000_000_000, tuple(delete(b"%d" % number) for number in range(70_000))),
    Entry(128, EPOCH, 5, (put("ключ/\0".encode(), b'"' + b"x" * 70_000 + b'"'),)),
    Entry(2**32, EPOCH, 5, (put(b"\xff\xfe", b"\x00\x94"),)),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"seq {entry.seq}")
def test_entry_is_read_back(entry: Entry) -> None:
    payload = EntryEncoder().encode(entry)
    assert payload.startswith(ENTRY_FIRST_BYTE)
    for form in (payload, memoryview(payload)):
        decoded = decode_entry(form)
        assert decoded == entry
        assert type(decoded.epoch) is Epoch
        assert all(type(op) is (Put if op.kind == 1 else Delete) for op in decoded.ops)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"seq {entry.seq}")
def test_decoding_for_a_replay_gives_the_same(entry: Entry) -> None:
    logged = decode_logged(EntryEncoder().encode(entry))
    assert (logged.seq, logged.epoch, logged.time_ms) == (entry.seq, entry.epoch, entry.time_ms)
    assert entry_of(logged) == entry


def test_encoder_can_be_used_again_also_after_a_failure() -> None:
    encoder = EntryEncoder()
    expected = EntryEncoder().encode(ENTRIES[0])
    assert encoder.encode(ENTRIES[0]) == expected
    with pytest.raises(TypeError):
        encoder.encode(Entry(1, EPOCH, 0, (put(b"k", object()),)))  # type: ignore[arg-type]
    assert encoder.encode(ENTRIES[0]) == expected


def test_crc_is_the_common_crc_32() -> None:
    assert payload_crc(b"123456789") == payload_crc(memoryview(b"123456789")) == 0xCBF43926
    assert payload_crc(b"") == 0


PUT = [1, b"k", 0, b"1"]

MALFORMED: dict[str, object] = {
    "nothing": b"",
    "cut off": EntryEncoder().encode(ENTRIES[0])[:-1],
    "followed by more": EntryEncoder().encode(ENTRIES[0]) + b"\0",
    "no msgpack": b"\xc1",
    "an integer": 5,
    "a map": {"seq": 1},
    "too few fields": [1, 2, 3],
    "too many fields": [1, 2, 3, [PUT], 5],
    "seq 0": [0, 2, 3, [PUT]],
    "negative seq": [-1, 2, 3, [PUT]],
    "seq as float": [1.0, 2, 3, [PUT]],
    "seq as bool": [True, 2, 3, [PUT]],
    "seq as text": ["1", 2, 3, [PUT]],
    "negative epoch": [1, -2, 3, [PUT]],
    "epoch nil": [1, None, 3, [PUT]],
    "negative time": [1, 2, -3, [PUT]],
    "no operations": [1, 2, 3, []],
    "operations nil": [1, 2, 3, None],
    "operations as a map": [1, 2, 3, {1: 2}],
    "operation as an integer": [1, 2, 3, [1]],
    "operation empty": [1, 2, 3, [[]]],
    "kind unknown": [1, 2, 3, [[3, b"k"]]],
    "kind as bool": [1, 2, 3, [[True, b"k", 0, b"1"]]],
    "kind as float": [1, 2, 3, [[1.0, b"k", 0, b"1"]]],
    "put with a field less": [1, 2, 3, [[1, b"k", 0]]],
    "put with a field more": [1, 2, 3, [[*PUT, 0]]],
    "put with delete's kind": [1, 2, 3, [[2, b"k", 0, b"1"]]],
    "put of text": [1, 2, 3, [[1, "k", 0, b"1"]]],
    "put of a text value": [1, 2, 3, [[1, b"k", 0, "1"]]],
    "put of an empty key": [1, 2, 3, [[1, b"", 0, b"1"]]],
    "put with a negative expiry": [1, 2, 3, [[1, b"k", -1, b"1"]]],
    "delete with put's kind": [1, 2, 3, [[1, b"k"]]],
    "delete of an empty key": [1, 2, 3, [[2, b""]]],
    "delete of text": [1, 2, 3, [[2, "k"]]],
    "one good and one bad operation": [1, 2, 3, [PUT, [9]]],
    "extension type": [msgpack.ExtType(1, b"x"), 2, 3, [PUT]],
    "timestamp": [msgpack.Timestamp(1), 2, 3, [PUT]],
    "impossible timestamp": b"\x94\xd7\xff" + b"\xff" * 8,
    "text that is not UTF-8": b"\x94\xa1\xff\x01\x01\x01",
    "map with unusual keys": b"\x94\x81\x90\x01\x01\x01\x01",
    "deep nesting": b"\x91" * 2000 + b"\x01",
    "array of four billion": b"\x94\x01\x02\x03\xdd\xff\xff\xff\xff",
    "string of four billion": b"\x94\x01\x02\x03\x91\x92\x02\xc6\xff\xff\xff\xff",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_anything_else_is_damage(name: str) -> None:
    value = MALFORMED[name]
    payload = value if isinstance(value, bytes) else msgpack.packb(value, use_bin_type=True)
    with pytest.raises(EntryDamaged) as raised:
        decode_entry(payload)
    assert isinstance(raised.value, RemoteProtocolError)
    assert raised.value.code == "entry_damaged"
    with pytest.raises(NOT_AN_ENTRY):
        decode_logged(payload)


def flipped(payload: bytes) -> Callable[[int], bytes]:
    def flip(bit: int) -> bytes:
        data = bytearray(payload)
        data[bit // 8] ^= 1 << bit % 8
        return bytes(data)

    return flip


def test_every_flipped_bit_is_damage_or_another_entry() -> None:
    entry = Entry(7, EPOCH, 1_700_000_000_000, (put(b"key", b'"value"'), delete(b"other")))
    payload = EntryEncoder().encode(entry)
    flip = flipped(payload)
    for bit in range(8 * len(payload)):
        assert payload_crc(flip(bit)) != payload_crc(payload)
        try:
            decoded = decode_entry(flip(bit))
        except EntryDamaged:
            continue
        assert decoded != entry


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"seq {entry.seq}")
@pytest.mark.parametrize("max_ops", [1, 2, 100_000])
def test_the_beginning_of_an_entry_is_read(entry: Entry, max_ops: int) -> None:
    beginning, left_out = decode_beginning(EntryEncoder().encode(entry), max_ops)
    assert beginning == entry._replace(ops=entry.ops[:max_ops])
    assert len(beginning.ops) + left_out == len(entry.ops)
    assert all(type(op) is (Put if op.kind == 1 else Delete) for op in beginning.ops)


@pytest.mark.parametrize("name", sorted(MALFORMED.keys() - {"followed by more"}))
def test_a_beginning_that_is_none_is_damage(name: str) -> None:
    value = MALFORMED[name]
    payload = value if isinstance(value, bytes) else msgpack.packb(value, use_bin_type=True)
    with pytest.raises(EntryDamaged):
        decode_beginning(payload, 100)
