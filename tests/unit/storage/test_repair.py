"""The repair of a log: what it plans for each kind of harm, and that the node starts afterwards."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from kvnode.node.errors import DataLost, FileDamaged
from kvnode.node.storage.datadir import Repair, Swap
from kvnode.node.storage.logview import FaultKind
from kvnode.node.storage.recovery import Storage
from kvnode.node.storage.repair import Cut, SwapPending, apply_repair, plan_repair
from kvnode.node.storage.segment import encode_header, segment_name
from kvnode.node.storage.wal import WalOptions
from kvnode.protocol.types import History, Position, Reign
from support.crash_plan import DROPPED, KEPT
from support.storage_rig import CLUSTER_ID, StorageRig, check_holds, epoch_of_start

#: Entries of `write_puts` fill segments that begin with these.
SEGMENTS = (1, 10, 18)
OPTIONS = WalOptions(segment_bytes=700, keep_bytes=0)
LAST = 20

Harm = Callable[[StorageRig], object]


def written(*, checkpoint_at: int = 5, last: int = LAST) -> StorageRig:
    """A directory with entries 1 to 12 of a first reign and later ones of a second, whose node was killed."""
    rig = StorageRig(OPTIONS)
    storage = rig.start()
    for seq in range(1, last + 1):
        if seq == 13:
            storage.history = storage.history.begin(epoch_of_start(2), 13)
            rig.files.save_history(storage.history)
        rig.write_puts(storage, 1)
        if seq == checkpoint_at:
            rig.checkpoint(storage)
    return rig.crashed(KEPT)


def repaired(rig: StorageRig, *, db_lost: bool = False) -> int:
    """Repair, and return where the log ends."""
    plan = plan_repair(rig.disk, rig.layout, db_lost=db_lost)
    assert plan.needed
    apply_repair(rig.disk, rig.layout, plan)
    assert not plan_repair(rig.disk, rig.layout, db_lost=db_lost).needed
    return plan.log_last_seq


def segment_path(rig: StorageRig, first_seq: int) -> Path:
    return rig.layout.wal / segment_name(first_seq)


# ---- plans -----------------------------------------------------------------------------------------------------


def test_log_that_is_being_replaced_is_not_repaired() -> None:
    rig = written()
    position = Position(epoch_of_start(1), 99)
    rig.files.save_swap(Swap(bytes(16), position, position, History((Reign(position.epoch, 1),)), ()))
    with pytest.raises(SwapPending) as caught:
        plan_repair(rig.disk, rig.layout)
    assert "start the node" in (caught.value.hint or "")


def test_sound_directory_needs_no_repair() -> None:
    rig = written()
    assert not plan_repair(rig.disk, rig.layout).needed


def test_log_is_cut_at_damage_and_what_follows_is_moved() -> None:
    rig = written()
    path, offset = rig.damage_record(12)
    plan = plan_repair(rig.disk, rig.layout)
    assert plan.damage is not None
    assert (plan.damage.kind, plan.damage.path, plan.damage.offset, plan.damage.seq) == (
        FaultKind.DAMAGE,
        path,
        offset,
        12,
    )
    assert (plan.cut, plan.removed, plan.unneeded) == (Cut(10, offset), (18,), ())
    assert (plan.log_last_seq, plan.lost_first, plan.lost_last, plan.checkpoint_seq) == (11, 12, 20, 5)
    assert plan.aside == rig.layout.wal_old / "repair-00000000000000000012"
    assert not plan.only_torn


def test_repair_keeps_what_it_takes_out_of_the_log() -> None:
    rig = written()
    _, offset = rig.damage_record(12)
    before = {path.name: rig.read(path) for path in rig.segment_paths()}
    repaired(rig)
    after = rig.disk.stable_snapshot()
    aside = rig.layout.wal_old / "repair-00000000000000000012"
    assert {path.name: data for path, data in after.items() if path.parent == aside} == {
        name: data for name, data in before.items() if name != segment_name(1)
    }
    assert {path.name: data for path, data in after.items() if path.parent == rig.layout.wal} == {
        segment_name(1): before[segment_name(1)],
        segment_name(10): before[segment_name(10)][:offset],
    }
    assert rig.files.load_repair() == Repair(11, 20)


def test_planning_changes_nothing() -> None:
    rig = written()
    rig.damage_record(12)
    before = rig.disk.snapshot()
    plan_repair(rig.disk, rig.layout)
    assert rig.disk.snapshot() == before


def test_damage_in_segments_that_leveldb_does_not_need_costs_nothing() -> None:
    rig = written(checkpoint_at=19)
    rig.damage_record(2)
    plan = plan_repair(rig.disk, rig.layout)
    assert (plan.damage, plan.cut, plan.removed, plan.unneeded) == (None, None, (), (1,))
    assert (plan.log_last_seq, plan.loses_entries) == (20, False)
    repaired(rig)
    assert [int(path.stem) for path in rig.segment_paths()] == [10, 18]
    assert rig.files.load_repair() is None
    check_holds(rig.start(), LAST)


def test_missing_segment_that_leveldb_does_not_need_costs_nothing() -> None:
    rig = written(checkpoint_at=19)
    rig.disk.remove_file(segment_path(rig, 10))
    plan = plan_repair(rig.disk, rig.layout)
    assert (plan.damage, plan.unneeded, plan.removed, plan.loses_entries) == (None, (1,), (), False)


def test_missing_segment_that_leveldb_needs() -> None:
    rig = written()
    rig.disk.remove_file(segment_path(rig, 10))
    plan = plan_repair(rig.disk, rig.layout)
    assert plan.damage is not None
    assert plan.damage.kind is FaultKind.MISSING
    assert (plan.cut, plan.removed, plan.log_last_seq) == (None, (18,), 9)
    assert (plan.lost_first, plan.lost_last) == (10, 20)


def test_damaged_header_takes_the_whole_segment() -> None:
    rig = written()
    rig.flip(segment_path(rig, 10), 3)
    plan = plan_repair(rig.disk, rig.layout)
    assert (plan.cut, plan.removed, plan.log_last_seq) == (None, (10, 18), 9)
    assert (plan.lost_first, plan.lost_last) == (10, 20)


def test_damage_in_a_first_record_leaves_an_empty_segment() -> None:
    rig = written()
    _, offset = rig.damage_record(10)
    plan = plan_repair(rig.disk, rig.layout)
    assert (plan.cut, plan.removed, plan.log_last_seq) == (Cut(10, offset), (18,), 9)


def test_torn_tail_can_be_cut_though_start_up_would() -> None:
    rig = written()
    _, offset = rig.damage_record(20)
    plan = plan_repair(rig.disk, rig.layout)
    assert plan.only_torn
    assert (plan.cut, plan.log_last_seq, plan.loses_entries) == (Cut(18, offset), 19, False)


def test_end_that_is_missing_without_a_trace_is_only_accepted() -> None:
    rig = written(checkpoint_at=15)
    rig.cut_log_before(14)
    plan = plan_repair(rig.disk, rig.layout)
    assert (plan.damage, plan.cut, plan.removed, plan.unneeded) == (None, None, (), ())
    assert (plan.log_last_seq, plan.lost_first, plan.lost_last, plan.needed) == (13, 14, 15, True)


def test_log_that_begins_above_the_checkpoint_is_set_aside() -> None:
    rig = written()
    rig.disk.remove_file(segment_path(rig, 1))
    plan = plan_repair(rig.disk, rig.layout)
    assert (plan.cut, plan.removed, plan.log_last_seq) == (None, (10, 18), 0)
    assert (plan.lost_first, plan.lost_last) == (6, 20)


def test_with_leveldb_lost_the_beginning_is_kept_whatever_the_checkpoint_says() -> None:
    rig = written(checkpoint_at=19)
    _, offset = rig.damage_record(12)
    plan = plan_repair(rig.disk, rig.layout, db_lost=True)
    assert (plan.cut, plan.removed, plan.unneeded, plan.checkpoint_seq) == (Cut(10, offset), (18,), (), 0)
    assert (plan.log_last_seq, plan.lost_first, plan.lost_last) == (11, 12, 20)


def test_missing_leveldb_is_noticed() -> None:
    rig = written(checkpoint_at=19)
    rig.engines.lose_everything(rig.layout.db)
    rig.damage_record(12)
    assert plan_repair(rig.disk, rig.layout).log_last_seq == 11


def test_with_leveldb_lost_a_log_that_does_not_reach_back_helps_nobody() -> None:
    rig = written()
    rig.disk.remove_file(segment_path(rig, 1))
    with pytest.raises(DataLost, match="no part of the log reaches back to seq 1"):
        plan_repair(rig.disk, rig.layout, db_lost=True)


def test_record_outside_the_history_is_a_place_to_cut() -> None:
    rig = written()
    rig.files.save_history(History((Reign(epoch_of_start(1), 1),)))
    plan = plan_repair(rig.disk, rig.layout)
    assert plan.damage is not None
    assert (plan.damage.kind, plan.damage.seq) == (FaultKind.EPOCH, 13)
    assert (plan.log_last_seq, plan.lost_last) == (12, 20)


def test_missing_history_is_not_repaired_by_giving_up_the_log() -> None:
    rig = written()
    rig.disk.remove_file(rig.layout.history)
    with pytest.raises(FileDamaged, match="missing, though the log has entries"):
        plan_repair(rig.disk, rig.layout)


def test_damaged_small_file_is_told_first() -> None:
    rig = written()
    rig.flip(rig.layout.checkpoint, 10)
    rig.damage_record(12)
    with pytest.raises(FileDamaged, match="checkpoint"):
        plan_repair(rig.disk, rig.layout)


def test_second_repair_adds_to_what_was_accepted() -> None:
    rig = written()
    rig.damage_record(12)
    repaired(rig)
    rig.damage_record(8)
    plan = plan_repair(rig.disk, rig.layout)
    assert (plan.log_last_seq, plan.lost_first, plan.lost_last) == (7, 8, 20)


# ---- the start that follows --------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A way to harm a directory, for the tests below."""

    name: str
    harm: Harm


