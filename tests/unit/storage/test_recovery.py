"""What start-up makes of each state that a stop, a crash, damage or an operator can leave behind."""

import errno
from collections.abc import Callable
from zlib import crc32

import pytest

from kvnode.node.errors import DataLost, EngineFailed, FileDamaged, LogDamaged, LogFailed, StorageFull, UnknownFormat
from kvnode.node.storage.datadir import CleanStop, Repair
from kvnode.node.storage.repair import plan_repair
from kvnode.node.storage.segment import (
    HEADER_BYTES,
    encode_header,
    encode_record,
    segment_name,
)
from kvnode.node.storage.wal import WalOptions
from kvnode.protocol.entry import EntryEncoder
from kvnode.protocol.types import Entry, Epoch, History, Position, Reign, put
from support.crash_plan import DROPPED, KEPT, CrashPlan
from support.storage_rig import CLUSTER_ID, StorageRig, check_holds, epoch_of_start, log_record, value_of

#: Five records of `write_puts` fill a segment of the rig to here or further, so that the sixth begins a new one.
SMALL = WalOptions(segment_bytes=700, keep_bytes=1 << 40)


def written(entries: int, *, options: WalOptions = SMALL, checkpoint_at: int = 0) -> StorageRig:
    """A directory after its node wrote so many entries, with a checkpoint after one of them, and was killed."""
    rig = StorageRig(options=options)
    storage = rig.start()
    if checkpoint_at:
        rig.write_puts(storage, checkpoint_at)
        rig.checkpoint(storage)
    rig.write_puts(storage, entries - checkpoint_at)
    return rig.crashed(KEPT)


def check_refused_twice(rig: StorageRig, error: type[Exception]) -> Exception:
    """Start-up refuses, changes nothing that it could judge by, and refuses again."""
    before = rig.disk.snapshot()
    with pytest.raises(error) as first:
        rig.recover()
    after = rig.disk.snapshot()
    assert after == before
    with pytest.raises(error) as second:
        rig.crashed(DROPPED).recover()
    assert str(second.value) == str(first.value)
    return first.value


# ---- without damage ------------------------------------------------------------------------------------------------


def test_new_directory_begins_with_an_empty_durable_log() -> None:
    rig = StorageRig()
    storage = rig.start()
    check_holds(storage, 0)
    assert (storage.clean, storage.replayed, storage.checkpoint_seq) == (False, 0, 0)
    assert storage.history == History((Reign(epoch_of_start(1), 1),))
    assert rig.layout.wal / segment_name(1) in rig.disk.stable_snapshot()


def test_clean_stop_is_opened_without_looking_at_the_log() -> None:
    rig = StorageRig(options=SMALL)
    storage = rig.start()
    rig.write_puts(storage, 12)
    rig.stop(storage)
    assert rig.files.load_clean_stop() == CleanStop(12, storage.wal.segments[-1].name, storage.wal.segments[-1].end)
    again = rig.crashed(DROPPED)
    storage = again.start()
    assert (storage.clean, storage.replayed, storage.checkpoint_seq) == (True, 0, 12)
    assert again.files.load_clean_stop() is None
    assert again.layout.clean not in again.disk.stable_snapshot()
    check_holds(storage, 12)
    again.write_puts(storage, 3)
    check_holds(again.crashed(KEPT).start(), 15)


def test_unclean_stop_replays_from_the_checkpoint_whatever_leveldb_says() -> None:
    rig = written(12, checkpoint_at=5)
    assert rig.engines.database(rig.layout.db).tables.applied.position.seq == 5
    storage = rig.start()
    assert (storage.clean, storage.replayed, storage.checkpoint_seq) == (False, 7, 5)
    check_holds(storage, 12)


def test_replayed_segments_are_durable_before_anything_is_served() -> None:
    rig = StorageRig(options=WalOptions(SMALL.segment_bytes, SMALL.keep_bytes, sync=False))
    rig.write_puts(rig.start(), 12)
    killed = rig.crashed(KEPT)
    killed.start()
    check_holds(killed.crashed(DROPPED).start(), 12)


