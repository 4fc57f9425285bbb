"""The segment format: what is written byte for byte, and what each kind of damage is taken for."""

import struct
from pathlib import Path
from zlib import crc32

import pytest

from kvnode.node.errors import LogDamaged, UnknownFormat
from kvnode.node.storage.segment import (
    HEADER_BYTES,
    RECORD_HEADER_BYTES,
    Damage,
    SegmentRecord,
    check_header,
    encode_header,
    encode_record,
    encode_records,
    find_later_records,
    parse_segment_name,
    read_records,
    read_stretches,
    segment_name,
)
from kvnode.protocol.entry import EntryEncoder
from kvnode.protocol.types import Entry, Epoch, delete, put
from support.logged import entry_of
from support.storage_rig import log_record

CLUSTER = bytes(range(16))
EPOCH = Epoch.of(3, 0x9F2C1A7B)


def payload(seq: int, value: bytes = b'"v"') -> bytes:
    return EntryEncoder().encode(Entry(seq, EPOCH, 1_700_000_000_000 + seq, (put(b"k", value), delete(b"gone"))))


def segment(*records: bytes, first_seq: int = 5, unused: int = 0) -> bytes:
    return encode_header(CLUSTER, first_seq) + b"".join(records) + bytes(unused)


def record(seq: int, *, marked: bool = False, value: bytes = b'"v"') -> bytes:
    return encode_record(log_record(payload(seq, value)), marked=marked)


def read_until_damage(data: bytes, first_seq: int = 5) -> tuple[list[int], Damage | None]:
    """The seqs read, which come without gaps, and what ended the reading; it is the same in stretches of any size."""
    found: list[SegmentRecord] = []
    damage: Damage | None = None
    try:
        for each in read_records(data, first_seq):
            assert each.entry.seq == first_seq + len(found)
            found.append(each)
    except Damage as met:
        damage = met
    for stretch_bytes in (1, 60, 1 << 20):
        check_stretches(data, first_seq, stretch_bytes, found, damage)
    return [each.entry.seq for each in found], damage


def check_stretches(
    data: bytes, first_seq: int, stretch_bytes: int, expected: list[SegmentRecord], damage: Damage | None
) -> None:
    """`read_stretches` finds these records and this damage behind them."""
    left, offset, met = list(expected), HEADER_BYTES, None
    try:
        for entries, end, size in read_stretches(data, first_seq, stretch_bytes):
            taken, left = left[: len(entries)], left[len(entries) :]
            assert [entry_of(logged) for logged in entries] == [each.entry for each in taken]
            assert (end, size) == (taken[-1].end, taken[-1].end - offset)
            assert size < stretch_bytes + taken[-1].end - taken[-1].offset
            offset = end
    except Damage as error:
        met = error
    assert not left
    assert repr(met) == repr(damage)
    if met is not None and damage is not None:
        assert (met.offset, met.seq, met.reason) == (damage.offset, damage.seq, damage.reason)


# ---- names and headers -----------------------------------------------------------------------------------------


def test_name_has_twenty_digits_and_sorts_as_numbers() -> None:
    assert segment_name(1) == "00000000000000000001.wal"
    assert segment_name(2**64 - 1) == "18446744073709551615.wal"
    assert sorted(map(segment_name, (10, 9, 100))) == [segment_name(9), segment_name(10), segment_name(100)]


@pytest.mark.parametrize("seq", [1, 42, 2**64 - 1])
def test_name_is_parsed_back(seq: int) -> None:
    assert parse_segment_name(segment_name(seq)) == seq


@pytest.mark.parametrize(
    "name",
    [
        "",
        "1.wal",
        "00000000000000000001.wal.tmp",
        "00000000000000000001",
        "0000000000000000000a.wal",
        "٠" * 20 + ".wal",
    ],
)
def test_other_names_are_no_segments(name: str) -> None:
    assert parse_segment_name(name) is None


def test_header_layout() -> None:
    header = encode_header(CLUSTER, 5)
    assert len(header) == HEADER_BYTES == 40
    assert header[:8] == b"KVNODWAL"
    assert struct.unpack(">I16sQ", header[8:36]) == (1, CLUSTER, 5)
    assert header[36:] == crc32(header[:36]).to_bytes(4, "big")
    assert check_header(Path(segment_name(5)), header, CLUSTER) == 5


