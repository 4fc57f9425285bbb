"""The primary's machine of one replica, as scripts of events and the instructions that must follow each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import pytest

from kvnode.protocol.fields import LogRecord, Member
from kvnode.protocol.follow import LogExtent
from kvnode.protocol.messages import (
    Ack,
    Entries,
    Error,
    HistoryFrame,
    Message,
    Ping,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    Status,
    Subscribe,
)
from kvnode.protocol.primary import FeedLimits, ReplicaFeed
from kvnode.protocol.primary_events import (
    CloseSnapshot,
    Disconnected,
    EntriesRead,
    HoldPin,
    LogAdvanced,
    LogReadFailed,
    LogTrimmed,
    MemberSaved,
    MembersChanged,
    OpenSnapshot,
    PinLog,
    PinLost,
    PrimaryEvent,
    PrimaryInstruction,
    RaiseAlarm,
    ReadLog,
    ReadSnapshot,
    ReleaseSyncPermit,
    ReportProgress,
    ReportState,
    RequestSyncPermit,
    SaveMember,
    SnapshotEnded,
    SnapshotFailed,
    SnapshotOpened,
    SnapshotRead,
    StepDown,
    SyncPermitted,
    UnpinLog,
)
from kvnode.protocol.session import (
    CloseSession,
    FrameReceived,
    SendFrame,
    SendPing,
    Ticked,
    TransportProgressed,
)
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import Epoch, History, Position, Reign

ONE, TWO, THREE, OTHER = Epoch.of(1, 7), Epoch.of(2, 8), Epoch.of(3, 9), Epoch.of(2, 99)
HISTORY = History((Reign(ONE, 1), Reign(TWO, 11)))
#: The log holds 5 to 20.
LOG = LogExtent(5, 20)
PRIMARY, REPLICA = Member(b"p" * 16, "web1", "web1:7001"), Member(b"r" * 16, "web2", "web2:7001")
MEMBERS = (PRIMARY, REPLICA)
SYNC = b"s" * 16
HELD = HistoryFrame(HISTORY, MEMBERS)
CHUNK = SnapshotChunk(1, b"data")
LIMITS = FeedLimits(window_bytes=100, window_frames=3, frame_bytes=60, chunk_bytes=50, unsent_bytes=200)

#: At a time, an event, and what must follow; a `ReportState` is given by its state.
Step: TypeAlias = tuple[float, PrimaryEvent, Sequence[PrimaryInstruction | str]]


def records(count: int) -> tuple[LogRecord, ...]:
    return tuple(LogRecord(number, b"payload") for number in range(count))


def frame(message: Message) -> FrameReceived:
    return FrameReceived(message)


def subscribe(position: Position, incoming: Incoming | None = None) -> FrameReceived:
    return FrameReceived(Subscribe(position, incoming))


def ack(durable: int, applied: int | None = None) -> FrameReceived:
    return FrameReceived(Ack(durable, durable, durable if applied is None else applied))


def run(steps: Sequence[Step], *, members: tuple[Member, ...] = MEMBERS, pinned_seq: int | None = None) -> ReplicaFeed:
    feed = ReplicaFeed(REPLICA, HISTORY, LOG, members, 0.0, pinned_seq=pinned_seq, limits=LIMITS)
    feed.validate()
    for number, (now, event, expected) in enumerate(steps):
        said = feed.step(event, now)
        feed.validate()
        shown = [each.state if isinstance(each, ReportState) else each for each in said]
        assert shown == list(expected), f"step {number}: {event}"
    return feed


def refusal(code: str, message: str) -> list[PrimaryInstruction | str]:
    return [SendFrame(Error(code, message)), CloseSession(code, message)]


STREAMING: list[Step] = [
    (
        0.0,
        subscribe(Position(TWO, 20)),
        [SendFrame(HELD), "catching_up", ReportProgress(20, 0), "streaming"],
    ),
]

CATCHING_UP: list[Step] = [
    (
        0.0,
        subscribe(Position(TWO, 12)),
        [SendFrame(HELD), "catching_up", ReportProgress(12, 0), ReadLog(13, 20, 60)],
    ),
]

#: Up to the snapshot's first chunk.
SYNCING: list[Step] = [
    (
        0.0,
        subscribe(Position(ONE, 2)),
        [SendFrame(HELD), ReportProgress(2, 0), "full_sync", RequestSyncPermit()],
    ),
    (0.1, SyncPermitted(SYNC), [PinLog(21), OpenSnapshot(b"")]),
    (
        0.2,
        SnapshotOpened(Position(TWO, 22)),
        [
            PinLog(23),
            SendFrame(SnapshotBegin(SYNC, Position(TWO, 22), Position(TWO, 22), False)),
            ReadSnapshot(50),
        ],
    ),
]

SYNCED: list[Step] = [
    *SYNCING,
    (0.3, SnapshotRead(CHUNK, 3), [SendFrame(CHUNK), ReadSnapshot(50)]),
    (
        0.4,
        SnapshotEnded(),
        [SendFrame(SnapshotEnd(Position(TWO, 22), 3)), CloseSnapshot(), ReleaseSyncPermit(), "catching_up"],
    ),
]

SCRIPTS: dict[str, list[Step]] = {
    "nothing to send streams at once, and sends what comes": [
        *STREAMING,
        (0.1, LogAdvanced(22), [ReadLog(21, 22, 60)]),
        (0.1, EntriesRead(records(2), 14), [SendFrame(Entries(records(2)))]),
        (0.2, ack(22), [ReportProgress(22, 22)]),
    ],
    "what is durable is sent, no more": [
        *CATCHING_UP,
        (0.1, EntriesRead(records(8), 56), [SendFrame(Entries(records(8)))]),
        (0.2, ack(20), [ReportProgress(20, 20), "streaming"]),
        (0.3, Ticked(), []),
    ],
    "one read at a time": [
        *CATCHING_UP,
        (0.1, LogAdvanced(30), []),
        (0.1, EntriesRead(records(8), 56), [SendFrame(Entries(records(8))), ReadLog(21, 30, 44)]),
    ],
    "the window in bytes stops reading until an ack": [
        *CATCHING_UP,
        (0.1, LogAdvanced(30), []),
        (0.1, EntriesRead(records(4), 60), [SendFrame(Entries(records(4))), ReadLog(17, 30, 40)]),
        # An entry of its own is larger than what was left.
        (0.1, EntriesRead(records(1), 90), [SendFrame(Entries(records(1)))]),
        (0.1, LogAdvanced(40), []),
        # An ack inside a frame frees nothing.
        (0.2, ack(15), [ReportProgress(15, 15)]),
        (0.3, ack(16), [ReportProgress(16, 16), ReadLog(18, 40, 10)]),
    ],
    "the window in frames stops reading, too": [
        *CATCHING_UP,
        (0.1, EntriesRead(records(1), 1), [SendFrame(Entries(records(1))), ReadLog(14, 20, 60)]),
        (0.1, EntriesRead(records(1), 1), [SendFrame(Entries(records(1))), ReadLog(15, 20, 60)]),
        (0.1, EntriesRead(records(1), 1), [SendFrame(Entries(records(1)))]),
        (0.2, ack(13), [ReportProgress(13, 13), ReadLog(16, 20, 60)]),
    ],
    "what the transport holds back stops reading": [
        *CATCHING_UP,
        (0.1, TransportProgressed(300, 100), []),
        (0.1, EntriesRead(records(1), 1), [SendFrame(Entries(records(1)))]),
        (0.2, TransportProgressed(310, 111), [ReadLog(14, 20, 60)]),
    ],
    "a new member is durable before it is sent anything": [
        (0.0, subscribe(Position(TWO, 20)), [SaveMember(REPLICA)]),
        (0.1, LogAdvanced(21), []),
        (
            0.2,
            MemberSaved(MEMBERS),
            [SendFrame(HELD), "catching_up", ReportProgress(20, 0), ReadLog(21, 21, 60)],
        ),
    ],
    "a changed member list goes to replicas that were sent one": [
        (0.0, MembersChanged((PRIMARY, REPLICA)), []),
        *STREAMING,
        (0.1, MembersChanged((REPLICA,)), [SendFrame(HistoryFrame(HISTORY, (REPLICA,)))]),
    ],
    "a replica that has seen a later primary": [
        (
            0.0,
            subscribe(Position(THREE, 12)),
            [
                *refusal("stale_primary", "this primary reigns with term 2, there was term 3"),
                "disconnected",
                StepDown(3),
            ],
        ),
        (0.1, ack(12), []),
        (0.1, Disconnected(), []),
    ],
    "a full sync: pinned before the snapshot, from its seq on, until the replica tails": [
        *SYNCED,
        (0.5, LogAdvanced(24), [ReadLog(23, 24, 60)]),
        (0.5, EntriesRead(records(2), 14), [SendFrame(Entries(records(2)))]),
        (0.6, ack(22, 0), [ReportProgress(22, 0), UnpinLog(), "streaming"]),
        (0.7, ack(24), [ReportProgress(24, 24)]),
    ],
    "a full sync of a diverged log counts for nothing until it is done": [
        (
            0.0,
            subscribe(Position(OTHER, 12)),
            [SendFrame(HELD), ReportProgress(0, 0), "full_sync", RequestSyncPermit()],
        ),
        (
            0.1,
            ack(12),
            [*refusal("protocol_error", "ACK of 12, after 0 and with 0 sent"), ReleaseSyncPermit(), "disconnected"],
        ),
    ],
    "a sync is resumed, its log pinned while it waits": [
        (
            0.0,
            subscribe(Position(ONE, 2), Incoming(SYNC, Position(ONE, 8), Position(TWO, 13), b"key")),
            [SendFrame(HELD), ReportProgress(2, 0), "full_sync", PinLog(9), RequestSyncPermit()],
        ),
        (0.1, SyncPermitted(b"x" * 16), [OpenSnapshot(b"key")]),
        (
            0.2,
            SnapshotOpened(Position(TWO, 20)),
            [PinLog(9), SendFrame(SnapshotBegin(SYNC, Position(TWO, 20), Position(ONE, 8), True)), ReadSnapshot(50)],
        ),
        (
            0.3,
            SnapshotEnded(),
            [
                SendFrame(SnapshotEnd(Position(TWO, 20), 0)),
                CloseSnapshot(),
                ReleaseSyncPermit(),
                "catching_up",
                ReadLog(9, 20, 60),
            ],
        ),
    ],
    "a sync whose first snapshot the log no longer reaches begins anew": [
        (
            0.0,
            subscribe(Position(ONE, 2), Incoming(SYNC, Position(ONE, 3), Position(TWO, 13), b"key")),
            [SendFrame(HELD), ReportProgress(2, 0), "full_sync", RequestSyncPermit()],
        ),
        (0.1, SyncPermitted(b"x" * 16), [PinLog(21), OpenSnapshot(b"")]),
    ],
    "a sync of which a later snapshot is not in the history begins anew": [
        (
            0.0,
            subscribe(Position(ONE, 2), Incoming(SYNC, Position(ONE, 8), Position(ONE, 13), b"key")),
            [SendFrame(HELD), ReportProgress(2, 0), "full_sync", RequestSyncPermit()],
        ),
    ],
    "a replica that is level again needs no sync, whatever it has of one": [
        (
            0.0,
            subscribe(Position(TWO, 20), Incoming(SYNC, Position(TWO, 20), Position(TWO, 20))),
            [SendFrame(HELD), "catching_up", ReportProgress(20, 0), "streaming"],
        ),
    ],
    "a sync that ends early holds its pin and gives the permit back": [
        *SYNCING,
        (0.3, Disconnected(), [CloseSnapshot(), ReleaseSyncPermit(), HoldPin(), "disconnected"]),
        (0.4, SnapshotRead(CHUNK, 3), []),
    ],
    "answers that come after the end are given back": [
        *SYNCING[:2],
        (0.2, Disconnected(), [ReleaseSyncPermit(), HoldPin(), "disconnected"]),
        (0.3, SnapshotOpened(Position(TWO, 22)), [CloseSnapshot()]),
        (0.3, SyncPermitted(SYNC), [ReleaseSyncPermit()]),
    ],
    "a sync is aborted with its pin": [
        *SYNCING,
        (
            0.3,
            PinLost(),
            [
                *refusal("sync_aborted", "the log grew past what may be kept for a full sync"),
                CloseSnapshot(),
                ReleaseSyncPermit(),
                "disconnected",
            ],
        ),
    ],
    "a pin lost after the snapshot is no reason to stop": [
        *SYNCED,
        (0.5, PinLost(), []),
        (0.6, ack(22), [ReportProgress(22, 22), "streaming"]),
    ],
    "a snapshot that fails": [
        *SYNCING,
        (
            0.3,
            SnapshotFailed("damaged"),
            [*refusal("sync_aborted", "damaged"), CloseSnapshot(), ReleaseSyncPermit(), HoldPin(), "disconnected"],
        ),
    ],
    "a log that was trimmed under a slow replica": [
        *CATCHING_UP,
        (0.1, LogTrimmed(15), []),
        (0.1, LogReadFailed("gone", damaged=False), ["full_sync", RequestSyncPermit()]),
    ],
    "a damaged log: alarm, and a full sync": [
        *CATCHING_UP,
        (
            0.1,
            LogReadFailed("bad crc", damaged=True),
            [RaiseAlarm("log_damaged", "bad crc"), "full_sync", RequestSyncPermit()],
        ),
        (0.2, SyncPermitted(SYNC), [PinLog(21), OpenSnapshot(b"")]),
    ],
    "a silent replica is dropped": [
        *STREAMING,
        (4.9, Ticked(), [SendPing(20)]),
        (
            5.0,
            Ticked(),
            [CloseSession("peer_silent", "nothing came for 5 s", abort=True), "disconnected"],
        ),
    ],
    "a silent replica that lacks entries is dropped with an alarm": [
        *STREAMING,
        (0.5, LogAdvanced(21), [ReadLog(21, 21, 60)]),
        (0.5, EntriesRead(records(1), 7), [SendFrame(Entries(records(1)))]),
        (4.9, Ticked(), [SendPing(21)]),
        (
            5.0,
            Ticked(),
            [
                RaiseAlarm("replica_lags", "web2 is 1 entries behind for 4.5 s"),
                CloseSession("peer_silent", "nothing came for 5 s", abort=True),
                "disconnected",
            ],
        ),
    ],
    "half a frame is a sign of life": [
        *STREAMING,
        (4.0, TransportProgressed(100, 100, 50), []),
        (5.0, Ticked(), [SendPing(20)]),
        (8.9, TransportProgressed(100, 100, 50), []),
        (8.9, Ticked(), [SendPing(20)]),
        (9.0, Ticked(), [CloseSession("peer_silent", "nothing came for 5 s", abort=True), "disconnected"]),
    ],
    "a replica that takes nothing is dropped, though it talks": [
        *STREAMING,
        (1.0, TransportProgressed(100, 50), []),
        *[(float(at), frame(Ping(20, 0)), []) for at in range(2, 31, 4)],
        (30.9, Ticked(), [SendPing(20)]),
        (31.0, Ticked(), [CloseSession("send_stalled", "nothing could be sent for 30 s", abort=True), "disconnected"]),
    ],
    "a lagging replica raises an alarm once": [
        *STREAMING,
        (1.0, LogAdvanced(21), [ReadLog(21, 21, 60)]),
        (1.0, EntriesRead(records(1), 7), [SendFrame(Entries(records(1)))]),
        (4.0, frame(Ping(20, 0)), []),
        (5.9, Ticked(), [SendPing(21)]),
        (
            6.0,
            Ticked(),
            [RaiseAlarm("replica_lags", "web2 is 1 entries behind for 5.0 s"), "catching_up"],
        ),
        (6.5, Ticked(), []),
        (7.0, ack(21), [ReportProgress(21, 21), "streaming"]),
    ],
    "an error from the replica ends the session": [
        *STREAMING,
        (
            0.1,
            frame(Error("storage_full", "no room")),
            [CloseSession("storage_full", "the replica says: no room"), "disconnected"],
        ),
    ],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(name: str) -> None:
    run(SCRIPTS[name], members=(PRIMARY,) if name.startswith("a new member") else MEMBERS)


@pytest.mark.parametrize(
    "known",
    [
        REPLICA._replace(name="web4"),
        REPLICA._replace(address="web2:7002"),
        REPLICA._replace(address=""),
        REPLICA._replace(node_id=b"x" * 16),
    ],
    ids=["name", "address", "no address", "id"],
)
def test_a_member_is_saved_again_when_it_says_something_else_of_itself(known: Member) -> None:
    run(
        [
            (0.0, subscribe(Position(TWO, 20)), [SaveMember(REPLICA)]),
            (0.1, MemberSaved(MEMBERS), [SendFrame(HELD), "catching_up", ReportProgress(20, 0), "streaming"]),
        ],
        members=(PRIMARY, known),
    )


def test_a_pin_of_an_earlier_session_is_kept_until_the_replica_tails() -> None:
    feed = run(
        [
            (
                0.0,
                subscribe(Position(TWO, 12)),
                [SendFrame(HELD), PinLog(13), "catching_up", ReportProgress(12, 0), ReadLog(13, 20, 60)],
            ),
            (0.1, EntriesRead(records(8), 56), [SendFrame(Entries(records(8)))]),
            (0.2, ack(20), [ReportProgress(20, 20), UnpinLog(), "streaming"]),
        ],
        pinned_seq=9,
    )
    assert feed.pinned_seq is None


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ([], Ack(1, 1, 1)),
        ([], Status(1)),
        ([], Subscribe(Position(Epoch(0), 3), None)),
        (STREAMING, Subscribe(Position(TWO, 20), None)),
        (STREAMING, Ack(21, 21, 21)),
        (STREAMING, Ack(19, 19, 19)),
        (STREAMING, Entries(records(1))),
        (STREAMING, HELD),
    ],
)
def test_what_a_replica_must_not_send(before: list[Step], message: Message) -> None:
    feed = run(before)
    said = feed.step(frame(message), 0.5)
    feed.validate()
    assert isinstance(said[0], SendFrame)
    assert isinstance(said[0].message, Error)
    assert said[0].message.code == "protocol_error"
    assert CloseSession("protocol_error", said[0].message.message) in said
    assert feed.state == "disconnected"


def test_lag_is_the_age_of_the_oldest_entry_that_is_missing_there() -> None:
    feed = run([*STREAMING, (3.0, LogAdvanced(21), [ReadLog(21, 21, 60)]), (3.5, LogAdvanced(22), [])])
    assert feed.lag_s(3.75) == 0.75
    assert feed.wake_at == 1.0
