"""Entries that no primary has are kept: copied out of the log, whole or not at all, once, and readable as a log is."""

import errno
from pathlib import Path

import pytest

from kvnode.node.errors import LogDamaged, LogFailed, StorageFull
from kvnode.node.storage.audit import Audit
from kvnode.node.storage.diverged import list_diverged, move_aside
from kvnode.node.storage.loglist import list_log
from kvnode.node.storage.logview import LogWalk, find_log, view_log
from kvnode.node.storage.recovery import Storage
from kvnode.node.storage.wal import WalOptions
from kvnode.protocol.types import Epoch, Position
from support.crash_plan import DROPPED, KEPT, CrashPlan, SimulatedCrash, torn
from support.storage_rig import CLUSTER_ID, StorageRig, check_holds, epoch_of_start

#: Entries of `write_puts` fill segments that begin with seq 1, 10 and 18.
OPTIONS = WalOptions(segment_bytes=700, keep_bytes=0)
FORK = Position(epoch_of_start(1), 4)
LAST = Position(epoch_of_start(1), 20)
NAME = f"{FORK}..{LAST}"


def written(last_seq: int = 20) -> tuple[StorageRig, Storage]:
    rig = StorageRig(OPTIONS)
    storage = rig.start()
    rig.write_puts(storage, last_seq)
    return rig, storage


def move(rig: StorageRig, storage: Storage, fork: Position = FORK, last: Position = LAST) -> Path | None:
    return move_aside(rig.disk, rig.layout, CLUSTER_ID, OPTIONS, storage.wal, fork, last, rig.captured)


def payloads(rig: StorageRig, directory: Path) -> dict[int, bytes]:
    """What the commands read in a directory of segments, by seq."""
    walk = LogWalk(view_log(rig.disk, find_log(rig.disk, directory)))
    found = {record.entry.seq: record.payload for record in walk.records(None, None)}
    assert walk.faults == []
    return found


@pytest.mark.parametrize(("fork", "last"), [(0, 20), (4, 20), (9, 20), (19, 20), (3, 12)])
def test_entries_after_the_fork_are_copied_as_a_log_of_their_own(fork: int, last: int) -> None:
    rig, storage = written()
    epoch = epoch_of_start(1)
    before = payloads(rig, rig.layout.wal)
    path = move(rig, storage, Position(epoch, fork), Position(epoch, last))
    assert path == rig.layout.diverged / f"1.9f2c1a01-{fork}..1.9f2c1a01-{last}"
    rig = rig.crashed(DROPPED)
    assert payloads(rig, path) == {seq: before[seq] for seq in range(fork + 1, last + 1)}
    check_holds(rig.recover(), 20)


def test_log_stays_as_it_is() -> None:
    rig, storage = written()
    before = rig.disk.snapshot(rig.layout.wal)
    move(rig, storage)
    assert rig.disk.snapshot(rig.layout.wal) == before
    rig.write_puts(storage, 1)
    assert sorted(set(rig.disk.open_handles())) == [rig.layout.wal / storage.wal.segments[-1].name]


def test_copy_is_listed_and_verified_like_any_log() -> None:
    rig, storage = written()
    path = move(rig, storage)
    assert path is not None
    place = find_log(rig.disk, path)
    listed = list(list_log(rig.disk, place))
    assert len(listed) == 2
    assert (listed[0].first_seq, listed[1].first_seq, listed[1].last_seq) == (5, listed[0].last_seq + 1, 20)
    assert all(each.fault is None for each in listed)
    audit = Audit(rig.disk, place)
    assert all(checked.sound for checked in audit.run())
    assert audit.faults == []
    # No segment keeps more room than it has records.
    assert all(each.used_bytes == each.reserved_bytes for each in listed)


def test_nothing_to_copy() -> None:
    rig, storage = written(5)
    assert move(rig, storage, Position(epoch_of_start(1), 5), Position(epoch_of_start(1), 5)) is None
    assert move(rig, storage, Position(epoch_of_start(1), 9), Position(epoch_of_start(1), 5)) is None
    assert not rig.disk.exists(rig.layout.diverged)


def test_what_the_log_has_dropped_is_not_there() -> None:
    rig, storage = written()
    rig.checkpoint(storage)
    rig.trim(storage)
    assert storage.wal.first_seq == 18
    path = move(rig, storage)
    assert path is not None
    assert path.name == NAME
    assert sorted(payloads(rig, path)) == [18, 19, 20]