def forged(**changes: object) -> bytes:
    """A header with other fields and a CRC that fits them."""
    fields = {"magic": b"KVNODWAL", "version": 1, "cluster": CLUSTER, "first_seq": 5, **changes}
    head = struct.pack(">8sI16sQ", *fields.values())
    return head + crc32(head).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "shorter than a segment header"),
        (encode_header(CLUSTER, 5)[:-1], "shorter than a segment header"),
        (bytes(HEADER_BYTES), "no magic number"),
        (forged(magic=b"LEVELDB!"), "no magic number"),
        (encode_header(CLUSTER, 5)[:-1] + b"\0", "does not match its CRC"),
        (forged(cluster=bytes(16)), "belongs to cluster 00000000000000000000000000000000"),
        (forged(first_seq=6), "begins with seq 6"),
    ],
)
def test_bad_header_is_damage_at_offset_0(data: bytes, reason: str) -> None:
    path = Path("/d/wal") / segment_name(5)
    with pytest.raises(LogDamaged, match=reason) as raised:
        check_header(path, data, CLUSTER)
    assert (raised.value.path, raised.value.offset, raised.value.seq) == (path, 0, 5)


def test_unknown_version_is_refused_naming_both() -> None:
    with pytest.raises(UnknownFormat, match="format version 7, this program knows version 1"):
        check_header(Path(segment_name(5)), forged(version=7), CLUSTER)


def test_every_flipped_bit_of_a_header_is_noticed() -> None:
    header = encode_header(CLUSTER, 5)
    for bit in range(8 * HEADER_BYTES):
        flipped = bytearray(header)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(LogDamaged):
            check_header(Path(segment_name(5)), bytes(flipped), CLUSTER)


# ---- records -------------------------------------------------------------------------------------------------------


def test_record_layout() -> None:
    body = payload(5)
    assert encode_record(log_record(body), marked=False) == struct.pack(">II", len(body), crc32(body)) + body
    assert encode_record(log_record(body), marked=True) == struct.pack(">II", len(body) | 1 << 31, crc32(body)) + body


@pytest.mark.parametrize("marked", [False, True])
def test_the_first_record_of_a_group_has_its_mark(marked: bool) -> None:
    group = [log_record(payload(seq)) for seq in (5, 6, 7)]
    first, *others = group
    alone = [encode_record(first, marked=marked), *(encode_record(other, marked=False) for other in others)]
    assert encode_records(group, marked=marked) == b"".join(alone)


@pytest.mark.parametrize("unused", [0, 1, 7, 8, 9, 3 << 20])
def test_records_are_read_up_to_the_unused_space(unused: int) -> None:
    data = segment(record(5, marked=True), record(6), record(7, marked=True), unused=unused)
    found = list(read_records(data, 5))
    assert read_until_damage(data) == ([5, 6, 7], None)
    assert [each.entry.seq for each in found] == [5, 6, 7]
    assert [each.marked for each in found] == [True, False, True]
    assert [each.payload for each in found] == [payload(5), payload(6), payload(7)]
    assert found[0].offset == HEADER_BYTES
    assert [each.end for each in found] == [found[1].offset, found[2].offset, len(data) - unused]
    assert found[0].entry == Entry(5, EPOCH, 1_700_000_000_005, (put(b"k", b'"v"'), delete(b"gone")))


def test_reading_can_begin_at_any_record() -> None:
    data = segment(record(5), record(6), record(7), unused=50)
    second = list(read_records(data, 5))[1]
    assert [each.entry.seq for each in read_records(data, 6, second.offset)] == [6, 7]
    assert list(read_records(data, 8, len(data) - 50)) == []


def test_segment_without_records() -> None:
    for unused in (0, 7, 8, 100):
        assert read_until_damage(segment(unused=unused)) == ([], None)


TAIL = len(segment(record(5)))


