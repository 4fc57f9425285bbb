"""The small files' common form: written durably, checked, versioned, refused when in doubt."""

import errno
import json
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from kvnode.node.errors import FileDamaged, UnknownFormat
from kvnode.node.storage.statefile import encode_state, load_state, save_state
from support.crash_plan import DROPPED, KEPT, CrashPlan, SimulatedCrash
from support.memory_disk import MemoryDisk

PATH = Path("/d/state")

STATES: list[dict[str, Any]] = [
    {},
    {"seq": 0},
    {"seq": 2**63, "name": 'größe \U0001f600 \u0000 " \\', "none": None, "flags": [True, False]},
    {"b": 1, "a": {"z": 1, "y": [1, 2, {"x": 1.5}]}},
]


def disk_with(content: bytes | None) -> MemoryDisk:
    disk = MemoryDisk()
    disk.make_directory(PATH.parent)
    disk.sync_directory(PATH.parent.parent)
    if content is not None:
        disk.put_file(PATH, content)
    return disk


@pytest.mark.parametrize("state", STATES)
def test_state_is_read_back(state: dict[str, Any]) -> None:
    disk = disk_with(None)
    save_state(disk, PATH, state)
    assert load_state(disk, PATH) == state
    assert load_state(disk.after_crash(DROPPED), PATH) == state
    assert disk.open_handles() == []


def test_missing_file_is_none() -> None:
    assert load_state(disk_with(None), PATH) is None


def test_content_is_one_line_of_json_with_version_and_checksum() -> None:
    content = encode_state({"b": 1, "a": "ü"})
    assert content.endswith(b"\n")
    assert content.count(b"\n") == 1
    state = json.loads(content)
    checksum = state.pop("crc32")
    assert state == {"format": 1, "b": 1, "a": "ü"}
    canonical = '{"a":"ü","b":1,"format":1}'
    assert checksum == f"{crc32(canonical.encode()):08x}"


def test_order_and_blanks_do_not_matter() -> None:
    state = json.loads(encode_state({"b": 1, "a": 2}))
    reordered = json.dumps(dict(sorted(state.items())), indent=1).encode()
    assert load_state(disk_with(reordered), PATH) == {"b": 1, "a": 2}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"format":1}',
        b'{"format":1,"crc32":"00000000"}',
        b'{"format":1,"crc32":0}',
        b'{"format":1,"crc32":null}',
        b'{"format":1,"seq":1,"crc32":"78e018c2"}',
        b"\xff\xfe",
        b'{"a":"\xff"}',
        b'{"a":' + b"9" * 400 + b"}",
        b'{"a":1e999}',
        b"[" * 100_000,
        encode_state({"seq": 40})[:-2],
        encode_state({"seq": 40}) * 2,
    ],
)
def test_damaged_file_is_refused_naming_it(content: bytes) -> None:
    with pytest.raises(FileDamaged, match=r"^/d/state: damaged: ") as raised:
        load_state(disk_with(content), PATH)
    assert raised.value.path == PATH


def test_nesting_is_damage_at_whatever_depth_it_becomes_too_deep() -> None:
    """Writing a value for its checksum needs another depth than reading it did."""
    for depth in range(100, 1500, 7):
        with pytest.raises(FileDamaged):
            load_state(disk_with(b'{"a":' * depth + b"1" + b"}" * depth), PATH)


def test_every_flipped_bit_is_noticed() -> None:
    content = encode_state({"seq": 40, "name": "n1"})
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            state = load_state(disk_with(bytes(flipped)), PATH)
        except FileDamaged:
            continue
        # The line feed at the end can become another blank.
        assert (state, bit // 8) == ({"seq": 40, "name": "n1"}, len(content) - 1)


def test_every_shorter_file_is_refused_but_for_the_line_feed() -> None:
    content = encode_state({"seq": 40})
    for size in range(len(content) - 1):
        with pytest.raises(FileDamaged):
            load_state(disk_with(content[:size]), PATH)
    assert load_state(disk_with(content[:-1]), PATH) == {"seq": 40}


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_unknown_version_is_refused_naming_both(version: object) -> None:
    body = {"format": version, "seq": 1}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    content = json.dumps({**body, "crc32": f"{crc32(text.encode()):08x}"}).encode()
    with pytest.raises(UnknownFormat, match=rf"^/d/state: format version {version}, this program knows version 1"):
        load_state(disk_with(content), PATH)


def test_crash_at_any_call_leaves_the_old_or_the_new_content() -> None:
    disk = disk_with(None)
    save_state(disk, PATH, {"seq": 1})
    calls = len(disk.calls)
    save_state(disk, PATH, {"seq": 2})
    steps = len(disk.calls) - calls
    assert [call.operation for call in disk.calls[calls:]] == ["create", "write_at", "sync", "rename", "sync_directory"]
    for crash_at in range(1, steps + 1):
        for survival in (KEPT, DROPPED):
            before = disk_with(encode_state({"seq": 1}))
            before.plan = CrashPlan(crash_at=crash_at, crash_partial=0.5)
            with pytest.raises(SimulatedCrash):
                save_state(before, PATH, {"seq": 2})
            assert load_state(before.after_crash(survival), PATH) in ({"seq": 1}, {"seq": 2})


@pytest.mark.parametrize("operation", ["create", "write_at", "sync", "rename"])
def test_failure_leaves_the_old_content(operation: str) -> None:
    disk = disk_with(encode_state({"seq": 1}))
    disk.plan.fail((operation, "*"), errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        save_state(disk, PATH, {"seq": 2})
    assert load_state(disk, PATH) == {"seq": 1}
    assert disk.open_handles() == []
