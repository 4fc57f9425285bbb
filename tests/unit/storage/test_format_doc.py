"""FORMAT.md's worked examples are what the code writes, byte for byte, and what it reads back."""

import json
import re
import struct
from pathlib import Path
from zlib import crc32

import pytest

from kvnode.node.api import Record
from kvnode.node.storage.datadir import CleanStop, Identity, Layout, Member, Repair, StateFiles, Swap
from kvnode.node.storage.engine import Applied
from kvnode.node.storage.records import (
    APPLIED_KEY,
    DATA_PREFIX,
    FORMAT_KEY,
    decode_applied,
    decode_record,
    encode_applied,
)
from kvnode.node.storage.records import encode_header as encode_record_header
from kvnode.node.storage.segment import check_header, encode_header, encode_record, read_records, segment_name
from kvnode.protocol.entry import EntryEncoder
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import Entry, Epoch, History, Position, Reign, delete, put
from support.documents import fenced_blocks, parse_hex
from support.memory_disk import MemoryDisk
from support.project import ROOT
from support.storage_rig import log_record

DOCUMENT = ROOT / "node" / "storage" / "FORMAT.md"

CLUSTER = bytes.fromhex("5b0c7a54d1e94f0a9d3f6a2b8c1e7f90")
NODE = "8f2d6c0e4b1a49d7a3c5e7f9012b3d4c"
EPOCH = Epoch.parse("3.9f2c1a7b")

FIRST = Entry(41, EPOCH, 1_700_000_000_000, (put(b"greeting", b'"hello"'),))
SECOND = Entry(42, EPOCH, 1_700_000_000_007, (put("größe".encode(), b"1.0"), delete(b"greeting")))


def hex_blocks() -> list[tuple[bytes, dict[int, str]]]:
    return [parse_hex(block) for block in fenced_blocks(DOCUMENT, "hex")]


# ---- the segment -----------------------------------------------------------------------------------------------


def test_segment_example_is_what_is_written() -> None:
    segment, _ = hex_blocks()[0]
    encoder = EntryEncoder()
    first, second = log_record(encoder.encode(FIRST)), log_record(encoder.encode(SECOND))
    written = [encode_record(first, marked=True), encode_record(second, marked=False)]
    assert segment == encode_header(CLUSTER, 41) + b"".join(written)


def test_segment_example_is_read_back() -> None:
    segment, _ = hex_blocks()[0]
    assert check_header(Path(segment_name(41)), segment, CLUSTER) == 41
    records = list(read_records(segment, 41))
    assert [(record.marked, record.entry) for record in records] == [(True, FIRST), (False, SECOND)]
    assert records[-1].end == len(segment) == 149
    assert f"ends at offset {hex(len(segment))}, which is {len(segment)}" in DOCUMENT.read_text("utf-8")


def test_segment_example_explains_every_field() -> None:
    segment, remarks = hex_blocks()[0]
    first, second = read_records(segment, 41)
    expected = {
        0: "magic: KVNODWAL",
        8: "format version 1",
        12: "cluster id",
        28: "first seq 41",
        36: "CRC-32 of the header",
        first.offset: f"marked; length {len(first.payload)}",
        first.offset + 4: "CRC-32 of the payload",
        first.offset + 8: "payload: array of 4",
        second.offset: f"not marked; length {len(second.payload)}",
        second.offset + 4: "CRC-32 of the payload",
        second.offset + 8: "payload: array of 4",
    }
    assert {offset: remarks[offset] for offset in expected} == expected


def table_after(heading: str) -> list[list[str]]:
    """The rows of the first table behind a text."""
    text = DOCUMENT.read_text("utf-8").partition(heading)[2]
    rows = re.search(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert rows is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows[0].splitlines()][2:]


def test_header_table_is_the_layout() -> None:
    header = encode_header(CLUSTER, 41)
    rows = [(int(offset), int(size), field) for offset, size, field in table_after("**Header**, 40 bytes:")]
    assert [offset for offset, _, _ in rows] == [sum(size for _, size, _ in rows[:i]) for i in range(len(rows))]
    assert sum(size for _, size, _ in rows) == len(header)
    fields = [header[offset : offset + size] for offset, size, _ in rows]
    assert fields == [b"KVNODWAL", struct.pack(">I", 1), CLUSTER, struct.pack(">Q", 41), crc32(header[:36]).to_bytes(4)]


