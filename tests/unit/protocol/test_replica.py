"""The replica's machine, as scripts of events and the instructions that must follow each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import msgpack
import pytest

from kvnode.protocol.entry import EntryEncoder, payload_crc
from kvnode.protocol.fields import LogRecord, Member
from kvnode.protocol.messages import (
    Ack,
    Entries,
    Error,
    Hello,
    HistoryFrame,
    Message,
    Ping,
    Purpose,
    Role,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    Subscribe,
    Welcome,
)
from kvnode.protocol.replica import Follower, FollowerDisk, FollowerLimits
from kvnode.protocol.replica_events import (
    AppendEntries,
    BeginIncoming,
    ChunkStored,
    Connect,
    Connected,
    Disconnected,
    DropIncoming,
    EntriesApplied,
    EntriesDurable,
    FinishIncoming,
    HistorySaved,
    IncomingBegun,
    IncomingDropped,
    IncomingFinished,
    MoveAside,
    MovedAside,
    PauseReading,
    ReplicaEvent,
    ReplicaInstruction,
    ReportError,
    ResumeReading,
    SaveHistory,
    StoreChunk,
    WorkFailed,
)
from kvnode.protocol.session import CloseSession, FrameReceived, SendFrame, SendPing, Ticked
from kvnode.protocol.snapshot import SnapshotRecord, encode_chunk
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import Entry, Epoch, History, Position, Reign, put

ONE, TWO, THREE, OTHER = Epoch.of(1, 7), Epoch.of(2, 8), Epoch.of(3, 9), Epoch.of(2, 99)
HISTORY = History((Reign(ONE, 1), Reign(TWO, 11)))
OWN_HISTORY = History((Reign(ONE, 1),))
MEMBERS = (Member(b"p" * 16, "web1", "web1:7001"), Member(b"r" * 16, "web2", "web2:7001"))
SYNC = b"s" * 16
HELLO = Hello(1, 1, b"c" * 16, b"r" * 16, b"b" * 16, "web2", Purpose.REPLICA, (), b"", "web2:7001")
WELCOME = Welcome(1, b"c" * 16, b"p" * 16, "web1", Role.PRIMARY, HISTORY, 20, ())
HELD = HistoryFrame(HISTORY, MEMBERS)
SAVE = SaveHistory(HISTORY, MEMBERS)
DISK = FollowerDisk(OWN_HISTORY, (), 8)
LIMITS = FollowerLimits(backlog_bytes=100, group_bytes=60)

Step: TypeAlias = tuple[float, ReplicaEvent, Sequence[ReplicaInstruction]]


def entry(seq: int, *, epoch: Epoch | None = None) -> tuple[LogRecord, Entry]:
    made = Entry(seq, epoch or HISTORY.epoch_of(seq), 0, (put(b"k%d" % seq, b"1"),))
    payload = EntryEncoder().encode(made)
    return LogRecord(payload_crc(payload), payload), made


def entries(*seqs: int) -> Entries:
    return Entries(tuple(entry(seq)[0] for seq in seqs))


def append(*seqs: int) -> AppendEntries:
    return AppendEntries(tuple(entry(seq)[0] for seq in seqs), tuple(entry(seq)[1] for seq in seqs))


def chunk(*keys: bytes) -> SnapshotChunk:
    return encode_chunk(stored(*keys).records)


def stored(*keys: bytes) -> StoreChunk:
    return StoreChunk(tuple(SnapshotRecord(key, 3, ONE, 0, b"1") for key in keys))


def frame(message: Message) -> FrameReceived:
    return FrameReceived(message)


def subscribe(position: Position, incoming: Incoming | None) -> SendFrame:
    return SendFrame(Subscribe(position, incoming))


def ack(durable: int, applied: int, received: int | None = None) -> SendFrame:
    return SendFrame(Ack(durable if received is None else received, durable, applied))


def refusal(code: str, message: str) -> list[ReplicaInstruction]:
    return [SendFrame(Error(code, message)), CloseSession(code, message), ReportError(code, message)]


def run(steps: Sequence[Step], disk: FollowerDisk = DISK, hello: Hello = HELLO) -> Follower:
    machine = Follower(hello, disk, 0.0, limits=LIMITS)
    machine.validate()
    for number, (now, event, expected) in enumerate(steps):
        said = machine.step(event, now)
        machine.validate()
        assert said == list(expected), f"step {number}: {event}"
    return machine


CONNECTED: list[Step] = [(0.0, Ticked(), [Connect()]), (0.0, Connected(), [SendFrame(HELLO)])]


def subscribed(position: Position, incoming: Incoming | None = None) -> list[Step]:
    return [*CONNECTED, (0.0, frame(WELCOME), [subscribe(position, incoming)])]


FOLLOWING: list[Step] = [
    *subscribed(Position(ONE, 8)),
    (0.0, frame(HELD), [SAVE]),
    (0.0, HistorySaved(), []),
]

#: A disk that holds entries 9 to 12 of a reign that the primary does not know.
DIVERGED = replace(DISK, history=History((Reign(ONE, 1), Reign(OTHER, 9))), last_seq=12)

MOVING: list[Step] = [
    *CONNECTED,
    (0.0, frame(WELCOME), [MoveAside(Position(ONE, 8))]),
    (0.1, MovedAside(), [subscribe(Position(OTHER, 12), None)]),
    # Nothing of it is saved over a log that it does not describe.
    (0.2, frame(HELD), []),
]

BEGIN = SnapshotBegin(SYNC, Position(TWO, 18), Position(TWO, 18), False)
INCOMING = Incoming(SYNC, Position(TWO, 14), Position(TWO, 15), b"m")

SYNCING: list[Step] = [
    *FOLLOWING,
    (1.0, frame(BEGIN), [BeginIncoming(Incoming(SYNC, Position(TWO, 18), Position(TWO, 18)), False)]),
    (1.0, frame(chunk(b"a", b"b")), []),
    (1.0, IncomingBegun(), [stored(b"a", b"b")]),
]

SCRIPTS: dict[str, tuple[FollowerDisk, list[Step]]] = {
    "entries are appended once the history is durable, and acked once they are": (
        DISK,
        [
            *subscribed(Position(ONE, 8)),
            (0.1, frame(HELD), [SAVE]),
            (0.1, frame(entries(9, 10, 11)), []),
            (0.2, HistorySaved(), [append(9, 10, 11)]),
            (0.3, EntriesDurable(), [ack(11, 8)]),
            (0.4, EntriesApplied(), [ack(11, 11)]),
        ],
    ),
    "what came while work was under way shares an fsync, up to a limit": (
        DISK,
        [
            *FOLLOWING,
            (0.1, frame(entries(9)), [append(9)]),
            (0.1, frame(entries(10)), []),
            (0.1, frame(entries(11)), []),
            (0.1, frame(entries(12)), []),
            (0.2, EntriesDurable(), [ack(9, 8, 12)]),
            (0.2, EntriesApplied(), [append(10, 11, 12)]),
        ],
    ),
    "a known history is not saved again": (
        replace(DISK, history=HISTORY, members=MEMBERS),
        [*subscribed(Position(ONE, 8)), (0.0, frame(HELD), []), (0.0, frame(entries(9)), [append(9)])],
    ),
    "a lost session drops what waits; SUBSCRIBE waits for what is under way": (
        DISK,
        [
            *FOLLOWING,
            (0.1, frame(entries(9)), [append(9)]),
            (0.1, frame(entries(10)), []),
            (0.2, Disconnected("reset", 0), [ReportError("disconnected", "reset")]),
            (0.25, Ticked(), [Connect()]),
            (0.25, Connected(), [SendFrame(HELLO)]),
            (0.25, frame(WELCOME), []),
            (0.3, EntriesDurable(), []),
            (0.3, EntriesApplied(), [subscribe(Position(ONE, 9), None)]),
        ],
    ),
    "work that fails ends the session; nothing of it is acked": (
        DISK,
        [
            *FOLLOWING,
            (0.1, frame(entries(9)), [append(9)]),
            (0.2, WorkFailed("storage_full", "no room"), refusal("storage_full", "no room")),
            (0.2, frame(entries(10)), []),
            (0.3, Disconnected("closed", 0), []),
            (0.35, Ticked(), [Connect()]),
        ],
    ),
    "diverged: moved aside, nothing saved, then a full sync": (
        DIVERGED,
        [
            *MOVING,
            (0.3, frame(BEGIN), [BeginIncoming(Incoming(SYNC, Position(TWO, 18), Position(TWO, 18)), False)]),
            (0.3, IncomingBegun(), []),
            (0.4, frame(chunk(b"a")), [stored(b"a")]),
            (0.4, ChunkStored(), []),
            (
                0.5,
                frame(SnapshotEnd(Position(TWO, 18), 1)),
                [FinishIncoming(Position(TWO, 18), Position(TWO, 18), HISTORY, MEMBERS)],
            ),
            (0.5, frame(entries(19)), []),
            (0.6, IncomingFinished(), [ack(18, 18, 19), append(19)]),
        ],
    ),
    "diverged: entries instead of a full sync are refused": (
        DIVERGED,
        [
            *MOVING,
            (
                0.3,
                frame(entries(13)),
                refusal("protocol_error", "ENTRIES came in phase log where only a full sync can help"),
            ),
        ],
    ),
    "diverged: a sync that begins below the fork would lose entries": (
        DIVERGED,
        [
            *MOVING,
            (
                0.3,
                frame(SnapshotBegin(SYNC, Position(ONE, 7), Position(ONE, 7), False)),
                refusal("sync_aborted", "a full sync from 1.00000007-7 would lose entries up to 8"),
            ),
        ],
    ),
    "diverged: what was moved aside is not moved again": (
        DIVERGED,
        [
            *MOVING,
            (0.3, Disconnected("reset", 0), [ReportError("disconnected", "reset")]),
            (0.4, Ticked(), [Connect()]),
            (0.4, Connected(), [SendFrame(HELLO)]),
            (0.4, frame(WELCOME), [subscribe(Position(OTHER, 12), None)]),
        ],
    ),
    "a stale primary is told the term, and nothing changes": (
        replace(DISK, history=History((Reign(ONE, 1), Reign(THREE, 12)))),
        [
            *subscribed(Position(THREE, 8)),
            (0.1, frame(HELD), refusal("protocol_error", "HISTORY came in phase refused")),
        ],
    ),
    "a stale primary answers with an error": (
        replace(DISK, incoming=replace(INCOMING, latest=Position(THREE, 15))),
        [
            *subscribed(Position(THREE, 8), replace(INCOMING, latest=Position(THREE, 15))),
            (
                0.1,
                frame(Error("stale_primary", "stale")),
                [
                    CloseSession("stale_primary", "the primary says: stale", abort=True),
                    ReportError("stale_primary", "the primary says: stale"),
                ],
            ),
        ],
    ),
    "a full sync in the middle of a stream comes after the entries before it": (
        DISK,
        [
            *FOLLOWING,
            (0.1, frame(entries(9)), [append(9)]),
            (0.1, frame(BEGIN), []),
            (0.2, EntriesDurable(), [ack(9, 8)]),
            (
                0.2,
                EntriesApplied(),
                [ack(9, 9), BeginIncoming(Incoming(SYNC, Position(TWO, 18), Position(TWO, 18)), False)],
            ),
        ],
    ),
    "a sync is offered, resumed after its last key, and serves from its latest snapshot": (
        replace(DISK, incoming=INCOMING),
        [
            *subscribed(Position(ONE, 8), INCOMING),
            (0.0, frame(HELD), [SAVE]),
            (0.0, HistorySaved(), []),
            (
                0.1,
                frame(SnapshotBegin(SYNC, Position(TWO, 19), Position(TWO, 14), True)),
                [BeginIncoming(replace(INCOMING, latest=Position(TWO, 19)), True)],
            ),
            (0.1, IncomingBegun(), []),
            (0.2, frame(chunk(b"n", b"o")), [stored(b"n", b"o")]),
            (0.2, frame(SnapshotEnd(Position(TWO, 19), 2)), []),
            (0.3, ChunkStored(), [FinishIncoming(Position(TWO, 14), Position(TWO, 19), HISTORY, MEMBERS)]),
            # The data show no single state until 19 is applied.
            (0.4, IncomingFinished(), [ack(14, 0)]),
            (0.5, frame(entries(15, 16, 17, 18)), [append(15, 16, 17, 18)]),
            (0.5, EntriesDurable(), [ack(18, 0)]),
            (0.5, EntriesApplied(), [ack(18, 0)]),
            (0.6, frame(entries(19)), [append(19)]),
            (0.6, EntriesDurable(), [ack(19, 0)]),
            (0.6, EntriesApplied(), [ack(19, 19)]),
        ],
    ),
    "a sync that began below the log is not offered": (
        replace(DISK, incoming=replace(INCOMING, first=Position(ONE, 7))),
        subscribed(Position(ONE, 8)),
    ),
    "a chunk again, or from before the cursor": (
        replace(DISK, incoming=INCOMING),
        [
            *subscribed(Position(ONE, 8), INCOMING),
            (0.0, frame(HELD), [SAVE]),
            (0.1, frame(SnapshotBegin(SYNC, Position(TWO, 19), Position(TWO, 14), True)), []),
            (0.1, frame(chunk(b"m")), refusal("protocol_error", "a chunk's keys are not above those before it")),
        ],
    ),
    "a sync that was not offered cannot be resumed": (
        DISK,
        [
            *FOLLOWING,
            (
                0.1,
                frame(SnapshotBegin(SYNC, Position(TWO, 19), Position(TWO, 14), True)),
                refusal("protocol_error", "a full sync is resumed that was not offered"),
            ),
        ],
    ),
    "a sync becomes worthless when the log goes on": (
        replace(DISK, incoming=INCOMING),
        [
            *subscribed(Position(ONE, 8), INCOMING),
            (0.0, frame(HELD), [SAVE]),
            (0.0, HistorySaved(), []),
            (0.1, frame(entries(9)), [DropIncoming()]),
            (0.1, frame(entries(10)), []),
            (0.2, IncomingDropped(), [append(9, 10)]),
        ],
    ),
    "a snapshot that lacks keys": (
        DISK,
        [
            *SYNCING,
            (
                1.1,
                frame(SnapshotEnd(Position(TWO, 18), 3)),
                refusal(
                    "protocol_error",
                    "after 2 keys of 2.00000008-18 came SNAPSHOT_END position=2.00000008-18 keys=3",
                ),
            ),
        ],
    ),
    "mixed data are judged by their latest snapshot, not by the log": (
        FollowerDisk(HISTORY, MEMBERS, 14, serve_from=Position(OTHER, 17)),
        [
            *subscribed(Position(OTHER, 17)),
            (0.1, frame(HELD), []),
            (
                0.2,
                frame(entries(15)),
                refusal("protocol_error", "ENTRIES came in phase log where only a full sync can help"),
            ),
        ],
    ),
    "mixed data of this history go on": (
        FollowerDisk(HISTORY, MEMBERS, 14, serve_from=Position(TWO, 17)),
        [*subscribed(Position(TWO, 14)), (0.1, frame(HELD), []), (0.2, frame(entries(15)), [append(15)])],
    ),
    "a history that changed since WELCOME": (
        DISK,
        [
            *subscribed(Position(ONE, 8)),
            (
                0.1,
                frame(HistoryFrame(OWN_HISTORY, MEMBERS)),
                refusal("history_changed", "the primary's history changed, it is asked again"),
            ),
        ],
    ),
    "reading pauses while too much waits, and silence does not count then": (
        DISK,
        [
            *FOLLOWING,
            (0.1, frame(entries(9)), [append(9)]),
            (0.1, frame(entries(10, 11)), []),
            (0.1, frame(entries(12, 13)), [PauseReading()]),
            (7.0, Ticked(), [SendPing(8)]),
            (7.5, EntriesDurable(), [ack(9, 8, 13)]),
            (7.5, EntriesApplied(), [append(10, 11, 12, 13)]),
            (7.6, EntriesDurable(), [ack(13, 9)]),
            (7.6, EntriesApplied(), [ack(13, 13), ResumeReading()]),
            (12.5, Ticked(), [SendPing(13)]),
            (
                12.6,
                Ticked(),
                [
                    CloseSession("peer_silent", "nothing came for 5 s", abort=True),
                    ReportError("peer_silent", "nothing came for 5 s"),
                ],
            ),
        ],
    ),
    "no WELCOME in time": (
        DISK,
        [
            *CONNECTED,
            (9.9, Ticked(), []),
            (
                10.0,
                Ticked(),
                [
                    CloseSession("connect_timeout", "no answer from the primary", abort=True),
                    ReportError("connect_timeout", "no answer from the primary"),
                ],
            ),
        ],
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(name: str) -> None:
    disk, steps = SCRIPTS[name]
    run(steps, disk)


def test_a_node_that_knows_of_no_cluster_follows_nobody() -> None:
    with pytest.raises(AssertionError, match="of its own cluster"):
        Follower(replace(HELLO, cluster_id=b""), FollowerDisk(History(), (), 0), 0.0)


@pytest.mark.parametrize(
    ("welcome", "code"),
    [
        (replace(WELCOME, cluster_id=b"x" * 16), "wrong_cluster"),
        (replace(WELCOME, version=2), "unsupported_version"),
        (replace(WELCOME, node_id=HELLO.node_id), "self_join"),
        (replace(WELCOME, role=Role.REPLICA), "not_primary"),
        (Ping(1, 1), "protocol_error"),
    ],
)
def test_a_welcome_that_is_none(welcome: Message, code: str) -> None:
    machine = run(CONNECTED)
    said = machine.step(frame(welcome), 0.1)
    assert [type(each) for each in said] == [SendFrame, CloseSession, ReportError]
    assert isinstance(said[2], ReportError)
    assert said[2].code == code


def damaged(record: LogRecord) -> LogRecord:
    return LogRecord(record.crc ^ 1, record.payload)


def of_kind(kind: int) -> LogRecord:
    payload = msgpack.packb([9, ONE, 0, [[kind, b"k"]]])
    return LogRecord(payload_crc(payload), payload)


@pytest.mark.parametrize(
    ("records", "code"),
    [
        ([damaged(entry(9)[0])], "entry_damaged"),
        ([LogRecord(payload_crc(b"junk"), b"junk")], "entry_damaged"),
        ([entry(10)[0]], "protocol_error"),
        ([entry(8)[0]], "protocol_error"),
        ([entry(9)[0], entry(11)[0]], "protocol_error"),
        ([entry(9, epoch=TWO)[0]], "protocol_error"),
        ([entry(9)[0], entry(10)[0], entry(11, epoch=ONE)[0]], "protocol_error"),
        ([entry(9)[0], damaged(entry(10)[0])], "entry_damaged"),
        ([of_kind(77)], "unsupported_op"),
    ],
)
def test_entries_that_must_not_be_stored(records: list[LogRecord], code: str) -> None:
    machine = run(FOLLOWING)
    said = machine.step(frame(Entries(tuple(records))), 0.5)
    machine.validate()
    # Nothing of the frame is appended, and the primary is told why.
    assert [type(each) for each in said] == [SendFrame, CloseSession, ReportError]
    assert isinstance(said[1], CloseSession)
    assert said[1].code == code


def test_an_operation_that_is_not_known_stops_the_replica_for_good() -> None:
    machine = run(FOLLOWING)
    machine.step(frame(Entries((of_kind(77),))), 0.5)
    assert machine.state == "stopped"
    assert machine.step(Disconnected("closed", 0), 0.6) == []
    assert (machine.wake_at, machine.step(Ticked(), 1e9)) == (float("inf"), [])


@pytest.mark.parametrize(
    ("attempt", "longest_s"), [(0, 0.1), (1, 0.2), (2, 0.4), (3, 0.8), (4, 1.6), (5, 3.2), (6, 5.0), (60, 5.0)]
)
@pytest.mark.parametrize(("random_bits", "part"), [(0, 0.5), (2**32 - 1, 1.0), (2**31, 0.75)])
def test_the_pause_between_attempts_grows_and_is_partly_random(
    attempt: int, longest_s: float, random_bits: int, part: float
) -> None:
    machine = run([])
    now = 0.0
    for _ in range(attempt + 1):
        now = machine.wake_at
        assert machine.step(Ticked(), now) == [Connect()]
        machine.step(Disconnected("refused", random_bits), now)
    assert machine.retry_at - now == pytest.approx(longest_s * part)


def test_progress_makes_the_next_pause_short_again() -> None:
    refused: list[Step] = [
        (0.0, Ticked(), [Connect()]),
        (0.0, Disconnected("refused", 0), [ReportError("disconnected", "refused")]),
    ]
    later = [(now + 9.0, event, said) for now, event, said in FOLLOWING]
    machine = run([*refused, *later, (9.1, frame(entries(9)), [append(9)]), (9.2, EntriesDurable(), [ack(9, 8)])])
    machine.step(Disconnected("reset", 0), 10.0)
    assert machine.retry_at == pytest.approx(10.05)


def test_a_diverged_or_mixed_replica_does_not_serve() -> None:
    assert run(FOLLOWING).serving
    assert not run(MOVING, DIVERGED).serving
    assert not run([], FollowerDisk(HISTORY, MEMBERS, 14, serve_from=Position(TWO, 17))).serving
    assert run([], FollowerDisk(HISTORY, MEMBERS, 17, serve_from=Position(TWO, 17))).serving