def test_every_start_begins_an_epoch_and_replaces_one_without_entries() -> None:
    rig = StorageRig()
    rig.write_puts(rig.start(), 2)
    for term in (2, 3):
        rig = rig.crashed(KEPT)
        storage = rig.start()
        assert [(reign.epoch.term, reign.first_seq) for reign in storage.history] == [(1, 1), (term, 3)]


def test_temporary_files_are_deleted() -> None:
    rig = written(3)
    for name in ("wal/00000000000000000004.wal.tmp", "checkpoint.tmp"):
        rig.disk.put_file(rig.root / name, b"half")
    check_holds(rig.start(), 3)
    assert not [path for path in rig.disk.snapshot() if path.suffix == ".tmp"]


def test_temporary_files_of_others_stay() -> None:
    rig = StorageRig()
    rig.disk.put_file(rig.root / "thesis.tmp", b"all there is")
    rig.start()
    assert rig.read(rig.root / "thesis.tmp") == b"all there is"


def test_empty_last_segment_is_fine() -> None:
    rig = written(3)
    path, record = rig.find_record(3)
    rig.disk.put_file(path, rig.read(path)[: record.end])
    rig.disk.put_file(rig.layout.wal / segment_name(4), encode_header(CLUSTER_ID, 4) + bytes(100))
    storage = rig.start()
    check_holds(storage, 3)
    rig.write_puts(storage, 2)
    check_holds(rig.crashed(KEPT).start(), 5)


def test_foreign_names_in_the_log_directory_are_left_alone() -> None:
    rig = written(3)
    strange = rig.layout.wal / "00000000000000000001.wal.bak"
    rig.disk.put_file(strange, b"mine")
    check_holds(rig.start(), 3)
    assert rig.read(strange) == b"mine"


# ---- the torn tail -------------------------------------------------------------------------------------------------


def torn_group(rig: StorageRig, seqs: range, *, marked: bool) -> bytes:
    """A group as it would stand behind the log's end."""
    epoch = rig.files.load_history() or History()
    encoder = EntryEncoder()
    payloads = [encoder.encode(Entry(seq, epoch.current, 1, (put(b"torn", b"%d" % seq),))) for seq in seqs]
    return b"".join(encode_record(log_record(payload), marked=marked and not i) for i, payload in enumerate(payloads))


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 30])
def test_torn_group_behind_the_end_is_cut_off_durably(cut: int) -> None:
    rig = written(3)
    path, record = rig.find_record(3)
    torn = torn_group(rig, range(4, 6), marked=True)
    rig.disk.put_file(path, rig.read(path)[: record.end] + torn[:cut])
    storage = rig.start()
    check_holds(storage, 3)
    assert len(rig.disk.stable_snapshot()[path]) == record.end
    assert rig.captured.fields_of("torn_tail_cut")["seq"] == 4
    rig.write_puts(storage, 2)
    check_holds(rig.crashed(DROPPED).start(), 5)


def test_second_record_of_a_torn_group_is_dropped_with_the_first() -> None:
    rig = written(3)
    path, record = rig.find_record(3)
    torn = bytearray(torn_group(rig, range(4, 6), marked=True))
    torn[8] ^= 1
    rig.disk.put_file(path, rig.read(path)[: record.end] + torn)
    check_holds(rig.start(), 3)


def test_whole_records_before_the_torn_one_are_kept() -> None:
    rig = written(3)
    path, record = rig.find_record(3)
    rig.disk.put_file(path, rig.read(path)[: record.end] + torn_group(rig, range(4, 6), marked=True)[:-1])
    storage = rig.start()
    assert storage.wal.last_seq == 4
    assert value_of(storage, b"torn") == b"4"


def test_mark_behind_the_damage_makes_it_corruption() -> None:
    rig = written(0)
    (path,) = rig.segment_paths()
    data = encode_header(CLUSTER_ID, 1) + torn_group(rig, range(1, 2), marked=True)
    damaged = len(data) - 1
    data += torn_group(rig, range(2, 3), marked=True)
    rig.disk.put_file(path, data[:damaged] + bytes([data[damaged] ^ 1]) + data[damaged + 1 :])
    error = check_refused_twice(rig, LogDamaged)
    assert isinstance(error, LogDamaged)
    assert (error.path, error.offset, error.seq) == (path, HEADER_BYTES, 1)
    assert "was written after a sync" in error.reason
    assert "kvnode wal repair /data`" in str(error)


