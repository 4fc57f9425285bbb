"""A full sync on the replica's disk: begun, resumed, dropped, and swapped for the node's own data."""

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kvnode.node.errors import EngineFailed, FileDamaged, StorageError, StorageFull
from kvnode.node.fs import RealFs
from kvnode.node.storage.datadir import CleanStop, Identity, Layout, Repair, StateFiles
from kvnode.node.storage.incoming import IncomingStore, SyncLost, roll_forward
from kvnode.node.storage.recovery import Recovery, Storage
from kvnode.node.storage.segment import HEADER_BYTES
from kvnode.node.storage.wal import Segment, WalOptions
from kvnode.protocol.snapshot import SnapshotRecord
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import Entry, Epoch, History, Position, Reign, put
from support.crash_plan import DROPPED, KEPT
from support.engines import SMALL
from support.events import CapturedEvents
from support.storage_rig import CLUSTER_ID, StorageRig, log_record
from support.sync_rig import (
    HISTORY,
    MEMBERS,
    SECOND_REIGN,
    SYNC,
    as_replica,
    as_stored,
    check_own,
    check_replaced,
    open_incoming,
    records,
    stored_in,
)

OTHER = Incoming(b"o" * 16, SYNC.first, SYNC.latest)


def rig_with_data(last_seq: int = 5) -> tuple[StorageRig, Storage]:
    """A replica with data of its own, running."""
    rig = as_replica(StorageRig())
    storage = rig.start()
    rig.write_puts(storage, last_seq)
    return rig, storage


def close(storage: Storage) -> None:
    """Let go of log and LevelDB, as a running node does before the swap."""
    assert storage.engine.close(1)
    storage.wal.close()


def after_power_loss(rig: StorageRig) -> StorageRig:
    return as_replica(rig.crashed(DROPPED))


# ---- begun, stored, resumed ----------------------------------------------------------------------------------------


def test_without_a_sync_there_is_none() -> None:
    rig, _ = rig_with_data()
    store = open_incoming(rig)
    assert store.load() is None
    store.drop()
    store.close()
    assert rig.captured.names().count("incoming_removed") == 0


def test_what_is_stored_is_there_after_a_power_loss_with_its_last_key() -> None:
    rig, _ = rig_with_data()
    store = open_incoming(rig)
    store.begin(SYNC, resumed=False)
    assert open_incoming(after_power_loss(rig)).load() == SYNC
    for first in range(0, 40, 10):
        store.store(records(first, first + 9))
        other = after_power_loss(rig)
        found = open_incoming(other).load()
        assert found == replace(SYNC, last_key=b"new%05d" % (first + 9))
        assert stored_in(other.engines, other, SYNC) == as_stored(records(0, first + 9))
    check_own(as_replica(rig.crashed(KEPT)), 5)


def test_a_sync_is_resumed_with_a_later_snapshot() -> None:
    rig, _ = rig_with_data()
    store = open_incoming(rig)
    store.begin(SYNC, resumed=False)
    store.store(records(0, 9))
    store.close()
    rig = after_power_loss(rig)
    store = open_incoming(rig)
    found = store.load()
    assert found is not None
    later = replace(found, latest=Position(SECOND_REIGN, 99))
    store.begin(later, resumed=True)
    store.store(records(10, 19))
    found = open_incoming(after_power_loss(rig)).load()
    assert found == replace(later, last_key=b"new00019")


def test_resuming_in_the_same_process_needs_no_load() -> None:
    rig, _ = rig_with_data()
    store = open_incoming(rig)
    store.begin(SYNC, resumed=False)
    store.store(records(0, 9))
    store.begin(replace(SYNC, last_key=b"new00009"), resumed=True)
    store.close()
    store.begin(replace(SYNC, last_key=b"new00005"), resumed=True)
    store.store(records(6, 12))
    assert stored_in(rig.engines, rig, SYNC) == as_stored(records(0, 12))