# ---- small files -----------------------------------------------------------------------------------------------

HISTORY = History((Reign(Epoch.parse("1.41c6a3f0"), 1), Reign(EPOCH, 41)))
SYNC = bytes.fromhex("d41d8cd98f00b204e9800998ecf8427e")
LATEST = Position(EPOCH, 57)

EXAMPLES = {
    "node.json": Identity(NODE, "n1", CLUSTER.hex(), "primary"),
    "history": HISTORY,
    "members": (Member(NODE, "n1"),),
    "checkpoint": 40,
    "clean": CleanStop(42, segment_name(41), 149),
    "repair": Repair(36, 42),
    "serve_from": LATEST,
    "incoming/sync": Incoming(SYNC, Position(EPOCH, 42), LATEST),
    "swap": Swap(SYNC, Position(EPOCH, 42), LATEST, HISTORY, (Member(NODE, "n1", "10.0.0.1:7001"),)),
}


def example_of(name: str) -> bytes:
    """The JSON line that follows the text which begins with the file's name."""
    text = DOCUMENT.read_text("utf-8").partition("## Small files")[2]
    match = re.search(rf"^`{re.escape(name)}`:.*?^```json\n(.*?\n)```$", text, re.MULTILINE | re.DOTALL)
    assert match is not None
    return match[1].encode()


@pytest.mark.parametrize("name", EXAMPLES)
def test_small_file_example_is_what_is_written_and_read_back(name: str) -> None:
    disk, content = MemoryDisk(), EXAMPLES[name]
    layout = Layout(Path("/d"))
    files = StateFiles(disk, layout)
    access = {
        "node.json": (files.save_identity, files.load_identity),
        "history": (files.save_history, files.load_history),
        "members": (files.save_members, files.load_members),
        "checkpoint": (files.save_checkpoint, files.load_checkpoint),
        "clean": (files.save_clean_stop, files.load_clean_stop),
        "repair": (files.save_repair, files.load_repair),
        "serve_from": (files.save_serve_from, files.load_serve_from),
        "incoming/sync": (files.save_incoming, files.load_incoming),
        "swap": (files.save_swap, files.load_swap),
    }
    save, load = access[name]
    disk.make_directory((layout.root / name).parent)
    save(content)  # type: ignore[operator]
    assert disk.snapshot() == {layout.root / name: example_of(name)}
    assert load() == content


@pytest.mark.parametrize("name", EXAMPLES)
def test_checksum_can_be_computed_from_the_description_alone(name: str) -> None:
    state = json.loads(example_of(name))
    checksum = state.pop("crc32")
    text = json.dumps(state, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert checksum == f"{crc32(text.encode()):08x}"


def test_every_name_of_the_data_directory_is_described() -> None:
    text = DOCUMENT.read_text("utf-8")
    layout = Layout(Path())
    names = {name for name, member in vars(Layout).items() if isinstance(member, property)}
    for name in names:
        assert f"`{getattr(layout, name)}" in text


# ---- LevelDB -------------------------------------------------------------------------------------------------------


def test_stored_record_example() -> None:
    stored, _ = hex_blocks()[1]
    assert stored == encode_record_header(41, EPOCH, 0) + b'"hello"'
    assert decode_record(stored, Epoch) == Record(FIRST.position, 0, b'"hello"')


def test_applied_example() -> None:
    stored, _ = hex_blocks()[2]
    applied = Applied(Position(EPOCH, 42), synced=True, time_ms=SECOND.time_ms)
    assert stored == encode_applied(applied)
    assert decode_applied(stored) == applied


def test_key_table() -> None:
    assert [row[0] for row in table_after("## LevelDB")] == [
        f"`{DATA_PREFIX.decode()}` + the key's bytes",
        f"`{APPLIED_KEY.decode()}`",
        f"`{FORMAT_KEY.decode()}`",
    ]