def test_nothing_is_copied_twice() -> None:
    rig, storage = written()
    path = move(rig, storage)
    before = rig.disk.snapshot()
    calls = len(rig.disk.calls)
    assert move(rig, storage) == path
    assert [call.operation for call in rig.disk.calls[calls:]] == ["sync_directory"]
    assert rig.disk.snapshot() == before
    assert rig.captured.names().count("entries_copied") == 1


def test_what_is_left_of_an_attempt_is_not_part_of_the_next() -> None:
    rig, storage = written()
    rig.disk.put_file(
        rig.layout.diverged / f"{NAME}.tmp" / "00000000000000000002.wal", b"of an attempt that ended early"
    )
    path = move(rig, storage)
    assert path is not None
    assert sorted(payloads(rig, path)) == list(range(5, 21))


def test_copies_are_listed_by_the_position_of_their_last_entry() -> None:
    rig, storage = written()
    assert list_diverged(rig.disk, rig.layout) == []
    for last in (12, 9, 20):
        move(rig, storage, Position(Epoch.of(1, 1), 3), Position(epoch_of_start(1), last))
    move(rig, storage, Position(Epoch(0), 0), Position(Epoch.of(10, 0), 5))
    move(rig, storage, Position(Epoch(0), 0), Position(Epoch.of(9, 0), 5))
    rig.disk.make_directory(rig.layout.diverged / f"{FORK}..{LAST}.tmp")
    rig.disk.make_directory(rig.layout.diverged / "notes")
    assert list_diverged(rig.disk, rig.layout) == [
        "1.00000001-3..1.9f2c1a01-9",
        "1.00000001-3..1.9f2c1a01-12",
        "1.00000001-3..1.9f2c1a01-20",
        "0.00000000-0..9.00000000-5",
        "0.00000000-0..10.00000000-5",
    ]


@pytest.mark.parametrize(
    ("operation", "path", "expected"),
    [
        ("make_directory", "*/diverged/*", OSError),
        ("allocate", "*/diverged/*", StorageFull),
        ("write_at", "*/diverged/*", StorageFull),
        ("rename", f"*/{NAME}.tmp", OSError),
    ],
)
def test_a_full_disk_leaves_nothing_of_the_attempt(operation: str, path: str, expected: type[Exception]) -> None:
    rig, storage = written()
    rig.disk.plan.fail((operation, path), errno.ENOSPC, partial=0.5)
    with pytest.raises(expected):
        move(rig, storage)
    assert list_diverged(rig.disk, rig.layout) == []
    assert rig.disk.open_handles() == [rig.layout.wal / storage.wal.segments[-1].name]
    path_of_copy = move(rig, storage)
    assert path_of_copy is not None
    assert sorted(payloads(rig, path_of_copy)) == list(range(5, 21))


def test_a_failed_sync_is_final() -> None:
    rig, storage = written()
    rig.disk.plan.fail(("sync", "*/diverged/*"), errno.EIO)
    with pytest.raises(LogFailed):
        move(rig, storage)


def test_a_damaged_log_is_told() -> None:
    rig, storage = written()
    rig.damage_record(7)
    with pytest.raises(LogDamaged) as caught:
        move(rig, storage)
    assert caught.value.seq == 7
    assert list_diverged(rig.disk, rig.layout) == []


def test_a_crash_anywhere_leaves_the_whole_copy_or_none_and_the_log_in_any_case() -> None:
    rig, storage = written()
    rig.checkpoint(storage)
    expected = payloads(rig, rig.layout.wal)
    counted = rig.crashed(KEPT)
    move(counted, counted.recover())
    calls = len(counted.disk.calls)
    assert calls > 20
    for number in range(1, calls + 1):
        disk = rig.disk.after_crash(KEPT, CrashPlan(number, 0.5))
        crashed = StorageRig(OPTIONS, disk=disk, engines=rig.engines.after_crash(KEPT, disk))
        with pytest.raises(SimulatedCrash):
            move(crashed, crashed.recover())
        for survival in (KEPT, DROPPED, torn(number), torn(number + 1000)):
            found = crashed.crashed(survival)
            for name in list_diverged(found.disk, found.layout):
                assert name == NAME
                copied = payloads(found, found.layout.diverged / name)
                assert copied == {seq: expected[seq] for seq in range(5, 21)}
            storage = found.recover()
            check_holds(storage, 20)
            path = move(found, storage)
            assert path is not None
            assert sorted(payloads(found.crashed(DROPPED), path)) == list(range(5, 21))
            assert found.disk.list_names(found.layout.diverged) == [NAME]
