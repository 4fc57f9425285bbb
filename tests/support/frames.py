"""Frames of the peer protocol for tests: a sample of every type, and hypothesis strategies for all valid ones."""

from dataclasses import fields
from typing import Any

from hypothesis import strategies as st

from kvnode.protocol.codec import FrameDecoder
from kvnode.protocol.entry import EntryEncoder, payload_crc
from kvnode.protocol.errors import RemoteProtocolError
from kvnode.protocol.fields import U32_MAX, U64_MAX, LogRecord, Member
from kvnode.protocol.messages import (
    LAYOUTS,
    Ack,
    Entries,
    Error,
    FrameType,
    Hello,
    HistoryFrame,
    Message,
    Ping,
    Purpose,
    Read,
    ReadResult,
    Role,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    Status,
    StatusResult,
    Subscribe,
    Welcome,
    Write,
    WriteResult,
)
from kvnode.protocol.snapshot import SnapshotRecord, encode_chunk
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import Entry, Epoch, History, Op, Position, Reign, delete, put

ID = bytes(range(16))
OTHER_ID = bytes(range(16, 32))
EPOCH = Epoch.of(3, 0x9F2C1A7B)
HISTORY = History((Reign(Epoch.of(1, 7), 1), Reign(EPOCH, 40)))


def log_record(entry: Entry) -> LogRecord:
    """The entry as the log holds it."""
    payload = EntryEncoder().encode(entry)
    return LogRecord(payload_crc(payload), payload)


ENTRY = Entry(42, EPOCH, 1_700_000_000_123, (put(b"greeting", b'"hello"'), delete(b"gone")))

#: One message of every type.
SAMPLES: dict[FrameType, Message] = {
    sample.TYPE: sample
    for sample in (
        Hello(1, 1, ID, OTHER_ID, bytes(16), "web2", Purpose.REPLICA, ("ops.1", "ops.2"), b"secret", "10.0.0.2:7001"),
        Welcome(1, ID, OTHER_ID, "web1", Role.PRIMARY, HISTORY, 41, ()),
        Error("not_primary", "web2 is a replica\nof web1"),
        Ping(41, 1_700_000_000_000),
        Subscribe(Position(EPOCH, 41), Incoming(ID, Position(Epoch.of(1, 7), 12), Position(EPOCH, 50), b"greeting")),
        HistoryFrame(HISTORY, (Member(ID, "web1", "web1.lan:7001"), Member(OTHER_ID, "web2"))),
        Entries((log_record(ENTRY), log_record(ENTRY._replace(seq=43)))),
        Ack(43, 42, 41),
        SnapshotBegin(ID, Position(EPOCH, 41), Position(Epoch.of(1, 7), 12), resumed=True),
        encode_chunk([SnapshotRecord(b"a", 1, EPOCH, 0, b"1"), SnapshotRecord(b"b", 2, EPOCH, 99, b'"x"')]),
        SnapshotEnd(Position(EPOCH, 41), 2),
        Write(7, ENTRY.ops, None, 5000),
        WriteResult(7, EPOCH, 42, 1, None, None, None),
        Status(8),
        StatusResult(8, b'{"name":"web1"}'),
        Read(9, b"greeting", EPOCH, 41, 1500),
        ReadResult(9, EPOCH, 41, b'"hello"', EPOCH, 42, None, None, None),
    )
}

