"""The engine against a sorted dict: any writes, flushes and reopenings, and then any range and any reads."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.node.api import KeyRange
from kvnode.protocol.types import Op, Put, delete, put
from support.engines import (
    PLAIN,
    SMALL,
    entry,
    expect_range,
    fast_directory,
    opened,
    read_range,
    read_values,
    read_values_after,
)

#: Short keys over few bytes, so that prefixes, bounds and neighbours meet; the extremes among them.
_KEYS = st.lists(st.sampled_from([0x00, 0x61, 0x62, 0xFE, 0xFF]), min_size=1, max_size=4).map(bytes)
_BOUNDS = st.none() | _KEYS
_VALUES = st.integers(0, 10**6).map(lambda number: b"%d" % number) | st.integers(0, 255).map(lambda b: bytes([b]) * 400)
_OPS = st.one_of(st.builds(put, _KEYS, _VALUES, st.sampled_from([0, 1, 2**63])), st.builds(delete, _KEYS))
_RANGES = st.builds(
    KeyRange,
    first=_BOUNDS,
    last=_BOUNDS,
    prefix=st.just(b"") | _KEYS,
    limit=st.none() | st.integers(1, 20),
    reverse=st.booleans(),
)
#: A write of some operations, or what happens between writes.
_STEPS = st.lists(st.lists(_OPS, min_size=1, max_size=12) | st.sampled_from(["flush", "reopen"]), max_size=12)


@settings(deadline=None, max_examples=150)
@given(
    steps=_STEPS,
    wanted=st.lists(_RANGES, min_size=1, max_size=8),
    max_items=st.integers(1, 30),
    max_bytes=st.integers(1, 3000),
    keys=st.lists(_KEYS, max_size=5),
    compressed=st.booleans(),
)
def test_engine_agrees_with_a_sorted_dict(
    steps: list[list[Op] | str],
    wanted: list[KeyRange],
    max_items: int,
    max_bytes: int,
    keys: list[bytes],
    compressed: bool,
) -> None:
    factory = SMALL if compressed else PLAIN
    records: dict[bytes, bytes] = {}
    seq = 0
    with fast_directory() as directory:
        remaining = iter(steps)
        reopening = True
        while reopening:
            reopening = False
            with opened(factory, directory / "db") as engine:
                assert engine.applied.position.seq == seq
                for step in remaining:
                    if step == "reopen":
                        reopening = True
                        break
                    if isinstance(step, str):
                        assert engine.flush().seq == seq
                        continue
                    seq += 1
                    engine.write([entry(seq, step)], synced=True)
                    for op in step:
                        if isinstance(op, Put):
                            records[op.key] = op.value
                        else:
                            records.pop(op.key, None)
                for each in [KeyRange(), KeyRange(reverse=True), *wanted]:
                    assert read_range(engine, each, max_items) == expect_range(records, each)
                for after_key in [b"", *keys]:
                    expected, _ = expect_range(records, KeyRange(first=after_key + b"\0"))
                    assert read_values_after(engine, after_key, max_bytes) == expected
                asked = [*keys, *records]
                assert read_values(engine, asked) == [records.get(key) for key in asked]
                assert [engine.contains(key) for key in asked] == [key in records for key in asked]
