"""The commit of one group: what each write sees, which seqs are given, and what every failure leaves behind."""

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvnode.node.api import KeyRange, WriteResult
from kvnode.node.commit import Committed, Committer
from kvnode.node.errors import EngineClosed, EngineFailed, LogFailed, RecordDamaged, StorageFull
from kvnode.node.storage.wal import Wal, WalOptions
from kvnode.protocol.types import Entry, Epoch, Op, Position, delete, put
from support.logged import entries_in
from support.memory_disk import MemoryDisk
from support.model_engine import ModelEngine, ModelEngineDisk

EPOCH = Epoch.of(7, 0xABC)
WAL = Path("/data/wal")
DB = Path("/data/db")


class SetClock:
    """A clock that says what the test sets."""

    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic_s(self) -> float:
        return self.ms / 1000


@dataclass
class Node:
    """A log, an engine, and what commits to them."""

    disk: MemoryDisk
    engines: ModelEngineDisk
    wal: Wal
    engine: ModelEngine
    clock: SetClock
    committer: Committer

    def commit(self, *group: Sequence[Op]) -> Committed:
        return self.committer.commit(group)

    def logged(self) -> list[Entry]:
        return entries_in(self.disk, WAL, self.wal.segments)

    def state(self) -> dict[bytes, bytes]:
        return dict(self.engine.scan(KeyRange()).next_items(1000, 1 << 20))


def new_node(*, segment_bytes: int = 4096, synced: bool = True) -> Node:
    disk = MemoryDisk()
    for directory in (WAL, DB):
        disk.make_directory(directory)
    engines = ModelEngineDisk(disk)
    options = WalOptions(segment_bytes, 1 << 30, sync=synced)
    wal = Wal.create(disk, WAL, bytes(16), options, 1)
    engine = engines(DB, paranoid=True)
    clock = SetClock()
    return Node(disk, engines, wal, engine, clock, Committer(wal, engine, EPOCH, clock, synced=synced))


def seqs(committed: Committed) -> list[int]:
    return [outcome.position.seq for outcome in committed.outcomes if isinstance(outcome, WriteResult)]


def deletions(committed: Committed) -> list[int]:
    return [outcome.deleted for outcome in committed.outcomes if isinstance(outcome, WriteResult)]


# ---- order and existence ---------------------------------------------------------------------------------------


def test_writes_get_seqs_in_order_and_reach_log_and_engine() -> None:
    node = new_node()
    first = node.commit([put(b"a", b"1")], [put(b"b", b"2"), put(b"c", b"3")])
    second = node.commit([put(b"a", b"4")])
    assert [each.position for each in first.outcomes if isinstance(each, WriteResult)] == [
        Position(EPOCH, 1),
        Position(EPOCH, 2),
    ]
    assert seqs(second) == [3]
    assert [(entry.seq, tuple(entry.ops)) for entry in node.logged()] == [
        (1, (put(b"a", b"1"),)),
        (2, (put(b"b", b"2"), put(b"c", b"3"))),
        (3, (put(b"a", b"4"),)),
    ]
    assert node.state() == {b"a": b"4", b"b": b"2", b"c": b"3"}
    assert node.engine.applied.position == Position(EPOCH, 3)
    assert node.engine.applied.synced


def test_one_group_is_one_write_and_one_sync_of_the_log() -> None:
    node = new_node()
    before = len(node.disk.calls)
    node.commit(*([put(b"%d" % number, b"1")] for number in range(50)))
    made = [call.operation for call in node.disk.calls[before:]]
    assert made == ["write_at", "sync", "engine_write"]


def test_without_fsync_nothing_is_synced_and_the_engine_is_told() -> None:
    node = new_node(synced=False)
    before = len(node.disk.calls)
    node.commit([put(b"a", b"1")])
    assert [call.operation for call in node.disk.calls[before:]] == ["write_at", "engine_write"]
    assert not node.engine.applied.synced