def test_intact_marked_record_of_a_later_seq_in_the_place_of_another_is_corruption() -> None:
    rig = written(0)
    (path,) = rig.segment_paths()
    rig.disk.put_file(path, encode_header(CLUSTER_ID, 1) + torn_group(rig, range(2, 3), marked=True))
    error = check_refused_twice(rig, LogDamaged)
    assert isinstance(error, LogDamaged)
    assert "an intact record has seq 2" in error.reason


def not_an_entry() -> bytes:
    """A record that matches its CRC and holds no entry: only decoding tells."""
    payload = EntryEncoder().encode(Entry(4, Epoch(1), 1, (put(b"k", b"1"),)))
    return encode_record(log_record(payload[:-2]), marked=False)


def test_record_that_only_decoding_finds_wrong_is_a_torn_tail_behind_the_end() -> None:
    rig = written(3)
    path, record = rig.find_record(3)
    rig.disk.put_file(path, rig.read(path)[: record.end] + not_an_entry())
    check_holds(rig.start(), 3)
    assert "not msgpack" in str(rig.captured.fields_of("torn_tail_cut")["reason"])
    assert len(rig.disk.stable_snapshot()[path]) == record.end


def test_record_that_only_decoding_finds_wrong_is_refused_before_leveldb_is_touched() -> None:
    """What is before it would make LevelDB forget, until it is replayed whole, up to where it was durable."""
    rig = written(5, checkpoint_at=1)
    path, record = rig.find_record(4)
    data = rig.read(path)
    rig.disk.put_file(path, data[: record.offset] + not_an_entry() + data[record.end :])
    error = check_refused_twice(rig, LogDamaged)
    assert isinstance(error, LogDamaged)
    assert (error.path, error.offset, error.seq) == (path, record.offset, 4)
    assert "engine_write" not in {call.operation for call in rig.disk.calls}


# ---- damage below what is known durable ----------------------------------------------------------------------------


def known_by_leveldb(rig: StorageRig) -> None:
    assert rig.engines.database(rig.layout.db).logs[-1][-1].applied.synced


def known_by_checkpoint(rig: StorageRig) -> None:
    rig.engines.database(rig.layout.db).logs[-1].clear()
    rig.files.save_checkpoint(3)


def known_by_clean_stop(rig: StorageRig) -> None:
    rig.engines.database(rig.layout.db).logs[-1].clear()
    rig.files.save_clean_stop(CleanStop(3, segment_name(1), 1))


def known_by_history(rig: StorageRig) -> None:
    rig.engines.database(rig.layout.db).logs[-1].clear()
    history = rig.files.load_history()
    assert history is not None
    rig.files.save_history(history.begin(Epoch.of(2, 2), 4))


@pytest.mark.parametrize("evidence", [known_by_leveldb, known_by_checkpoint, known_by_clean_stop, known_by_history])
def test_damage_at_a_seq_known_durable_is_corruption(evidence: Callable[[StorageRig], None]) -> None:
    rig = written(3)
    evidence(rig)
    path, offset = rig.damage_record(3)
    error = check_refused_twice(rig, LogDamaged)
    assert isinstance(error, LogDamaged)
    assert (error.path, error.offset, error.seq) == (path, offset, 3)
    assert "seq 3 was known durable" in error.reason


def test_damage_before_a_later_segment_is_corruption() -> None:
    rig = written(12)
    assert len(rig.segment_paths()) > 1
    path, offset = rig.damage_record(2)
    error = check_refused_twice(rig, LogDamaged)
    assert isinstance(error, LogDamaged)
    assert (error.path, error.offset, error.seq) == (path, offset, 2)
    assert "later segments exist" in error.reason


