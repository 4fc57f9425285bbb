"""Entries as bytes, for any entry and for any bytes."""

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from kvnode.protocol.entry import NOT_AN_ENTRY, EntryEncoder, LoggedEntry, decode_entry, decode_logged
from kvnode.protocol.errors import EntryDamaged
from kvnode.protocol.types import Delete, Entry, Epoch, Put, delete, put
from support.logged import entry_of

U64 = st.integers(0, 2**64 - 1)
KEYS = st.binary(min_size=1, max_size=50)
OPS = st.one_of(
    st.builds(put, KEYS, st.binary(max_size=300), U64),
    st.builds(delete, KEYS),
)
ENTRIES = st.builds(
    Entry, st.integers(1, 2**64 - 1), U64.map(Epoch), U64, st.lists(OPS, min_size=1, max_size=20).map(tuple)
)

#: msgpack values of all kinds, so that shapes close to an entry's come up.
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(),
        st.text(max_size=5),
        st.binary(max_size=5),
        st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=5)),
    ),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)
SHAPES = st.tuples(
    st.integers(-1, 3) | VALUES,
    st.integers(-1, 3) | VALUES,
    st.integers(-1, 3) | VALUES,
    st.lists(st.lists(st.integers(0, 3) | st.binary(max_size=3) | VALUES, max_size=5) | VALUES, max_size=3) | VALUES,
)


def check_decodes_or_is_damaged(payload: bytes) -> None:
    try:
        logged = decode_logged(payload)
    except NOT_AN_ENTRY:
        logged = None
    try:
        entry = decode_entry(payload)
    except EntryDamaged:
        assert logged is None
        return
    assert type(logged) is LoggedEntry
    assert entry_of(logged) == entry
    assert type(entry) is Entry
    assert type(entry.epoch) is Epoch
    assert 1 <= entry.seq < 2**64
    assert 0 <= entry.epoch < 2**64
    assert 0 <= entry.time_ms < 2**64
    assert entry.ops
    for op in entry.ops:
        assert isinstance(op.key, bytes)
        assert op.key
        match op:
            case Put():
                assert (op.kind, type(op.value)) == (1, bytes)
                assert 0 <= op.expires_ms < 2**64
            case Delete():
                assert op.kind == 2
    # What was accepted means the same when it is written again.
    assert decode_entry(EntryEncoder().encode(entry)) == entry


@given(ENTRIES)
def test_entry_is_read_back(entry: Entry) -> None:
    payload = EntryEncoder().encode(entry)
    decoded = decode_entry(payload)
    assert decoded == entry
    assert EntryEncoder().encode(decoded) == payload


@given(ENTRIES, ENTRIES)
def test_encoder_keeps_nothing_of_the_entry_before(first: Entry, second: Entry) -> None:
    encoder = EntryEncoder()
    encoder.encode(first)
    assert encoder.encode(second) == EntryEncoder().encode(second)


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_damaged(payload: bytes) -> None:
    check_decodes_or_is_damaged(payload)


@given(SHAPES | VALUES)
def test_any_msgpack_decodes_or_is_damaged(value: object) -> None:
    check_decodes_or_is_damaged(msgpack.packb(value, use_bin_type=True))


@given(ENTRIES, st.data())
def test_any_change_of_an_entry_decodes_or_is_damaged(entry: Entry, data: st.DataObject) -> None:
    payload = EntryEncoder().encode(entry)
    start = data.draw(st.integers(0, len(payload)))
    stop = data.draw(st.integers(start, min(len(payload), start + 10)))
    changed = payload[:start] + data.draw(st.binary(max_size=10)) + payload[stop:]
    check_decodes_or_is_damaged(changed)