def cut_inside(rig: StorageRig, seq: int) -> None:
    path, record = rig.find_record(seq)
    rig.disk.put_file(path, rig.read(path)[: record.offset + 11])
    for first_seq in SEGMENTS:
        if first_seq > seq:
            rig.disk.remove_file(segment_path(rig, first_seq))


def swap_header(rig: StorageRig, first_seq: int) -> None:
    path = segment_path(rig, first_seq)
    rig.disk.put_file(path, encode_header(CLUSTER_ID, first_seq + 1) + rig.read(path)[40:])


def harms() -> Iterator[Case]:
    for seq in range(1, LAST + 1):
        yield Case(f"damage {seq}", partial(lambda seq, rig: rig.damage_record(seq), seq))
        yield Case(f"cut before {seq}", partial(lambda seq, rig: rig.cut_log_before(seq), seq))
        yield Case(f"cut inside {seq}", partial(lambda seq, rig: cut_inside(rig, seq), seq))
    for first in SEGMENTS:
        yield Case(f"header {first}", partial(lambda first, rig: rig.flip(segment_path(rig, first), 3), first))
        yield Case(f"misnamed {first}", partial(lambda first, rig: swap_header(rig, first), first))
        yield Case(
            f"missing {first}", partial(lambda first, rig: rig.disk.remove_file(segment_path(rig, first)), first)
        )