u32 = st.integers(0, U32_MAX)
u64 = st.integers(0, U64_MAX)
ids = st.binary(min_size=16, max_size=16)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)
tokens = st.from_regex(r"[!-~]{1,64}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]))
_hosts = st.one_of(st.from_regex(r"[!-9;-Z\\^-~]+", fullmatch=True), st.ip_addresses(v=6).map("[{}]".format))
addresses = st.one_of(
    st.just(""), st.builds("{}:{}".format, _hosts.filter(lambda host: len(host) < 290), st.integers(1, 65535))
)
epochs = u64.map(Epoch)
positions = st.builds(Position, epochs, u64)


@st.composite
def histories(draw: st.DrawFn) -> History:
    terms = sorted(draw(st.sets(st.integers(1, U32_MAX), max_size=4)))
    firsts = sorted(draw(st.sets(st.integers(1, U64_MAX), min_size=len(terms), max_size=len(terms))))
    return History(tuple(Reign(Epoch.of(term, draw(u32)), at) for term, at in zip(terms, firsts, strict=True)))


json_texts = st.sampled_from(
    [b"1", b"1.0", b'"x"', b"null", b'{"a": [1, 2]}', b'{\n  "a": 1\r\n}', b'"\\ud800"', b'"\xc3\xa4"', b"-0", b"1e400"]
)
ops: st.SearchStrategy[Op] = st.one_of(
    st.builds(put, texts.filter(bool).map(str.encode), json_texts, st.one_of(st.just(0), st.integers(0, 2**45), u64)),
    st.builds(delete, st.binary(min_size=1)),
    st.builds(put, st.binary(min_size=1), st.binary(), u64),
)
op_tuples = st.lists(ops, min_size=1, max_size=4).map(tuple)
entries = st.builds(Entry, st.integers(1, U64_MAX), epochs, st.one_of(st.integers(0, 2**45), u64), op_tuples)
log_records = st.one_of(entries.map(log_record), st.builds(LogRecord, u32, st.binary(min_size=1)))
snapshot_records = st.builds(
    SnapshotRecord, st.binary(min_size=1), st.integers(1, U64_MAX), epochs, u64, st.one_of(json_texts, st.binary())
)


@st.composite
def hellos(draw: st.DrawFn) -> Hello:
    low, high = sorted((draw(st.integers(1, U32_MAX)), draw(st.integers(1, U32_MAX))))
    purpose = draw(st.sampled_from(Purpose))
    name = draw(names if purpose is Purpose.REPLICA else st.one_of(names, st.just("")))
    cluster_id = draw(st.one_of(ids, st.just(b"")))
    features = tuple(draw(st.lists(tokens, max_size=3)))
    node_id, boot_id, auth = draw(ids), draw(ids), draw(st.binary())
    return Hello(low, high, cluster_id, node_id, boot_id, name, purpose, features, auth, draw(addresses))


@st.composite
def incomings(draw: st.DrawFn) -> Incoming:
    first, latest = sorted((draw(positions), draw(positions)), key=lambda position: position.seq)
    return Incoming(draw(ids), first, latest, draw(st.one_of(texts.map(str.encode), st.binary())))


@st.composite
def snapshot_begins(draw: st.DrawFn) -> SnapshotBegin:
    first, now = sorted((draw(positions), draw(positions)), key=lambda position: position.seq)
    return SnapshotBegin(draw(ids), now, first, draw(st.booleans()))


_no_error = st.just((None, None, None))
_more = st.one_of(st.none(), json_texts, st.just(b'{"limit":1}'), st.binary(min_size=1))
_errors = st.one_of(_no_error, st.tuples(tokens, texts, _more))


@st.composite
def write_results(draw: st.DrawFn) -> WriteResult:
    return WriteResult(draw(u64), draw(epochs), draw(u64), draw(u64), *draw(_errors))


@st.composite
def read_results(draw: st.DrawFn) -> ReadResult:
    value = draw(st.one_of(st.none(), json_texts, st.binary(min_size=1)))
    seq, error = (0, draw(_errors)) if value is None else (draw(st.integers(1, U64_MAX)), draw(_no_error))
    return ReadResult(draw(u64), draw(epochs), seq, value, draw(epochs), draw(u64), *error)


_members = st.lists(
    st.builds(Member, ids, names, addresses),
    max_size=4,
    unique_by=(lambda member: member.node_id, lambda member: member.name),
)
_features = st.lists(tokens, max_size=3).map(tuple)
_chunks = st.lists(snapshot_records, min_size=1, max_size=4, unique_by=lambda record: record.key).map(
    lambda records: encode_chunk(sorted(records))
)

#: Valid messages of each type, bytes where the format allows any.
BY_TYPE: dict[FrameType, st.SearchStrategy[Message]] = {
    FrameType.HELLO: hellos(),
    FrameType.WELCOME: st.builds(
        Welcome, st.integers(1, U32_MAX), ids, ids, names, st.sampled_from(Role), histories(), u64, _features
    ),
    FrameType.ERROR: st.builds(Error, tokens, texts),
    FrameType.PING: st.builds(Ping, u64, u64),
    FrameType.SUBSCRIBE: st.builds(Subscribe, positions, st.one_of(st.none(), incomings())),
    FrameType.HISTORY: st.builds(HistoryFrame, histories(), _members.map(tuple)),
    FrameType.ENTRIES: st.builds(Entries, st.lists(log_records, min_size=1, max_size=4).map(tuple)),
    FrameType.ACK: st.builds(Ack, u64, u64, u64),
    FrameType.SNAPSHOT_BEGIN: snapshot_begins(),
    FrameType.SNAPSHOT_CHUNK: st.one_of(_chunks, st.builds(SnapshotChunk, u32, st.binary(min_size=1))),
    FrameType.SNAPSHOT_END: st.builds(SnapshotEnd, positions, u64),
    FrameType.WRITE: st.builds(Write, u64, op_tuples, st.one_of(st.none(), u32), u32),
    FrameType.WRITE_RESULT: write_results(),
    FrameType.STATUS: st.builds(Status, u64),
    FrameType.STATUS_RESULT: st.builds(
        StatusResult, u64, st.one_of(st.binary(min_size=1), st.just(b'{"name":"web1"}'), json_texts)
    ),
    FrameType.READ: st.builds(
        Read, u64, st.one_of(texts.filter(bool).map(str.encode), st.binary(min_size=1)), epochs, u64, u32
    ),
    FrameType.READ_RESULT: read_results(),
}
messages = st.sampled_from(FrameType).flatmap(BY_TYPE.__getitem__)


def decode_all(chunks: list[bytes]) -> tuple[list[Message], RemoteProtocolError | None]:
    """What a decoder makes of a stream in these chunks: the messages, and the error that ended it, if one did.

    Whatever else is raised goes through.
    """
    decoder = FrameDecoder(max_frame_bytes=1 << 20)
    found: list[Message] = []
    try:
        for chunk in chunks:
            decoder.feed(chunk)
            found.extend(decoder)
    except RemoteProtocolError as error:
        return found, error
    return found, None


def plain(message: Message) -> list[Any]:
    """The frame as an array of plain values, to be changed and packed by a test."""
    return [int(message.TYPE), *(_plain(getattr(message, each.name)) for each in fields(message))]


def _plain(value: Any) -> Any:
    if isinstance(value, History):
        return [list(reign) for reign in value.reigns]
    if isinstance(value, Incoming):
        return [_plain(getattr(value, each.name)) for each in fields(value)]
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, Epoch) else value


assert set(SAMPLES) == set(BY_TYPE) == set(FrameType) == set(LAYOUTS)