def test_damage_that_leveldb_does_not_need_does_not_stop_a_start() -> None:
    rig = written(12, checkpoint_at=12)
    rig.damage_record(1)
    check_holds(rig.start(), 12)


def test_missing_segment_is_corruption() -> None:
    rig = written(20)
    first, second, third, *_ = rig.segment_paths()
    rig.disk.remove_file(second)
    error = check_refused_twice(rig, LogDamaged)
    assert isinstance(error, LogDamaged)
    assert (error.path, error.offset, error.seq) == (third, 0, rig.records_of(first)[-1].entry.seq + 1)


@pytest.mark.parametrize("offset", [0, 9, 12, 30, 36])
def test_damaged_header_is_corruption(offset: int) -> None:
    rig = written(12, checkpoint_at=12)
    path = rig.segment_paths()[0]
    rig.flip(path, offset)
    error = check_refused_twice(rig, LogDamaged)
    assert isinstance(error, LogDamaged)
    assert (error.path, error.offset) == (path, 0)


def test_name_unlike_its_header_is_corruption() -> None:
    rig = written(3)
    (path,) = rig.segment_paths()
    rig.disk.put_file(rig.layout.wal / segment_name(2), rig.read(path))
    rig.disk.remove_file(path)
    error = check_refused_twice(rig, LogDamaged)
    assert "begins with seq 1" in str(error)


def test_record_of_an_epoch_outside_the_history_is_corruption() -> None:
    rig = written(3)
    rig.engines.database(rig.layout.db).logs[-1].clear()
    rig.files.save_history(History((Reign(Epoch.of(1, 7), 1),)))
    error = check_refused_twice(rig, LogDamaged)
    assert "not this node's history" in str(error)


def test_record_of_the_reign_before_its_own_is_corruption() -> None:
    rig = written(6)
    rig.engines.database(rig.layout.db).logs[-1].clear()
    history = rig.files.load_history()
    assert history is not None
    rig.files.save_history(history.begin(Epoch.of(9, 9), 4))
    error = check_refused_twice(rig, LogDamaged)
    assert "not this node's history" in str(error)
    assert error.fields["seq"] == 4
    assert error.fields["offset"] == rig.find_record(4)[1].offset


def test_unknown_versions_are_refused_naming_both() -> None:
    rig = written(3)
    (path,) = rig.segment_paths()
    head = bytearray(rig.read(path)[: HEADER_BYTES - 4])
    head[11] = 2
    rig.disk.put_file(path, bytes(head) + crc32(head).to_bytes(4, "big") + rig.read(path)[HEADER_BYTES:])
    error = check_refused_twice(rig, UnknownFormat)
    assert "format version 2, this program knows version 1" in str(error)


def test_damaged_small_file_is_refused_with_its_name() -> None:
    rig = written(3)
    rig.flip(rig.layout.history, 5)
    error = check_refused_twice(rig, FileDamaged)
    assert str(rig.layout.history) in str(error)


# ---- LevelDB ahead, behind, lost, foreign --------------------------------------------------------------------------


def test_leveldb_ahead_of_the_log_counts_and_is_not_overwritten_by_older_entries() -> None:
    rig = written(10)
    rig.cut_log_before(6)
    old = {path.name: rig.read(path) for path in rig.segment_paths()}
    storage = rig.start()
    check_holds(storage, 10)
    assert storage.checkpoint_seq == 10
    assert [segment.first_seq for segment in storage.wal.segments] == [11]
    aside = rig.layout.wal_old / "00000000000000000011"
    assert {path.name: data for path, data in rig.disk.stable_snapshot(aside).items()} == old
    assert rig.captured.fields_of("log_restarted")["log_last_seq"] == 5
    rig.write_puts(storage, 2)
    check_holds(rig.crashed(KEPT).start(), 12)


def test_log_lost_altogether() -> None:
    rig = written(10)
    for path in rig.segment_paths():
        rig.disk.remove_file(path)
    storage = rig.start()
    check_holds(storage, 10)
    assert [segment.first_seq for segment in storage.wal.segments] == [11]


