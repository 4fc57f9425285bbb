"""The audit: what it calls sound, and what it says of everything that is not."""

from collections.abc import Callable, Iterable

import pytest

from kvnode.node.errors import LogDamaged
from kvnode.node.storage.audit import Audit, Checked
from kvnode.node.storage.datadir import CleanStop, Member, Repair, Swap
from kvnode.node.storage.logview import Fault, FaultKind, LogPlace
from kvnode.node.storage.segment import HEADER_BYTES, encode_header, encode_record, segment_name
from kvnode.node.storage.wal import WalOptions
from kvnode.protocol.entry import EntryEncoder
from kvnode.protocol.types import Entry, History, Position, Reign, put
from support.crash_plan import KEPT
from support.storage_rig import CLUSTER_ID, FIRST_TIME_MS, StorageRig, epoch_of_start, log_record

#: Entries of `write_puts` fill segments that begin with seq 1, 10 and 18.
OPTIONS = WalOptions(segment_bytes=700, keep_bytes=0)


def written(entries: int, *, checkpoint_at: int = 0, options: WalOptions = OPTIONS) -> StorageRig:
    """A directory whose node wrote so many entries and was killed."""
    rig = StorageRig(options)
    storage = rig.start()
    rig.write_puts(storage, checkpoint_at)
    if checkpoint_at:
        rig.checkpoint(storage)
    rig.write_puts(storage, entries - checkpoint_at)
    return rig.crashed(KEPT)


def audited(rig: StorageRig, *, only_log: bool = False) -> tuple[Audit, dict[str, Checked]]:
    layout = None if only_log else rig.layout
    before = rig.disk.snapshot()
    audit = Audit(rig.disk, LogPlace(rig.layout.wal, layout))
    checked = {each.subject: each for each in audit.run()}
    assert rig.disk.snapshot() == before
    return audit, checked


def check_sound(audit: Audit, checked: Iterable[Checked]) -> None:
    assert (audit.sound, audit.problems, audit.faults) == (True, [], [])
    assert all(each.sound for each in checked)


def only_fault(rig: StorageRig) -> Fault:
    audit, checked = audited(rig)
    assert not audit.sound
    (fault,) = audit.faults
    assert audit.problems == []
    if fault.path.name in checked and fault.kind is not FaultKind.MISSING:
        assert not checked[fault.path.name].sound
        assert fault.reason in checked[fault.path.name].found
    return fault


# ---- sound ---------------------------------------------------------------------------------------------------------


def test_everything_of_a_sound_directory_is_looked_at() -> None:
    rig = written(20, checkpoint_at=5)
    rig.files.save_members((Member("a1" * 16, "n1"), Member("b2" * 16, "n2")))
    audit, checked = audited(rig)
    check_sound(audit, checked.values())
    assert {name: each.found for name, each in checked.items()} == {
        "node.json": f"primary n1, node {'a1' * 16}, cluster {'c1' * 16}",
        "history": "1.9f2c1a01 from seq 1",
        "members": "n1, n2",
        "checkpoint": "LevelDB is durable up to seq 5",
        "clean": "not there",
        "repair": "not there",
        segment_name(1): "seq 1 to 9, 688 of 688 bytes",
        segment_name(10): "seq 10 to 17, 632 of 632 bytes",
        segment_name(18): "seq 18 to 20, 262 of 700 bytes",
    }
    assert (audit.last_seq, audit.checkpoint_seq, audit.known_durable, audit.torn) == (20, 5, 17, None)


def test_directory_that_was_stopped_cleanly_is_sound() -> None:
    rig = StorageRig(OPTIONS)
    storage = rig.start()
    rig.write_puts(storage, 12)
    rig.stop(storage)
    audit, checked = audited(rig)
    check_sound(audit, checked.values())
    assert checked["clean"].found == "stopped in order after seq 12"
    assert audit.known_durable == 12


def test_several_reigns_are_sound() -> None:
    rig = written(5)
    rig.write_puts(rig.start(), 5)
    rig = rig.crashed(KEPT)
    rig.start()
    audit, checked = audited(rig)
    check_sound(audit, checked.values())
    assert checked["history"].found == "1.9f2c1a01 from seq 1, 2.9f2c1a02 from seq 6, 3.9f2c1a03 from seq 11"
    assert audit.known_durable == 10


