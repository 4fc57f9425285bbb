"""The codec under any chunking and any bytes: messages come out as they went in, or the remote error is raised.

Nothing but `RemoteProtocolError` may ever leave the decoder: everything else would go through these tests.
"""

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.protocol.codec import LENGTH_BYTES, FrameDecoder, encode, encode_trusted
from kvnode.protocol.messages import LAYOUTS, FrameType, Message
from support.frames import BY_TYPE, decode_all, messages, plain

#: How a test cuts a stream: sizes of its first chunks; the rest follows in one.
cuts = st.lists(st.integers(0, 40), max_size=30)

#: Single values, also of kinds that no field of a frame has.
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(),
    st.builds(msgpack.ExtType, st.integers(0, 127), st.binary()),
    st.builds(msgpack.Timestamp, st.integers(0, 2**34), st.integers(0, 999_999_999)),
)
arrays = st.recursive(scalars, lambda inner: st.lists(inner, max_size=5), max_leaves=10)
#: Anything that msgpack can pack, maps included, which frames never hold.
packable = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.text("ab"), inner, max_size=2)),
    max_leaves=10,
)


def chunked(data: bytes, sizes: list[int]) -> list[bytes]:
    chunks = []
    for size in sizes:
        chunks.append(data[:size])
        data = data[size:]
    return [*chunks, data]


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def check_contract(data: bytes, sizes: list[int]) -> None:
    """Any chunking gives what the whole stream in one chunk gives; what was accepted can be sent and read again."""
    found, error = decode_all(chunked(data, sizes))
    found_at_once, error_at_once = decode_all([data])
    assert found == found_at_once
    assert str(error) == str(error_at_once)
    for message in found:
        assert decode_all([encode(message)]) == ([message], None)
        str(message)


@settings(deadline=None)
@given(st.lists(messages, max_size=5), cuts)
def test_messages_survive_any_chunking(sent: list[Message], sizes: list[int]) -> None:
    assert decode_all(chunked(b"".join(map(encode, sent)), sizes)) == (sent, None)


@settings(deadline=None)
@given(st.lists(messages, min_size=1, max_size=3), st.data())
def test_a_cut_stream_gives_the_whole_frames_before_the_cut(sent: list[Message], data: st.DataObject) -> None:
    frames = [encode(message) for message in sent]
    stream = b"".join(frames)
    kept = data.draw(st.integers(0, len(stream)), label="kept bytes")
    decoder = FrameDecoder()
    decoder.feed(stream[:kept])
    found = list(decoder)
    assert found == sent[: len(found)]
    taken = sum(map(len, frames[: len(found)]))
    assert decoder.pending_bytes == kept - taken
    assert len(found) == len(sent) or taken + len(frames[len(found)]) > kept


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), cuts)
def test_any_bytes(data: bytes, sizes: list[int]) -> None:
    check_contract(data, sizes)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), cuts)
def test_any_body(body: bytes, sizes: list[int]) -> None:
    check_contract(framed(body), sizes)


@settings(deadline=None, max_examples=300)
@given(packable, cuts)
def test_any_msgpack(value: object, sizes: list[int]) -> None:
    check_contract(framed(msgpack.packb(value)), sizes)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(LAYOUTS)), st.lists(packable, max_size=11), cuts)
def test_any_fields_behind_a_type_number(number: int, fields: list[object], sizes: list[int]) -> None:
    check_contract(framed(msgpack.packb([number, *fields])), sizes)


@settings(deadline=None, max_examples=300)
@given(messages, st.data(), packable, cuts)
def test_a_frame_with_one_field_replaced(
    message: Message, data: st.DataObject, value: object, sizes: list[int]
) -> None:
    wire = plain(message)
    wire[data.draw(st.integers(0, len(wire) - 1), label="index")] = value
    check_contract(framed(msgpack.packb(wire)), sizes)


@settings(deadline=None, max_examples=300)
@given(st.lists(messages, min_size=1, max_size=3), st.data(), cuts)
def test_mutated_streams(sent: list[Message], data: st.DataObject, sizes: list[int]) -> None:
    stream = bytearray(b"".join(map(encode, sent)))
    for _ in range(data.draw(st.integers(1, 4), label="mutations")):
        at = data.draw(st.integers(0, len(stream)), label="at")
        removed = data.draw(st.integers(0, 4), label="removed")
        stream[at : at + removed] = data.draw(st.binary(max_size=4), label="inserted")
    check_contract(bytes(stream), sizes)


@settings(deadline=None, max_examples=200)
@given(messages, st.data(), cuts)
def test_mutated_bodies_behind_a_right_length(message: Message, data: st.DataObject, sizes: list[int]) -> None:
    body = bytearray(encode(message)[LENGTH_BYTES:])
    at = data.draw(st.integers(0, len(body) - 1), label="at")
    body[at] = data.draw(st.integers(0, 255), label="byte")
    check_contract(framed(bytes(body)), sizes)


@settings(deadline=None)
@given(messages, st.lists(arrays, max_size=3))
def test_trailing_fields_are_ignored(message: Message, trailing: list[object]) -> None:
    body = msgpack.packb([*plain(message), *trailing])
    assert decode_all([framed(body)]) == ([message], None)


@settings(deadline=None)
@given(st.one_of(BY_TYPE[FrameType.READ_RESULT], BY_TYPE[FrameType.WRITE_RESULT]))
def test_frames_of_trusted_values_are_those_of_the_messages(message: Message) -> None:
    values = LAYOUTS[message.TYPE].values(message)
    assert encode_trusted(message.TYPE, *values) == encode(message)