def test_log_end_lost_below_what_was_durable_is_refused_and_leveldb_stays_as_it_is() -> None:
    rig = written(10, checkpoint_at=4)
    rig = rig.crashed(KEPT)
    rig.start()
    # A second reign says that 1 to 10 were durable; a power failure takes LevelDB back to 4, and the log's end is gone.
    rig = rig.crashed(KEPT)
    rig.engines.roll_back(rig.layout.db)
    rig.cut_log_before(8)
    error = check_refused_twice(rig, DataLost)
    assert "up to seq 10 were durable, but the log ends at 7 and LevelDB at 4" in str(error)
    assert rig.engine().applied.position.seq == 4


def test_lost_leveldb_is_rebuilt_from_a_log_that_reaches_back_to_seq_1() -> None:
    rig = written(12, checkpoint_at=8)
    rig.engines.lose_everything(rig.layout.db)
    storage = rig.start()
    assert (storage.replayed, storage.checkpoint_seq) == (12, 12)
    check_holds(storage, 12)


def test_leveldb_older_than_its_checkpoint_is_moved_aside_and_rebuilt() -> None:
    rig = written(12, checkpoint_at=8)
    rig.files.save_checkpoint(12)
    rig.lose_engine_log()
    check_holds(rig.start(), 12)
    assert rig.captured.fields_of("engine_rebuild")["moved_to"] == rig.layout.db_old / "1"
    assert rig.disk.exists(rig.layout.db_old / "1")


def test_leveldb_ahead_of_the_log_is_durable_before_the_log_goes_on_without_what_it_has() -> None:
    rig = written(12, checkpoint_at=8)
    rig.cut_log_before(10)
    assert rig.start().wal.segments[0].first_seq == 13
    check_holds(rig.crashed(DROPPED).start(), 12)


def test_nothing_counts_as_durable_in_a_leveldb_that_is_being_rebuilt() -> None:
    """After a crash in the middle it may hold later entries without earlier ones, up to any seq."""
    rig = written(12, checkpoint_at=8).crashed(KEPT)
    rig.engines.lose_everything(rig.layout.db)
    rig.disk.plan.fail(("engine_write", "*"), errno.EIO, sticky=True, partial=1)
    with pytest.raises(EngineFailed):
        rig.recover()
    assert rig.files.load_checkpoint() == 0
    check_holds(rig.crashed(KEPT).start(), 12)


def test_leveldb_that_does_not_take_what_it_lacks_is_moved_aside_and_rebuilt() -> None:
    """Such as one with a damaged table, which only a compaction finds."""
    rig = written(12, checkpoint_at=8).crashed(KEPT)
    rig.disk.plan.fail(("engine_write", "*"), errno.EIO)
    check_holds(rig.start(), 12)
    assert rig.captured.fields_of("engine_rebuild")["moved_to"] == rig.layout.db_old / "1"


def test_leveldb_that_does_not_take_what_it_lacks_is_refused_without_the_log_from_seq_1() -> None:
    rig = written(12, checkpoint_at=10).crashed(KEPT)
    rig.disk.remove_file(rig.segment_paths()[0])
    rig.disk.plan.fail(("engine_write", "*"), errno.EIO)
    with pytest.raises(DataLost, match="the log begins at seq"):
        rig.recover()
    check_holds(rig.crashed(KEPT).start(), 12)


def test_leveldb_ahead_of_the_log_that_cannot_be_flushed_is_refused() -> None:
    rig = written(12, checkpoint_at=8).crashed(KEPT)
    rig.cut_log_before(10)
    rig.disk.plan.fail(("engine_flush", "*"), errno.EIO)
    with pytest.raises(DataLost, match="up to seq 12 is not in the log, which ends at 9"):
        rig.recover()
    check_holds(rig.crashed(KEPT).start(), 12)


@pytest.mark.parametrize("operation", ["engine_write", "engine_flush"])
def test_leveldb_without_room_for_what_it_lacks_is_no_lost_one(operation: str) -> None:
    rig = written(12, checkpoint_at=8).crashed(KEPT)
    if operation == "engine_flush":
        rig.cut_log_before(10)
    rig.disk.plan.fail((operation, "*"), errno.ENOSPC)
    with pytest.raises(StorageFull):
        rig.recover()
    check_holds(rig.crashed(KEPT).start(), 12)


