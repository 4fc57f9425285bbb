"""Frames as bytes: the encoder, the decoder fed in pieces, limits, and how a decoder dies. FORMAT.md's examples."""

import re
import tracemalloc

import pytest

from kvnode.protocol.codec import LENGTH_BYTES, MAX_FRAME_BYTES, FrameDecoder, encode
from kvnode.protocol.errors import LocalProtocolError, RemoteProtocolError
from kvnode.protocol.fields import LogRecord
from kvnode.protocol.messages import (
    LAYOUTS,
    Entries,
    Error,
    FrameType,
    Hello,
    Message,
    Ping,
    Purpose,
    Read,
    ReadResult,
    SnapshotChunk,
    Status,
    StatusResult,
    Write,
)
from kvnode.protocol.types import Entry, Epoch, delete, put
from support.documents import fenced_blocks, parse_hex
from support.frames import SAMPLES, log_record
from support.project import ROOT

PING = encode(Ping(1, 2))

ENCODED = {number: encode(sample) for number, sample in SAMPLES.items()}


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def fed(*chunks: bytes, max_frame_bytes: int = MAX_FRAME_BYTES) -> FrameDecoder:
    decoder = FrameDecoder(max_frame_bytes)
    for chunk in chunks:
        decoder.feed(chunk)
    return decoder


# ---- the encoder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "frame"),
    [
        (Ping(1, 2), "00000004 93 04 01 02"),
        (Status(2**64 - 1), "0000000b 92 0e cf ffffffffffffffff"),
        (Error("x", "ä"), "00000007 93 03 a1 78 a2 c3a4"),
        (StatusResult(1, b"{}"), "00000007 93 0f 01 c4 02 7b7d"),
        (SnapshotChunk(0, b"d"), "00000006 93 0a 00 c4 01 64"),
        (Entries((LogRecord(5, b"p"),)), "00000008 92 07 91 92 05 c4 01 70"),
        (
            Write(1, (put(b"k", b"1"), delete(b"k")), None, 0),
            "00000014 95 0c 01 92 94 01 c4 01 6b 00 c4 01 31 92 02 c4 01 6b c0 00",
        ),
        (Read(1, b"k", Epoch(0), 0, 0), "00000009 96 10 01 c4 01 6b 00 00 00"),
        (
            ReadResult(1, Epoch(2), 3, b"1", Epoch(4), 5, None, None, None),
            "0000000d 9a 11 01 02 03 c4 01 31 04 05 c0 c0 c0",
        ),
        (
            ReadResult(1, Epoch(0), 0, None, Epoch(0), 0, "x", "", b"{}"),
            "0000000f 9a 11 01 00 00 c0 00 00 a1 78 a0 c4 02 7b7d",
        ),
    ],
    ids=lambda each: "" if isinstance(each, str) else each.TYPE.name,
)
def test_encoded_frames_byte_for_byte(message: Message, frame: str) -> None:
    assert encode(message) == bytes.fromhex(frame)


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=lambda sample: sample.TYPE.name)
def test_the_decoder_gives_back_what_was_encoded(sample: Message) -> None:
    assert list(fed(encode(sample))) == [sample]


def test_a_frame_at_its_limit_is_encoded_and_one_past_it_is_not() -> None:
    size = len(encode(StatusResult(1, b"x" * 200))) - LENGTH_BYTES
    assert len(encode(StatusResult(1, b"x" * 200), max_frame_bytes=size)) == LENGTH_BYTES + size
    with pytest.raises(LocalProtocolError) as caught:
        encode(StatusResult(1, b"x" * 201), max_frame_bytes=size)
    assert caught.value.message == f"STATUS_RESULT: the frame has {size + 1} bytes, over the limit of {size}"


def test_text_that_utf_8_cannot_carry_is_not_encoded() -> None:
    with pytest.raises(LocalProtocolError, match=r"ERROR: cannot be packed: .* surrogates not allowed"):
        encode(Error("x", "\ud800"))


def test_a_field_out_of_range_is_not_encoded() -> None:
    with pytest.raises(LocalProtocolError, match=r"PING\.last_seq: expected a whole number"):
        encode(Ping(2**64, 0))


# ---- the decoder, piece by piece ---------------------------------------------------------------------------------


def test_every_cut_of_a_stream_of_all_types_gives_the_same_messages() -> None:
    sent = list(SAMPLES.values())
    stream = b"".join(map(encode, sent))
    for cut in range(len(stream) + 1):
        decoder = fed(stream[:cut])
        found = list(decoder)
        decoder.feed(stream[cut:])
        assert found + list(decoder) == sent
        assert decoder.pending_bytes == 0
        decoder.end()


def test_a_message_is_there_as_soon_as_its_last_byte_is() -> None:
    decoder = FrameDecoder()
    for byte in PING[:-1]:
        decoder.feed(bytes([byte]))
        assert list(decoder) == []
    assert decoder.pending_bytes == len(PING) - 1
    decoder.feed(memoryview(PING)[-1:])
    assert list(decoder) == [Ping(1, 2)]