def test_new_directory_is_sound() -> None:
    rig = StorageRig()
    rig.start()
    audit, checked = audited(rig)
    check_sound(audit, checked.values())
    assert checked[segment_name(1)].found == "no entries, 40 of 1024 bytes"


def test_log_that_was_restarted_behind_leveldb_is_sound() -> None:
    rig = written(10)
    for path in rig.segment_paths():
        rig.disk.remove_file(path)
    rig.start()
    audit, checked = audited(rig)
    check_sound(audit, checked.values())


def test_segments_that_were_set_aside_are_judged_by_themselves() -> None:
    rig = written(20)
    audit, checked = audited(rig, only_log=True)
    check_sound(audit, checked.values())
    assert list(checked) == [path.name for path in rig.segment_paths()]
    rig.damage_record(12)
    audit, _ = audited(rig, only_log=True)
    assert [fault.seq for fault in audit.faults] == [12]


def test_torn_tail_is_sound_and_told() -> None:
    rig = written(5)
    path, offset = rig.damage_record(5)
    audit, checked = audited(rig)
    check_sound(audit, checked.values())
    assert audit.torn is not None
    assert (audit.torn.path, audit.torn.offset, audit.torn.seq) == (path, offset, 5)
    assert f"torn tail at offset {offset}" in checked[path.name].found
    assert audit.last_seq == 4


def test_accepted_loss_is_sound_and_told() -> None:
    rig = written(10, checkpoint_at=8)
    rig.cut_log_before(6)
    assert only_fault(rig).kind is FaultKind.MISSING
    rig.files.save_repair(Repair(5, 8))
    audit, checked = audited(rig)
    check_sound(audit, checked.values())
    assert "the loss of entries up to seq 8 was accepted" in checked["repair"].found


# ---- not sound -----------------------------------------------------------------------------------------------------


def known_by_clean_stop(rig: StorageRig) -> None:
    rig.files.save_clean_stop(CleanStop(5, segment_name(1), 1))


def known_by_history(rig: StorageRig) -> None:
    rig.files.save_history(History((Reign(epoch_of_start(1), 1), Reign(epoch_of_start(2), 6))))


def known_by_checkpoint(rig: StorageRig) -> None:
    rig.files.save_checkpoint(5)


@pytest.mark.parametrize("evidence", [known_by_clean_stop, known_by_history, known_by_checkpoint])
def test_damage_at_a_seq_known_durable_is_judged_as_start_up_does(evidence: Callable[[StorageRig], None]) -> None:
    rig = written(5)
    # Start-up asks LevelDB, too; the audit cannot.
    rig.lose_engine_log()
    evidence(rig)
    path, offset = rig.damage_record(5)
    fault = only_fault(rig)
    assert (fault.kind, fault.path, fault.offset, fault.seq) == (FaultKind.DAMAGE, path, offset, 5)
    if evidence is not known_by_checkpoint:
        with pytest.raises(LogDamaged) as refused:
            rig.recover()
        assert (refused.value.path, refused.value.offset, refused.value.seq) == (path, offset, 5)
        assert refused.value.reason == fault.reason


@pytest.mark.parametrize("seq", [1, 2, 9, 10, 12, 17])
def test_damage_before_a_later_segment(seq: int) -> None:
    rig = written(20)
    path, offset = rig.damage_record(seq)
    fault = only_fault(rig)
    assert (fault.kind, fault.path, fault.offset, fault.seq) == (FaultKind.DAMAGE, path, offset, seq)
    assert "later segments exist" in fault.reason


def test_damage_that_start_up_does_not_look_at() -> None:
    rig = written(20, checkpoint_at=20)
    rig.damage_record(2)
    assert only_fault(rig).seq == 2
    rig.start()