@pytest.mark.parametrize(
    ("group", "deleted", "given"),
    [
        # Nothing there: nothing logged, answered with the seq that it saw.
        ([[delete(b"x")]], [0], [1]),
        ([[delete(b"old")]], [1], [2]),
        ([[delete(b"old")], [delete(b"old")]], [1, 0], [2, 2]),
        ([[put(b"x", b"1")], [delete(b"x")]], [0, 1], [2, 3]),
        ([[put(b"x", b"1")], [delete(b"x")], [delete(b"x")]], [0, 1, 0], [2, 3, 3]),
        ([[delete(b"old")], [put(b"old", b"2")], [delete(b"old")]], [1, 0, 1], [2, 3, 4]),
        ([[delete(b"x")], [put(b"x", b"1")], [delete(b"x")]], [0, 0, 1], [1, 2, 3]),
        # No-ops between: each is answered with what lies before it.
        (
            [[delete(b"x")], [put(b"a", b"1")], [delete(b"x")], [put(b"b", b"1")], [delete(b"x")]],
            [0] * 5,
            [1, 2, 2, 3, 3],
        ),
        # Within one write.
        ([[put(b"x", b"1"), delete(b"x")]], [1], [2]),
        ([[delete(b"x"), put(b"x", b"1")]], [0], [2]),
        ([[delete(b"old"), delete(b"old")]], [1], [2]),
        ([[delete(b"x"), delete(b"y")]], [0], [1]),
        ([[delete(b"x"), delete(b"old"), delete(b"y")]], [1], [2]),
        ([[delete(b"old"), put(b"old", b"2"), delete(b"old")]], [2], [2]),
        ([[put(b"x", b"1"), delete(b"x")], [delete(b"x")]], [1, 0], [2, 2]),
    ],
)
def test_existence_is_judged_by_all_that_comes_before(
    group: list[list[Op]], deleted: list[int], given: list[int]
) -> None:
    node = new_node()
    node.commit([put(b"old", b"1")])
    committed = node.commit(*group)
    assert deletions(committed) == deleted
    assert seqs(committed) == given
    # What the overlay said of existence is what came out when the operations were applied.
    keys = {b"old": b"1"}
    for ops in group:
        for op in ops:
            if len(op) == 4:
                keys[op.key] = op.value
            else:
                keys.pop(op.key, None)
    assert node.state() == keys
    assert node.wal.last_seq == given[-1]
    assert len(committed.entries) == len(node.logged()) - 1


def test_a_group_without_effect_touches_no_disk() -> None:
    node = new_node()
    node.commit([put(b"a", b"1")])
    before = len(node.disk.calls)
    committed = node.commit([delete(b"x")], [delete(b"y")])
    assert seqs(committed) == [1, 1]
    assert committed.entries == []
    assert len(node.disk.calls) == before


def test_in_an_empty_node_a_no_op_is_answered_with_seq_0() -> None:
    assert new_node().commit([delete(b"x")]).outcomes == [WriteResult(Position(Epoch(0), 0), 0)]


def test_a_batch_is_logged_whole_with_its_operations_without_effect() -> None:
    node = new_node()
    ops = [delete(b"x"), put(b"a", b"1"), put(b"a", b"2")]
    committed = node.commit(ops)
    assert deletions(committed) == [0]
    assert [tuple(entry.ops) for entry in node.logged()] == [tuple(ops)]
    assert node.state() == {b"a": b"2"}


# ---- damage and failures ---------------------------------------------------------------------------------------


def test_a_damaged_record_fails_its_own_write_only() -> None:
    node = new_node()
    node.commit([put(b"bad", b"1")], [put(b"good", b"1")])
    node.engine.damaged_keys.add(b"bad")
    committed = node.commit(
        [put(b"a", b"1")],
        [delete(b"bad")],
        [delete(b"good")],
        [delete(b"good"), delete(b"bad"), put(b"c", b"1")],
        [put(b"b", b"1")],
        # A put needs no look at what was there, and heals.
        [put(b"bad", b"2")],
        [delete(b"bad")],
    )
    damaged = [index for index, outcome in enumerate(committed.outcomes) if isinstance(outcome, RecordDamaged)]
    assert damaged == [1, 3]
    assert seqs(committed) == [3, 4, 5, 6, 7]
    assert deletions(committed) == [0, 1, 0, 0, 1]
    assert [entry.seq for entry in node.logged()] == [1, 2, 3, 4, 5, 6, 7]
    node.engine.damaged_keys.clear()
    assert node.state() == {b"a": b"1", b"b": b"1"}


def test_a_group_of_which_nothing_remains_is_not_logged() -> None:
    node = new_node()
    node.engine.damaged_keys.add(b"bad")
    before = len(node.disk.calls)
    committed = node.commit([delete(b"bad")], [delete(b"x")])
    assert isinstance(committed.outcomes[0], RecordDamaged)
    assert committed.outcomes[1] == WriteResult(Position(Epoch(0), 0), 0)
    assert len(node.disk.calls) == before