def test_an_iteration_may_be_left_and_fed_into() -> None:
    decoder = fed(PING, encode(Status(3)))
    first = iter(decoder)
    assert next(first) == Ping(1, 2)
    assert decoder.pending_bytes == len(encode(Status(3)))
    decoder.feed(encode(Status(4)))
    assert list(decoder) == [Status(3), Status(4)]
    assert list(first) == []


def test_a_large_frame_in_single_bytes() -> None:
    """Takes minutes if every byte, or every look at what is there, copies what came before."""
    sent = StatusResult(1, bytes(1_000_000))
    decoder = FrameDecoder()
    found: list[Message] = []
    for byte in encode(sent):
        decoder.feed(bytes((byte,)))
        found.extend(decoder)
    assert found == [sent]


def test_many_small_frames_in_one_chunk() -> None:
    """Takes minutes if every message copies what is behind it."""
    decoder = fed(PING * 200_000)
    assert sum(1 for _ in decoder) == 200_000
    assert decoder.pending_bytes == 0


def test_an_announced_frame_costs_no_memory_before_it_comes() -> None:
    decoder = FrameDecoder()
    tracemalloc.start()
    try:
        decoder.feed(MAX_FRAME_BYTES.to_bytes(LENGTH_BYTES, "big") + b"x")
        assert list(decoder) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


# ---- limits ------------------------------------------------------------------------------------------------------


def test_a_frame_at_the_limit_is_taken_and_one_past_it_is_refused_by_its_length() -> None:
    size = len(PING) - LENGTH_BYTES
    assert list(fed(PING, max_frame_bytes=size)) == [Ping(1, 2)]
    with pytest.raises(RemoteProtocolError) as caught:
        list(fed(PING[:LENGTH_BYTES], max_frame_bytes=size - 1))
    assert caught.value.message == f"a frame announces {size} bytes, over the limit of {size - 1}"


def test_the_limit_may_change_between_frames() -> None:
    large = encode(StatusResult(1, bytes(1000)))
    decoder = fed(PING, large, max_frame_bytes=100)
    messages = iter(decoder)
    assert next(messages) == Ping(1, 2)
    decoder.max_frame_bytes = 2000
    assert next(messages) == StatusResult(1, bytes(1000))
    decoder.max_frame_bytes = 100
    decoder.feed(large)
    with pytest.raises(RemoteProtocolError, match="over the limit of 100"):
        next(messages)


def test_a_frame_of_4_gib_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="announces 4294967295 bytes, over the limit of 67108864"):
        list(fed(b"\xff\xff\xff\xff"))


def test_a_frame_without_a_body_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="frame of length 0"):
        list(fed(bytes(4)))


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n", b"POST /put HTTP/1.1\r\n", b"HTTP/1.1 400 "])
def test_http_is_recognized(start: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        list(fed(start))
    assert caught.value.hint == "these bytes look like HTTP, which has a port of its own"


# ---- what is no frame --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"\xc1", "frame is not msgpack: "),
        (b"\x93\x04\x01", "frame is not msgpack: Unpack failed: incomplete input"),
        (b"\x93\x04\x01\x02\x00", "frame is not msgpack: unpack(b) received extra data."),
        (b"\xdd\xff\xff\xff\xff", "frame is not msgpack: "),
        (b"\xdb\xff\xff\xff\xffx", "frame is not msgpack: "),
        (b"\x91" * 5000, "frame is not msgpack: "),
        (b"\x93\x03\xa1x\xa1\xff", "frame is not msgpack: 'utf-8' codec can't decode"),
        (b"\x81\x04\x01", "frame is not msgpack: a map, and there are only arrays"),
        (b"\x94\x04\x01\x02\x80", "frame is not msgpack: a map, and there are only arrays"),
        (b"\x92\x0e\xd7\xff" + b"\xff" * 8, "frame is not msgpack: "),
        (b"\x04", "frame: expected an array that begins with a type number, got 4"),
        (b"\x90", "frame: expected an array that begins with a type number, got an array of 0"),
        (b"\x91\x63", "frame of unknown type: expected 1 to 17, got 99"),
        (b"\x92\x0e\xc7\x03\x05abc", "STATUS.request_id: expected a whole number from 0 to"),
        (b"\x92\x04\x01", "PING.time_ms: missing"),
    ],
    ids=lambda each: each[:8].hex() if isinstance(each, bytes) else "",
)
def test_a_body_that_is_no_frame(body: bytes, text: str) -> None:
    decoder = fed(PING, framed(body), PING)
    messages = iter(decoder)
    assert next(messages) == Ping(1, 2)
    with pytest.raises(RemoteProtocolError) as caught:
        next(messages)
    assert caught.value.message.startswith(text)
    assert caught.value.code == "protocol_error"