@pytest.mark.parametrize("sync", [OTHER, replace(SYNC, last_key=b"new00010")])
def test_resuming_what_is_not_there_is_refused(sync: Incoming) -> None:
    rig, _ = rig_with_data()
    store = open_incoming(rig)
    with pytest.raises(SyncLost):
        store.begin(sync, resumed=True)
    store.begin(SYNC, resumed=False)
    store.store(records(0, 9))
    with pytest.raises(SyncLost):
        store.begin(sync, resumed=True)
    assert open_incoming(after_power_loss(rig)).load() == replace(SYNC, last_key=b"new00009")


@pytest.mark.parametrize("other", [OTHER, SYNC])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_new_sync_begins_with_nothing_of_the_one_before(other: Incoming, restarted: bool) -> None:
    rig, _ = rig_with_data()
    store = open_incoming(rig)
    store.begin(SYNC, resumed=False)
    store.store(records(0, 9))
    if restarted:
        rig = after_power_loss(rig)
        store = open_incoming(rig)
        store.load()
    store.begin(other, resumed=False)
    found = after_power_loss(rig)
    assert open_incoming(found).load() == other
    assert stored_in(found.engines, found, other) == {}
    assert sorted(rig.disk.list_names(rig.layout.incoming)) == [f"db-{other.sync_id.hex()}", "sync"]
    store.store(records(3, 4))
    assert stored_in(rig.engines, rig, other) == as_stored(records(3, 4))


def test_a_dropped_sync_is_gone_for_good() -> None:
    rig, _ = rig_with_data()
    store = open_incoming(rig)
    store.begin(SYNC, resumed=False)
    store.store(records(0, 9))
    store.drop()
    assert not rig.disk.exists(rig.layout.incoming)
    assert not after_power_loss(rig).disk.exists(rig.layout.incoming)
    store.begin(OTHER, resumed=False)
    assert open_incoming(after_power_loss(rig)).load() == OTHER


# ---- what is left over ---------------------------------------------------------------------------------------------


def without_state(rig: StorageRig) -> None:
    rig.disk.remove_file(rig.layout.incoming_sync)


def with_damaged_state(rig: StorageRig) -> None:
    rig.flip(rig.layout.incoming_sync, 12)


def without_database(rig: StorageRig) -> None:
    rig.disk.remove_tree(rig.layout.incoming / f"db-{SYNC.sync_id.hex()}")


def with_damaged_database(rig: StorageRig) -> None:
    rig.engines.database(rig.layout.incoming / f"db-{SYNC.sync_id.hex()}").damaged = True


@pytest.mark.parametrize("harm", [without_state, with_damaged_state, without_database, with_damaged_database])
def test_what_cannot_be_resumed_is_removed(harm: Callable[[StorageRig], None]) -> None:
    rig, _ = rig_with_data()
    store = open_incoming(rig)
    store.begin(SYNC, resumed=False)
    store.store(records(0, 9))
    store.close()
    rig = after_power_loss(rig)
    harm(rig)
    store = open_incoming(rig)
    assert store.load() is None
    assert rig.captured.fields_of("incoming_removed")["path"] == rig.layout.incoming
    assert not after_power_loss(rig).disk.exists(rig.layout.incoming)
    store.begin(SYNC, resumed=False)
    assert stored_in(rig.engines, rig, SYNC) == {}


def test_what_is_left_of_others_is_removed_and_strangers_are_left_alone() -> None:
    rig, _ = rig_with_data()
    store = open_incoming(rig)
    store.begin(SYNC, resumed=False)
    for name in ("db-old/CURRENT", "wal/00000000000000000051.wal", "sync.tmp", "notes.txt", "more/x"):
        rig.disk.put_file(rig.layout.incoming / name, b"db999")
    rig = after_power_loss(rig)
    assert open_incoming(rig).load() == SYNC
    assert rig.disk.list_names(rig.layout.incoming) == [f"db-{SYNC.sync_id.hex()}", "more", "notes.txt", "sync"]