@pytest.mark.parametrize("operation", ["write_at", "allocate"])
def test_a_full_disk_consumes_no_seq_and_leaves_nothing(operation: str) -> None:
    node = new_node()
    node.commit([put(b"a", b"1")])
    node.disk.plan.fail((operation, "*"), errno.ENOSPC, partial=0.7)
    # Larger than the segment, so that room has to be made first.
    big = b'"%s"' % (b"x" * 5000)
    with pytest.raises(StorageFull):
        node.commit([put(b"b", big)], [put(b"c", b"1")])
    assert node.wal.last_seq == 1
    assert node.engine.applied.position.seq == 1
    committed = node.commit([put(b"d", b"1")], [delete(b"b")])
    assert seqs(committed) == [2, 2]
    assert [entry.seq for entry in node.logged()] == [1, 2]
    assert node.state() == {b"a": b"1", b"d": b"1"}


def test_a_failed_sync_of_the_log_is_final() -> None:
    node = new_node()
    node.commit([put(b"a", b"1")])
    node.disk.plan.fail(("sync", "*.wal"))
    with pytest.raises(LogFailed):
        node.commit([put(b"b", b"1")])
    # The disk would take it now, but what it did before is unknown.
    with pytest.raises(LogFailed):
        node.commit([put(b"c", b"1")])
    assert node.engine.applied.position.seq == 1


def test_no_space_reported_by_a_sync_is_final_too() -> None:
    node = new_node()
    node.disk.plan.fail(("sync", "*.wal"), errno.ENOSPC)
    with pytest.raises(LogFailed):
        node.commit([put(b"b", b"1")])


@pytest.mark.parametrize(("error", "disk_full"), [(errno.EIO, False), (errno.ENOSPC, True)])
def test_an_engine_that_fails_after_the_log_leaves_the_entries_logged(error: int, disk_full: bool) -> None:
    node = new_node()
    node.disk.plan.fail(("engine_write", "*"), error)
    committed = node.commit([put(b"a", b"1")], [put(b"b", b"1")])
    assert isinstance(committed.engine_failure, EngineFailed)
    assert committed.engine_failure.disk_full is disk_full
    assert seqs(committed) == [1, 2]
    assert [entry.seq for entry in node.logged()] == [1, 2]


def test_an_engine_that_was_closed_leaves_the_entries_logged() -> None:
    node = new_node()
    assert node.engine.close(0)
    committed = node.commit([put(b"a", b"1")])
    assert isinstance(committed.engine_failure, EngineClosed)
    assert [entry.seq for entry in node.logged()] == [1]


def test_an_engine_that_is_closed_while_judging_leaves_nothing() -> None:
    node = new_node()
    assert node.engine.close(0)
    with pytest.raises(EngineClosed):
        node.commit([put(b"a", b"1")], [delete(b"b")])
    assert node.wal.last_seq == 0


def test_a_closed_segment_is_reported_once() -> None:
    node = new_node()
    value = b'"%s"' % (b"x" * 1000)
    closed = [node.commit([put(b"k", value)]).closed_segment for _ in range(8)]
    assert sum(closed) == 2
    assert len(node.wal.segments) == 1 + sum(closed)


# ---- time ------------------------------------------------------------------------------------------------------


def times(node: Node) -> list[int]:
    return [entry.time_ms for entry in node.logged()]


def test_time_follows_the_clock_but_never_back() -> None:
    node = new_node()
    for ms in (1000, 1005, 900, 0, 1004, 1006):
        node.clock.ms = ms
        node.commit([put(b"a", b"1")], [put(b"b", b"1")])
    assert times(node) == [1000, 1000, 1005, 1005, 1005, 1005, 1005, 1005, 1005, 1005, 1006, 1006]


def test_time_goes_on_from_what_the_engine_holds() -> None:
    """As after a restart, or when LevelDB was reopened, with a clock that was set back in between."""
    node = new_node()
    node.clock.ms = 5000
    node.commit([put(b"a", b"1")])
    node.clock.ms = 4000
    again = Committer(node.wal, node.engine, EPOCH, node.clock, synced=True)
    again.commit([[put(b"b", b"1")]])
    assert times(node) == [5000, 5000]


def test_a_group_that_failed_does_not_move_time() -> None:
    node = new_node()
    node.clock.ms = 1000
    node.commit([put(b"a", b"1")])
    node.clock.ms = 9000
    node.disk.plan.fail(("write_at", "*.wal"), errno.ENOSPC)
    with pytest.raises(StorageFull):
        node.commit([put(b"b", b"1")])
    node.clock.ms = 2000
    node.commit([put(b"c", b"1")])
    assert times(node) == [1000, 2000]