def test_lost_leveldb_without_the_log_from_seq_1_is_refused() -> None:
    rig = written(12, checkpoint_at=8)
    rig.disk.remove_file(rig.segment_paths()[0])
    rig.engines.lose_everything(rig.layout.db)
    with pytest.raises(DataLost, match="the log begins at seq"):
        rig.recover()


@pytest.mark.parametrize("clean", [True, False])
def test_refusal_leaves_no_empty_leveldb_where_there_was_none(clean: bool) -> None:
    """A repair would take it for the one that holds all up to the checkpoint, and say that nothing is lost."""
    rig = StorageRig(WalOptions(700, 1 << 40))
    storage = rig.start()
    rig.write_puts(storage, 20)
    if clean:
        rig.stop(storage)
    else:
        rig.checkpoint(storage)
    rig = rig.crashed(KEPT)
    rig.disk.remove_file(rig.segment_paths()[-1])
    for name in rig.disk.list_names(rig.layout.db):
        rig.disk.remove_file(rig.layout.db / name)
    with pytest.raises(DataLost, match="and LevelDB at 0"):
        rig.recover()
    assert rig.disk.list_names(rig.layout.db) == []
    plan = plan_repair(rig.disk, rig.layout)
    assert (plan.checkpoint_seq, plan.lost_last) == (0, 20)


def test_rebuilding_needs_an_intact_log_and_a_refusal_keeps_the_evidence() -> None:
    """Were the checkpoint given up before the log was read, a second start would take the damage for a torn tail."""
    rig = written(5, options=WalOptions(4096, 1 << 40), checkpoint_at=5)
    rig.engines.lose_everything(rig.layout.db)
    rig.damage_record(5)
    for _ in range(2):
        with pytest.raises(LogDamaged, match="seq 5 was known durable"):
            rig.recover()
        rig = rig.crashed(DROPPED)
    assert rig.files.load_checkpoint() == 5


def test_log_that_begins_above_the_checkpoint_is_refused() -> None:
    rig = written(20, checkpoint_at=2)
    rig.disk.remove_file(rig.segment_paths()[0])
    error = check_refused_twice(rig, DataLost)
    assert "LevelDB is durable only up to 2" in str(error)


@pytest.mark.parametrize("clean", [True, False])
def test_leveldb_of_another_history_is_refused(clean: bool) -> None:
    rig = StorageRig()
    storage = rig.start()
    rig.write_puts(storage, 4)
    if clean:
        rig.stop(storage)
    rig = rig.crashed(KEPT)
    rig.files.save_history(History((Reign(Epoch.of(1, 7), 1),)))
    error = check_refused_twice(rig, DataLost)
    assert f"stands at {Position(epoch_of_start(1), 4)}, which is not in /data/history" in str(error)


@pytest.mark.parametrize("clean", [True, False])
def test_missing_history_is_called_missing(clean: bool) -> None:
    rig = StorageRig()
    storage = rig.start()
    rig.write_puts(storage, 4)
    if clean:
        rig.stop(storage)
    rig = rig.crashed(KEPT)
    rig.disk.remove_file(rig.layout.history)
    error = check_refused_twice(rig, FileDamaged)
    assert f"{rig.layout.history}: missing, though LevelDB stands at" in str(error)


def spoil_size(rig: StorageRig) -> None:
    rig.disk.put_file(rig.segment_paths()[-1], rig.read(rig.segment_paths()[-1]) + bytes(50))


def spoil_checkpoint(rig: StorageRig) -> None:
    rig.files.save_checkpoint(2)


def spoil_segment(rig: StorageRig) -> None:
    rig.files.save_clean_stop(CleanStop(4, segment_name(2), len(rig.read(rig.segment_paths()[-1]))))