# ---- a full disk ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "path"),
    [
        ("make_directory", "*/incoming"),
        ("engine_open_paranoid", "*/incoming/*"),
        ("engine_flush", "*"),
        ("write_at", "*/incoming/sync.tmp"),
    ],
)
@pytest.mark.parametrize("partial", [0, 1])
def test_a_full_disk_leaves_the_sync_before_as_it_is(operation: str, path: str, partial: float) -> None:
    rig, _ = rig_with_data()
    store = open_incoming(rig)
    store.begin(SYNC, resumed=False)
    store.store(records(0, 9))
    rig.disk.plan.fail((operation, path), errno.ENOSPC, partial=partial)
    with pytest.raises((OSError, EngineFailed)) as caught:
        store.begin(OTHER, resumed=False)
    assert getattr(caught.value, "disk_full", True)
    assert open_incoming(after_power_loss(rig)).load() == replace(SYNC, last_key=b"new00009")
    store.begin(replace(SYNC, last_key=b"new00009"), resumed=True)
    store.store(records(10, 10))
    store.begin(OTHER, resumed=False)
    assert open_incoming(after_power_loss(rig)).load() == OTHER


def test_a_full_disk_when_resuming_leaves_the_positions_as_they_were() -> None:
    rig, _ = rig_with_data()
    store = open_incoming(rig)
    store.begin(SYNC, resumed=False)
    rig.disk.plan.fail(("write_at", "*/incoming/sync.tmp"), errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        store.begin(replace(SYNC, latest=Position(SECOND_REIGN, 99)), resumed=True)
    assert open_incoming(after_power_loss(rig)).load() == SYNC


@pytest.mark.parametrize("partial", [0, 0.5, 1])
def test_a_full_disk_while_storing_is_got_over(partial: float) -> None:
    rig, _ = rig_with_data()
    store = open_incoming(rig)
    store.begin(SYNC, resumed=False)
    store.store(records(0, 9))
    rig.disk.plan.fail(("engine_copy_in", "*"), errno.ENOSPC, partial=partial)
    with pytest.raises(EngineFailed) as caught:
        store.store(records(10, 19))
    assert caught.value.disk_full
    store.begin(replace(SYNC, last_key=b"new00009"), resumed=True)
    store.store(records(10, 14))
    found = after_power_loss(rig)
    # What the failed call left of its records is of the same sync, so that it counts.
    last = 19 if partial == 1 else 14
    assert open_incoming(found).load() == replace(SYNC, last_key=b"new%05d" % last)
    assert as_stored(records(0, 14)).items() <= stored_in(found.engines, found, SYNC).items()


# ---- the swap ------------------------------------------------------------------------------------------------------


def prepared(sync: Incoming = SYNC, last: int = 29) -> tuple[StorageRig, Storage, IncomingStore]:
    """A replica that has copied everything, and begun the swap."""
    rig, storage = rig_with_data()
    store = open_incoming(rig)
    store.begin(sync, resumed=False)
    store.store(records(0, last))
    store.prepare_swap(sync.first, sync.latest, HISTORY, MEMBERS)
    return rig, storage, store


def test_running_node_goes_on_with_the_new_data() -> None:
    rig, storage, store = prepared()
    close(storage)
    assert roll_forward(rig.disk, rig.layout, rig.files, rig.captured)
    assert rig.captured.fields_of("data_replaced")["first"] == SYNC.first
    storage = check_replaced(rig, SYNC, records(0, 29))
    assert not rig.disk.exists(rig.layout.incoming)
    entry = Entry(51, HISTORY.current, 1, (put(b"z", b"1"),))
    storage.wal.append([log_record(rig.encode(entry))])
    storage.engine.write([entry], synced=True)
    with pytest.raises(SyncLost):
        store.begin(SYNC, resumed=True)
    store.begin(OTHER, resumed=False)
    store.drop()
    assert not roll_forward(rig.disk, rig.layout, rig.files, rig.captured)


def test_begun_swap_survives_a_power_loss() -> None:
    rig, _, _ = prepared()
    rig = after_power_loss(rig)
    assert roll_forward(rig.disk, rig.layout, rig.files, rig.captured)
    rig = after_power_loss(rig)
    check_replaced(rig, SYNC, records(0, 29))
    assert not rig.disk.exists(rig.layout.incoming)


def test_old_data_are_whole_until_the_swap_is_begun() -> None:
    rig, _ = rig_with_data()
    store = open_incoming(rig)
    store.begin(SYNC, resumed=False)
    store.store(records(0, 29))
    rig.disk.plan.fail(("create", "*/swap.tmp"), errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        store.prepare_swap(SYNC.first, SYNC.latest, HISTORY, MEMBERS)
    other = as_replica(rig.crashed(KEPT))
    assert not roll_forward(other.disk, other.layout, other.files, other.captured)
    check_own(other, 5)


@pytest.mark.parametrize(
    ("operation", "path"),
    [
        ("make_directory", "*/incoming/wal"),
        ("allocate", "*/incoming/wal/*"),
        ("engine_settle", "*"),
        ("engine_flush", "*"),
        ("create", "*/swap.tmp"),
        ("write_at", "*/swap.tmp"),
        ("rename", "*/swap.tmp"),
    ],
)
@pytest.mark.parametrize("partial", [0, 0.5, 1])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_full_disk_before_the_swap_is_got_over(operation: str, path: str, partial: float, restarted: bool) -> None:
    rig, storage = rig_with_data()
    store = open_incoming(rig)
    store.begin(SYNC, resumed=False)
    store.store(records(0, 29))
    rig.disk.plan.fail((operation, path), errno.ENOSPC, partial=partial)
    with pytest.raises((OSError, EngineFailed)) as caught:
        store.prepare_swap(SYNC.first, SYNC.latest, HISTORY, MEMBERS)
    assert getattr(caught.value, "disk_full", True)
    assert not rig.disk.exists(rig.layout.swap)
    sync = replace(SYNC, latest=Position(SECOND_REIGN, 80))
    if restarted:
        close(storage)
        rig = after_power_loss(rig)
        store = open_incoming(rig)
        found = store.load()
        assert found is not None
        assert found.last_key in (b"", b"new00029")
        store.begin(replace(sync, last_key=found.last_key), resumed=True)
        if not found.last_key:
            store.store(records(0, 29))
    else:
        store.begin(replace(sync, last_key=b"new00029"), resumed=True)
        close(storage)
    store.store(records(30, 31))
    store.prepare_swap(sync.first, sync.latest, HISTORY, MEMBERS)
    roll_forward(rig.disk, rig.layout, rig.files, rig.captured)
    check_replaced(after_power_loss(rig), sync, records(0, 31))


def test_a_swap_of_which_it_is_open_whether_it_was_begun_is_no_full_disk() -> None:
    rig, _ = rig_with_data()
    store = open_incoming(rig)
    store.begin(SYNC, resumed=False)
    store.store(records(0, 29))
    rig.disk.plan.fail(("sync_directory", str(rig.root)), errno.ENOSPC)
    with pytest.raises(StorageError, match="swap failed") as caught:
        store.prepare_swap(SYNC.first, SYNC.latest, HISTORY, MEMBERS)
    assert not isinstance(caught.value, StorageFull | EngineFailed)
    rig = as_replica(rig.crashed(KEPT))
    assert roll_forward(rig.disk, rig.layout, rig.files, rig.captured)
    check_replaced(rig, SYNC, records(0, 29))


@pytest.mark.parametrize(
    "sync",
    [
        Incoming(b"s" * 16, SYNC.first, SYNC.first),
        Incoming(b"s" * 16, Position(Epoch(0), 0), Position(Epoch(0), 0)),
        Incoming(b"s" * 16, Position(Epoch(0), 0), SYNC.latest),
        SYNC,
    ],
)
def test_every_kind_of_position_is_recovered_from(sync: Incoming) -> None:
    """The history goes on beyond all of them: a later primary began to reign before the sync ended."""
    rig, storage, _ = prepared(sync)
    close(storage)
    roll_forward(rig.disk, rig.layout, rig.files, rig.captured)
    check_replaced(rig, sync, records(0, 29))
    again = check_replaced(after_power_loss(rig), sync, records(0, 29))
    assert not again.clean


def test_an_empty_primary_is_synced_from() -> None:
    rig, storage = rig_with_data()
    store = open_incoming(rig)
    store.begin(SYNC, resumed=False)
    store.prepare_swap(SYNC.first, SYNC.first, HISTORY, MEMBERS)
    close(storage)
    roll_forward(rig.disk, rig.layout, rig.files, rig.captured)
    check_replaced(rig, replace(SYNC, latest=SYNC.first), [])


def test_a_new_replica_without_data_takes_them() -> None:
    rig = as_replica(StorageRig())
    rig.disk.make_directory(rig.root)
    rig.disk.sync_directory(rig.root.parent)
    rig.files.save_identity(rig.identity)
    storage = rig.recover()
    store = open_incoming(rig)
    store.begin(SYNC, resumed=False)
    store.store(records(0, 3))
    store.prepare_swap(SYNC.first, SYNC.latest, HISTORY, MEMBERS)
    close(storage)
    roll_forward(rig.disk, rig.layout, rig.files, rig.captured)
    check_replaced(rig, SYNC, records(0, 3))


def test_what_says_something_of_the_old_data_goes_with_them() -> None:
    rig, storage = rig_with_data()
    rig.stop(storage)
    rig.files.save_repair(Repair(3, 5))
    rig.files.save_serve_from(Position(Epoch.of(1, 1), 99))
    rig.files.save_clean_stop(CleanStop(50, "00000000000000000051.wal", 1024))
    rig = after_power_loss(rig)
    store = open_incoming(rig)
    sync = replace(SYNC, latest=SYNC.first)
    store.begin(sync, resumed=False)
    store.store(records(0, 3))
    store.prepare_swap(sync.first, sync.latest, HISTORY, MEMBERS)
    roll_forward(rig.disk, rig.layout, rig.files, rig.captured)
    assert not rig.disk.exists(rig.layout.clean)
    assert not rig.disk.exists(rig.layout.repair)
    check_replaced(rig, sync, records(0, 3))


def test_a_swap_that_fails_half_way_is_completed_the_next_time() -> None:
    """Whatever fails: the calls are those of a swap that goes through."""
    rig, storage, _ = prepared()
    close(storage)
    rig = after_power_loss(rig)
    counted = as_replica(rig.crashed(KEPT))
    roll_forward(counted.disk, counted.layout, counted.files, counted.captured)
    assert len(counted.disk.calls) > 30
    for number in range(1, len(counted.disk.calls) + 1):
        other = as_replica(rig.crashed(KEPT))
        other.disk.plan.fail(number, errno.ENOSPC)
        with pytest.raises(StorageFull, match="no room to complete the full sync"):
            roll_forward(other.disk, other.layout, other.files, other.captured)
        again = roll_forward(other.disk, other.layout, other.files, other.captured)
        if not again:
            # Only the old data are left of it.
            assert open_incoming(other).load() is None
        assert not other.disk.exists(other.layout.incoming)
        check_replaced(other, SYNC, records(0, 29))


def test_each_move_is_durable_before_the_next_step() -> None:
    rig, storage, _ = prepared()
    close(storage)
    before = len(rig.disk.calls)
    roll_forward(rig.disk, rig.layout, rig.files, rig.captured)
    calls = [(call.operation, call.path) for call in rig.disk.calls[before:]]
    moves = [i for i, (operation, path) in enumerate(calls) if operation == "rename" and not path.endswith(".tmp")]
    assert len(moves) == 4
    for move in moves:
        assert sorted(calls[move + 1 : move + 3]) == [("sync_directory", "/data"), ("sync_directory", "/data/incoming")]


def test_nothing_but_its_own_segment_comes_with_a_sync() -> None:
    rig, storage = rig_with_data()
    store = open_incoming(rig)
    store.begin(SYNC, resumed=False)
    rig.disk.put_file(rig.layout.incoming / "wal/00000000000000000007.wal", b"of a sync that was not finished")
    store.store(records(0, 29))
    store.prepare_swap(SYNC.first, SYNC.latest, HISTORY, MEMBERS)
    close(storage)
    roll_forward(rig.disk, rig.layout, rig.files, rig.captured)
    check_replaced(rig, SYNC, records(0, 29))


def test_what_was_moved_aside_before_is_not_in_the_way() -> None:
    """A start that crashed behind the swap leaves the old data, and the next sync may come before they are removed."""
    rig, storage, _ = prepared()
    for name in ("old-wal/00000000000000000001.wal", "old-db/CURRENT"):
        rig.disk.put_file(rig.layout.incoming / name, b"db999")
    close(storage)
    roll_forward(rig.disk, rig.layout, rig.files, rig.captured)
    check_replaced(rig, SYNC, records(0, 29))


def test_a_damaged_intent_is_refused_with_a_hint() -> None:
    rig, _, _ = prepared()
    rig = after_power_loss(rig)
    rig.flip(rig.layout.swap, 20)
    with pytest.raises(FileDamaged, match="swap") as caught:
        roll_forward(rig.disk, rig.layout, rig.files, rig.captured)
    assert "kvnode join" in (caught.value.hint or "")


def test_it_works_on_a_real_disk_with_leveldb(tmp_path: Path) -> None:
    layout, fs, log = Layout(tmp_path / "data"), RealFs(), CapturedEvents()
    fs.make_directory(layout.root)
    files, options = StateFiles(fs, layout), WalOptions(1 << 16, 1 << 30)
    identity = Identity("ab" * 16, "n1", CLUSTER_ID.hex(), "replica", "10.0.0.1:7001")
    recovery = Recovery(fs, layout, identity, SMALL, options, log)
    storage = recovery.run()
    files.save_history(History((Reign(Epoch.of(1, 1), 1),)))
    entry = Entry(1, Epoch.of(1, 1), 1, (put(b"old", b"1"),))
    storage.wal.append([log_record(StorageRig().encode(entry))])
    storage.engine.write([entry], synced=True)

    def open_store() -> IncomingStore:
        return IncomingStore(fs, layout, files, SMALL, CLUSTER_ID, options, log)

    many = [SnapshotRecord(b"new%05d" % n, n % 50 + 1, HISTORY.reigns[0].epoch, 0, b"v" * 300) for n in range(1000)]
    store = open_store()
    store.begin(SYNC, resumed=False)
    store.store(many[:3])
    store.begin(SYNC, resumed=False)
    for begin in range(0, 500, 50):
        store.store(many[begin : begin + 50])
    store.close()
    store = open_store()
    found = store.load()
    assert found == replace(SYNC, last_key=b"new00499")
    store.begin(found, resumed=True)
    for begin in range(500, 1000, 50):
        store.store(many[begin : begin + 50])
    store.prepare_swap(SYNC.first, SYNC.latest, HISTORY, MEMBERS)
    close(storage)
    assert roll_forward(fs, layout, files, log)
    storage = Recovery(fs, layout, identity, SMALL, options, log).run()
    assert storage.wal.segments == [Segment(51, 50, HEADER_BYTES)]
    assert storage.engine.applied.position == SYNC.first
    scan, copied = storage.engine.scan_records(b""), []
    while group := scan.next_records(10_000):
        copied += group
    assert copied == many
    scan.close()
    close(storage)
    names = {path.name for path in layout.root.iterdir()}
    assert names == {"checkpoint", "db", "history", "members", "serve_from", "wal"}