@pytest.mark.parametrize("number", [FrameType.READ, FrameType.READ_RESULT])
def test_to_a_node_of_before_reads_they_are_no_frames(monkeypatch: pytest.MonkeyPatch, number: FrameType) -> None:
    """Which is why they are for those who announce that they understand them."""
    old = {each: layout for each, layout in LAYOUTS.items() if each < FrameType.READ}
    monkeypatch.setattr("kvnode.protocol.codec.LAYOUTS", old)
    with pytest.raises(RemoteProtocolError) as caught:
        list(fed(ENCODED[number]))
    assert (caught.value.code, caught.value.message) == (
        "protocol_error",
        f"frame of unknown type: expected 1 to 15, got {int(number)}",
    )


def test_a_dead_decoder_repeats_its_error_and_holds_nothing() -> None:
    decoder = fed(bytes(4), PING)
    with pytest.raises(RemoteProtocolError) as first:
        list(decoder)
    assert decoder.pending_bytes == 0
    for again in (lambda: decoder.feed(PING), lambda: list(decoder), decoder.end):
        with pytest.raises(RemoteProtocolError) as caught:
            again()
        assert caught.value is first.value
    depth = len(caught.traceback)
    for _ in range(10):
        with pytest.raises(RemoteProtocolError) as caught:
            decoder.end()
    assert len(caught.traceback) <= depth


# ---- the end of the stream ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        (1, "the stream ends 1 bytes into a frame's length"),
        (4, f"the stream ends 4 bytes into a frame's {len(PING)} bytes"),
        (6, f"the stream ends 6 bytes into a frame's {len(PING)} bytes"),
    ],
)
def test_a_stream_that_ends_inside_a_frame(kept: int, text: str) -> None:
    decoder = fed(PING, PING[:kept])
    assert list(decoder) == [Ping(1, 2)]
    with pytest.raises(RemoteProtocolError) as caught:
        decoder.end()
    assert caught.value.message == text


# ---- FORMAT.md ---------------------------------------------------------------------------------------------------


DOCUMENT = ROOT / "protocol" / "FORMAT.md"

HELLO_EXAMPLE = Hello(
    min_version=1,
    max_version=1,
    cluster_id=b"",
    node_id=b"\x11" * 16,
    boot_id=b"\x22" * 16,
    name="",
    purpose=Purpose.OBSERVE,
    features=(),
    auth=b"",
    address="",
)
ENTRIES_EXAMPLE = Entries(
    (log_record(Entry(41, Epoch.parse("3.9f2c1a7b"), 1_700_000_000_000, (put(b"greeting", b'"hello"'),))),)
)
EXAMPLE_EPOCH = Epoch.parse("3.9f2c1a7b")
READ_EXAMPLE = Read(7, b"greeting", EXAMPLE_EPOCH, 41, 1000)
READ_RESULT_EXAMPLE = ReadResult(7, EXAMPLE_EPOCH, 41, b'"hello"', EXAMPLE_EPOCH, 42, None, None, None)

#: With the number of its block.
DOCUMENTED = [(1, HELLO_EXAMPLE), (2, ENTRIES_EXAMPLE), (3, READ_EXAMPLE), (4, READ_RESULT_EXAMPLE)]


def example(number: int) -> tuple[bytes, dict[int, str]]:
    """The bytes of a hex block, with what is said of them; block 0 is that of the entry."""
    return parse_hex(fenced_blocks(DOCUMENT, "hex")[number])


@pytest.mark.parametrize(("number", "message"), DOCUMENTED, ids=lambda each: getattr(each, "TYPE", each))
def test_the_documented_frames(number: int, message: Message) -> None:
    frame, remarks = example(number)
    assert encode(message) == frame
    assert list(fed(frame)) == [message]
    assert remarks[0] == f"length {len(frame) - LENGTH_BYTES}"
    assert remarks[LENGTH_BYTES + 1] == f"type {int(message.TYPE)}: {message.TYPE.name}"


def test_the_documented_entries_carry_the_documented_entry() -> None:
    entry, _ = example(0)
    (record,) = ENTRIES_EXAMPLE.records
    assert record.payload == entry
    _, remarks = example(2)
    assert remarks[8] == f"crc {record.crc:08x}"
    assert remarks[13] == f"payload: {len(entry)} bytes"


def test_all_examples_are_held_to_the_code() -> None:
    assert len(fenced_blocks(DOCUMENT, "hex")) == 1 + len(DOCUMENTED)


def test_every_frame_is_documented_with_its_number_and_fields() -> None:
    """The table of frames names each one, in order, with its fields in wire order."""
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \| (.*) \|$", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    documented = [(int(number), name, re.findall(r"`([a-z_]+)`", named)) for number, name, named in rows]
    assert documented == [
        (number, FrameType(number).name, [each.name for each in layout.fields]) for number, layout in LAYOUTS.items()
    ]