@pytest.mark.parametrize("spoil", [spoil_size, spoil_checkpoint, spoil_segment])
def test_clean_marker_that_does_not_fit_is_not_believed(spoil: Callable[[StorageRig], None]) -> None:
    rig = StorageRig()
    storage = rig.start()
    rig.write_puts(storage, 4)
    rig.stop(storage)
    rig = rig.crashed(DROPPED)
    spoil(rig)
    storage = rig.start()
    assert not storage.clean
    check_holds(storage, 4)
    assert not rig.disk.exists(rig.layout.clean)


# ---- a repair ------------------------------------------------------------------------------------------------------


def lost_end() -> StorageRig:
    """The log ends at 7 and LevelDB at 4, though three reigns say that 1 to 10 were durable."""
    rig = written(10, checkpoint_at=4)
    for _ in range(2):
        rig.start()
        rig = rig.crashed(KEPT)
    # What each of these starts replayed was not flushed.
    rig.engines.roll_back(rig.layout.db, flushes=2)
    rig.cut_log_before(8)
    return rig


def test_accepted_loss_is_cut_from_the_history_and_terms_go_on() -> None:
    rig = lost_end()
    history = rig.files.load_history()
    assert history is not None
    assert [(reign.epoch.term, reign.first_seq) for reign in history] == [(1, 1), (3, 11)]
    rig.files.save_repair(Repair(7, 10))
    storage = rig.start()
    check_holds(storage, 7)
    assert [(reign.epoch.term, reign.first_seq) for reign in storage.history] == [(1, 1), (4, 8)]
    assert rig.files.load_repair() is None
    assert rig.captured.fields_of("loss_accepted") == {"first_lost_seq": 8, "last_lost_seq": 10}
    rig.write_puts(storage, 1)
    check_holds(rig.crashed(KEPT).start(), 8)


def test_loss_beyond_what_was_accepted_is_refused() -> None:
    rig = lost_end()
    rig.files.save_repair(Repair(7, 9))
    error = check_refused_twice(rig, DataLost)
    assert "kvnode wal repair /data" in str(error)


@pytest.mark.parametrize("clean", [True, False])
def test_acceptance_does_not_outlive_the_start_that_follows(clean: bool) -> None:
    rig = StorageRig()
    storage = rig.start()
    rig.write_puts(storage, 4)
    if clean:
        rig.stop(storage)
    rig = rig.crashed(KEPT)
    rig.files.save_repair(Repair(4, 100))
    assert rig.start().clean is clean
    assert rig.layout.repair not in rig.disk.stable_snapshot()


# ---- the disk ------------------------------------------------------------------------------------------------------


def test_full_disk_is_reported_as_such() -> None:
    rig = StorageRig()
    rig.disk.free_bytes = 300
    with pytest.raises(StorageFull):
        rig.start()


def test_failed_sync_of_the_log_is_final() -> None:
    rig = written(3)
    rig.disk.plan = CrashPlan()
    rig.disk.plan.fail(("sync", "*.wal"), errno.EIO)
    with pytest.raises(LogFailed):
        rig.recover()


def test_what_a_failed_sync_left_in_the_page_cache_only_is_written_again() -> None:
    """The kernel takes pages whose write-back failed for clean: syncing them once more does nothing."""
    rig = StorageRig(options=SMALL)
    storage = rig.start()
    rig.write_puts(storage, 2)
    rig.disk.plan.fail(("sync", "*.wal"), errno.EIO)
    with pytest.raises(LogFailed):
        rig.write_puts(storage, 1)
    restarted = rig.crashed(KEPT)
    storage = restarted.start()
    assert storage.wal.last_seq == 3
    restarted.write_puts(storage, 2)
    check_holds(restarted.crashed(DROPPED).start(), 5)


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, StorageFull), (errno.EIO, LogFailed)])
def test_failure_to_write_the_tail_again(number: int, error: type[Exception]) -> None:
    rig = written(3)
    rig.disk.plan = CrashPlan()
    rig.disk.plan.fail(("write_at", "*.wal"), number, partial=0.5)
    with pytest.raises(error):
        rig.recover()
    check_holds(rig.crashed(DROPPED).start(), 3)