def test_every_damaged_segment_is_told_and_what_is_behind_the_damage() -> None:
    rig = written(20)
    rig.damage_record(3)
    rig.flip(rig.segment_paths()[1], HEADER_BYTES + 20)
    audit, checked = audited(rig)
    assert [(fault.kind, fault.seq) for fault in audit.faults] == [(FaultKind.DAMAGE, 3), (FaultKind.DAMAGE, 10)]
    assert [(each.last_seq, each.highest_seq) for each in audit.segments] == [(2, 9), (9, 17), (20, 20)]
    assert [checked[path.name].sound for path in rig.segment_paths()] == [False, False, True]


def test_missing_segment() -> None:
    rig = written(20)
    _, second, third = rig.segment_paths()
    rig.disk.remove_file(second)
    fault = only_fault(rig)
    assert (fault.kind, fault.path, fault.offset, fault.seq) == (FaultKind.MISSING, third, 0, 10)
    assert "seq 10 to 17 are missing" in fault.reason


def test_segment_that_overlaps_the_one_before() -> None:
    rig = written(20)
    rig.disk.put_file(rig.layout.wal / segment_name(16), encode_header(CLUSTER_ID, 16))
    audit, _ = audited(rig)
    assert (audit.faults[0].kind, audit.faults[0].path.name) == (FaultKind.MISSING, segment_name(16))
    assert "overlaps" in audit.faults[0].reason


def test_lost_end_of_the_log() -> None:
    rig = written(20, checkpoint_at=15)
    rig.cut_log_before(12)
    fault = only_fault(rig)
    path = rig.segment_paths()[-1]
    assert (fault.kind, fault.path, fault.offset, fault.seq) == (FaultKind.MISSING, path, len(rig.read(path)), 12)
    assert "entries up to seq 15 were durable" in fault.reason


def test_lost_log() -> None:
    rig = written(20, checkpoint_at=15)
    for path in rig.segment_paths():
        rig.disk.remove_file(path)
    fault = only_fault(rig)
    assert (fault.kind, fault.path, fault.seq) == (FaultKind.MISSING, rig.layout.wal, 1)


def test_log_that_begins_above_the_checkpoint() -> None:
    rig = written(20, checkpoint_at=5)
    rig.disk.remove_file(rig.segment_paths()[0])
    fault = only_fault(rig)
    assert (fault.kind, fault.path.name, fault.seq) == (FaultKind.MISSING, segment_name(10), 6)
    assert "LevelDB is durable only up to seq 5" in fault.reason


def test_damaged_header() -> None:
    rig = written(20)
    rig.flip(rig.segment_paths()[1], 3)
    fault = only_fault(rig)
    assert (fault.kind, fault.path.name, fault.offset, fault.seq) == (FaultKind.DAMAGE, segment_name(10), 0, 10)
    assert "no magic number" in fault.reason


def test_epoch_outside_the_history() -> None:
    rig = written(5)
    rig.files.save_history(History((Reign(epoch_of_start(1), 1), Reign(epoch_of_start(2), 4))))
    fault = only_fault(rig)
    assert (fault.kind, fault.seq) == (FaultKind.EPOCH, 4)
    assert "the record has epoch 1.9f2c1a01" in fault.reason


def test_time_that_goes_back() -> None:
    rig = written(5)
    path, last = rig.find_record(5)
    entry = Entry(6, epoch_of_start(1), FIRST_TIME_MS + 3, (put(b"k", b"1"),))
    record = encode_record(log_record(EntryEncoder().encode(entry)), marked=True)
    rig.disk.put_file(path, rig.read(path)[: last.end] + record)
    fault = only_fault(rig)
    assert (fault.kind, fault.offset, fault.seq) == (FaultKind.TIME, last.end, 6)
    assert f"{FIRST_TIME_MS + 3} is below an earlier one's, {FIRST_TIME_MS + 5}" in fault.reason
    assert audited(rig)[0].segments[0].fault is None


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("node.json", "restore it"),
        ("history", "made after the node's last start"),
        ("members", "restore it"),
        ("checkpoint", "if the log begins at seq 1, remove the file"),
        ("clean", "remove the file"),
        ("repair", "kvnode wal repair"),
    ],
)
def test_damaged_small_file(name: str, hint: str) -> None:
    rig = written(5)
    rig.files.save_members((Member("a1" * 16, "n1"),))
    rig.files.save_checkpoint(2)
    rig.files.save_clean_stop(CleanStop(2, segment_name(1), 1))
    rig.files.save_repair(Repair(2, 2))
    rig.flip(rig.root / name, 8)
    audit, checked = audited(rig)
    (problem,) = audit.problems
    assert (audit.sound, checked[name].sound) == (False, False)
    assert str(rig.root / name) in problem.message
    assert problem.hint is not None
    assert hint in problem.hint
    assert [subject for subject, each in checked.items() if not each.sound] == [name]