CASES = list(harms())


def check_start(rig: StorageRig, last_seq: int) -> Storage:
    """The node starts with exactly the entries up to a seq, under a new epoch, and goes on."""
    storage = rig.start()
    check_holds(storage, last_seq)
    assert storage.history.current.term > 2
    assert storage.history.epoch_of(last_seq + 1) == storage.history.current
    assert not rig.disk.exists(rig.layout.repair)
    rig.write_puts(storage, 3)
    check_holds(rig.crashed(DROPPED).start(), last_seq + 3)
    return storage


@pytest.mark.parametrize("checkpoint_at", [0, 15])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_node_starts_after_a_repair_with_all_that_leveldb_has(case: Case, checkpoint_at: int) -> None:
    rig = written(checkpoint_at=checkpoint_at)
    case.harm(rig)
    plan = plan_repair(rig.disk, rig.layout)
    apply_repair(rig.disk, rig.layout, plan)
    assert not plan_repair(rig.disk, rig.layout).needed
    check_start(rig, LAST)


@pytest.mark.parametrize("checkpoint_at", [0, 5, 15, 20])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_node_starts_after_a_repair_though_leveldb_has_no_more_than_its_checkpoint(
    case: Case, checkpoint_at: int
) -> None:
    """After a power failure. What is missing then was told to be lost."""
    rig = written(checkpoint_at=checkpoint_at)
    rig.lose_engine_log()
    case.harm(rig)
    plan = plan_repair(rig.disk, rig.layout)
    apply_repair(rig.disk, rig.layout, plan)
    last_seq = max(plan.log_last_seq, checkpoint_at)
    check_start(rig, last_seq)
    told = set(range(plan.lost_first, plan.lost_last + 1))
    # Of what the log's end held there may be no trace at all; all that is known durable is told.
    known = LAST if case.name.startswith(("damage", "header", "misnamed", "missing")) else max(12, checkpoint_at)
    hidden = (
        {LAST} if case.name == f"damage {LAST}" else set(range(18, LAST + 1)) if case.name.endswith(" 18") else set()
    )
    assert set(range(last_seq + 1, known + 1)) - hidden <= told


@pytest.mark.parametrize("checkpoint_at", [0, 15])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_node_starts_after_a_repair_with_what_the_log_has_when_leveldb_is_lost(case: Case, checkpoint_at: int) -> None:
    rig = written(checkpoint_at=checkpoint_at)
    rig.engines.lose_everything(rig.layout.db)
    case.harm(rig)
    if case.name in ("header 1", "misnamed 1", "missing 1"):
        with pytest.raises(DataLost):
            plan_repair(rig.disk, rig.layout)
        return
    plan = plan_repair(rig.disk, rig.layout)
    apply_repair(rig.disk, rig.layout, plan)
    check_start(rig, plan.log_last_seq)


def test_repair_that_is_told_of_a_lost_leveldb_which_is_whole_loses_nothing() -> None:
    rig = written(checkpoint_at=19)
    rig.damage_record(12)
    assert repaired(rig, db_lost=True) == 11
    check_start(rig, LAST)


def test_nothing_is_taken_from_leveldb() -> None:
    rig = written()
    rig.damage_record(12)
    calls = len(rig.disk.calls)
    repaired(rig)
    assert not [
        call for call in rig.disk.calls[calls:] if str(rig.layout.db) in call.path or "engine" in call.operation
    ]