@pytest.mark.parametrize(
    ("after_first", "offset", "seq", "reason"),
    [
        (b"\0\0\1", 0, 6, "ends inside a record header"),
        (b"\0\0\0\0\0\0\0\1", 0, 6, "unused space is not all zero"),
        (bytes(3 << 20) + b"\1", 0, 6, "unused space is not all zero"),
        (bytes(8) + record(6), 0, 6, "unused space is not all zero"),
        (record(6)[:-1], 0, 6, "would reach past the end of the file"),
        (struct.pack(">II", 1000, 0) + bytes(992), 0, 6, "would reach past the end of the file"),
        (record(6)[:-1] + b"?", 0, 6, "does not match its CRC"),
        (record(7), 0, 6, "an intact record has seq 7"),
        (record(5), 0, 6, "an intact record has seq 5"),
        (encode_record(log_record(b"\xc0"), marked=False), 0, 6, "not an array of four"),
        (encode_record(log_record(b"\xc1"), marked=False), 0, 6, "is not msgpack"),
        (record(6) + record(7)[:-1], len(record(6)), 7, "would reach past the end of the file"),
    ],
)
def test_damage_says_where_and_what(after_first: bytes, offset: int, seq: int, reason: str) -> None:
    seqs, damage = read_until_damage(segment(record(5)) + after_first)
    assert seqs == list(range(5, seq))
    assert damage is not None
    assert (damage.offset, damage.seq) == (TAIL + offset, seq)
    assert reason in damage.reason


def test_every_flipped_bit_of_a_record_is_noticed_but_the_mark() -> None:
    """The mark is outside the CRC; it only adds or removes evidence."""
    data = segment(record(5), record(6))
    end_of_header = HEADER_BYTES
    for bit in range(8 * end_of_header, 8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << 7 - bit % 8
        seqs, damage = read_until_damage(bytes(flipped))
        byte = bit // 8
        if bit % 8 == 0 and byte in (HEADER_BYTES, TAIL):
            assert (seqs, damage) == ([5, 6], None)
        else:
            assert damage is not None
            assert damage.offset == (HEADER_BYTES if byte < TAIL else TAIL)
            assert seqs == list(range(5, damage.seq))


def test_every_shorter_file_ends_in_whole_records_or_damage() -> None:
    data = segment(record(5), record(6))
    for size in range(HEADER_BYTES, len(data)):
        seqs, damage = read_until_damage(data[:size])
        assert seqs == ([5] if size >= TAIL else [])
        # The first bytes of a length are zero, as unused space is.
        assert (damage is None) is (not any(data[TAIL if seqs else HEADER_BYTES : size]))


# ---- behind damage -------------------------------------------------------------------------------------------------


def test_records_behind_damage_are_found_at_any_offset() -> None:
    data = segment(record(5)) + b"\x94garbage\x94" + record(6, marked=True) + b"\x94\x01" + record(7) + b"\xff" * 5
    found = list(find_later_records(data, TAIL, 5))
    assert [(each.entry.seq, each.marked) for each in found] == [(6, True), (7, False)]
    assert data[found[0].offset :].startswith(record(6, marked=True))


def test_search_begins_at_the_offset_given() -> None:
    data = segment(record(5), record(6))
    assert [each.entry.seq for each in find_later_records(data, HEADER_BYTES, 0)] == [5, 6]
    assert [each.entry.seq for each in find_later_records(data, HEADER_BYTES + 1, 0)] == [6]


def test_search_leaves_out_earlier_seqs_and_damaged_records() -> None:
    data = segment(record(5), record(6)[:-1] + b"?", record(4), record(7))
    assert [each.entry.seq for each in find_later_records(data, 0, 5)] == [7]


@pytest.mark.parametrize("seq", [1, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**64 - 1])
@pytest.mark.parametrize("ops", [1, 15, 16, 65536])
def test_search_knows_every_form_that_a_payload_can_begin_with(seq: int, ops: int) -> None:
    for time_ms in (0, 1_700_000_000_000):
        body = EntryEncoder().encode(Entry(seq, EPOCH, time_ms, (delete(b"k"),) * ops))
        (found,) = find_later_records(b"??" + encode_record(log_record(body), marked=False), 0, 0)
        assert (found.offset, found.entry.seq, len(found.entry.ops)) == (2, seq, ops)


def test_search_is_not_misled_by_text_that_looks_like_lengths() -> None:
    """Every seventh byte of this text looks like the begin of a record of ten million bytes."""
    value = b'"' + "—abcd—".encode() * 100 + b'"'
    records = [record(seq, value=value) for seq in range(1, 16_000)]
    data = segment(*records, first_seq=1)
    assert len(data) > 16_000_000
    # Checking a CRC for each would take more than an hour, which the timeout of every test forbids.
    assert sum(1 for _ in find_later_records(data, HEADER_BYTES + RECORD_HEADER_BYTES, 0)) == len(records) - 1