def test_missing_identity() -> None:
    rig = written(5)
    rig.disk.remove_file(rig.layout.node)
    audit, _ = audited(rig)
    assert [problem.message for problem in audit.problems] == [
        "/data/node.json: missing, though the directory holds a log"
    ]


def test_missing_history() -> None:
    rig = written(5)
    rig.disk.remove_file(rig.layout.history)
    audit, _ = audited(rig)
    (problem,) = audit.problems
    assert problem.message == f"{rig.layout.history}: missing, though the log has entries"
    assert problem.hint is not None
    assert "restore it" in problem.hint
    assert not audit.faults


# ---- a full sync ---------------------------------------------------------------------------------------------------


def test_replica_that_has_copied_data_is_said_to_serve_later() -> None:
    rig = written(5)
    rig.files.save_serve_from(Position(epoch_of_start(1), 99))
    audit, checks = audited(rig)
    check_sound(audit, checks.values())
    assert "before seq 99 is applied" in checks["serve_from"].found


def test_log_that_is_being_replaced_is_not_looked_at() -> None:
    rig = written(5)
    position = Position(epoch_of_start(1), 99)
    rig.files.save_swap(Swap(bytes(16), position, position, History((Reign(position.epoch, 1),)), ()))
    rig.damage_record(3)
    audit, checks = audited(rig)
    assert audit.sound
    assert list(checks)[-1] == "swap"
    assert "its next start completes that" in checks["swap"].found
    rig.flip(rig.layout.swap, 20)
    audit, _ = audited(rig)
    assert not audit.sound


# ---- while the node runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop_after", [6, 7, 8])
def test_node_that_goes_on_during_the_audit(drop_after: int) -> None:
    """It writes and closes segments between any two looks of the audit, and once drops those that it can."""
    rig = StorageRig(OPTIONS)
    storage = rig.start()
    rig.write_puts(storage, 20)
    audit = Audit(rig.disk, LogPlace(rig.layout.wal, rig.layout))
    checks = []
    for checked in audit.run():
        checks.append(checked)
        rig.write_puts(storage, 3)
        if len(checks) == drop_after:
            rig.checkpoint(storage)
            assert rig.trim(storage)
    check_sound(audit, checks)
    # The segments are listed after the six small files were looked at.
    assert any("dropped by the running node" in checked.found for checked in checks) is (drop_after > 6)


def test_node_that_is_started_during_the_audit() -> None:
    rig = written(5)
    audit = Audit(rig.disk, LogPlace(rig.layout.wal, rig.layout))
    checks = []
    for checked in audit.run():
        checks.append(checked)
        if checked.subject == "repair":
            rig.write_puts(rig.start(), 3)
    check_sound(audit, checks)
    assert audit.last_seq == 8


def test_clean_marker_that_vanishes_during_the_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = StorageRig(OPTIONS)
    storage = rig.start()
    rig.write_puts(storage, 5)
    rig.stop(storage)
    rig = rig.crashed(KEPT)
    disk_open = rig.disk.open

    def open_after_start(path: object, *, writable: bool) -> object:
        if path == rig.layout.clean:
            rig.disk.remove_file(rig.layout.clean)
        return disk_open(path, writable=writable)  # type: ignore[arg-type]

    monkeypatch.setattr(rig.disk, "open", open_after_start)
    audit = Audit(rig.disk, LogPlace(rig.layout.wal, rig.layout))
    check_sound(audit, list(audit.run()))
