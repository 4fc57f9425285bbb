"""FORMAT.md's example of an entry is what the code writes, byte for byte, and what it reads back."""

from kvnode.protocol.entry import EntryEncoder, decode_entry, payload_crc
from kvnode.protocol.types import OP_DELETE, OP_PUT, Entry, Epoch, put
from support.documents import fenced_blocks, parse_hex
from support.project import ROOT

DOCUMENT = ROOT / "protocol" / "FORMAT.md"

EXAMPLE = Entry(41, Epoch.parse("3.9f2c1a7b"), 1_700_000_000_000, (put(b"greeting", b'"hello"'),))


def test_entry_example_is_what_is_written_and_read_back() -> None:
    block = fenced_blocks(DOCUMENT, "hex")[0]
    payload, remarks = parse_hex(block)
    assert payload == EntryEncoder().encode(EXAMPLE)
    assert decode_entry(payload) == EXAMPLE
    assert f"Its CRC-32 is `{payload_crc(payload):08x}`." in DOCUMENT.read_text("utf-8")
    assert [remarks[offset] for offset in (1, 2, 11)] == ["seq 41", "epoch 3.9f2c1a7b", "time_ms 1700000000000"]


def test_example_in_the_segment_is_the_same_entry() -> None:
    block = fenced_blocks(DOCUMENT, "hex")[0]
    segment, _ = parse_hex(fenced_blocks(ROOT / "node" / "storage" / "FORMAT.md", "hex")[0])
    assert parse_hex(block)[0] in segment


def test_grammar_names_the_kinds() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert f"[ {OP_PUT}, key, expires_ms, value ]        put" in text
    assert f"[ {OP_DELETE}, key ]                           delete" in text
