"""A crash at every call that a repair makes: the log is as it was, or repaired, or can be repaired again."""

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import pytest

from kvnode.node.errors import DataLost, LogDamaged
from kvnode.node.storage.repair import apply_repair, plan_repair
from kvnode.node.storage.segment import segment_name
from kvnode.node.storage.wal import WalOptions
from support.crash_plan import DROPPED, KEPT, CrashPlan, SimulatedCrash, Survival, torn
from support.memory_disk import MemoryDisk
from support.storage_rig import StorageRig, check_holds, epoch_of_start

LAST = 20


class Case(NamedTuple):
    """A harmed directory; its log's segments begin with seq 1, 10 and 18.

    Attributes:
        name: for people.
        harm: done to a directory with 20 entries of two reigns.
        checkpoint_at: LevelDB is durable up to here.
        engine_has_all: whether all entries are in LevelDB's tables nevertheless.
        last_seq: the last entry that is there after the repair.
    """

    name: str
    harm: Callable[[StorageRig], object]
    checkpoint_at: int
    engine_has_all: bool
    last_seq: int

    def make(self) -> StorageRig:
        """The directory, after the node was killed."""
        rig = StorageRig(WalOptions(segment_bytes=700, keep_bytes=0))
        storage = rig.start()
        for seq in range(1, LAST + 1):
            if seq == 13:
                storage.history = storage.history.begin(epoch_of_start(2), 13)
                rig.files.save_history(storage.history)
            rig.write_puts(storage, 1)
            if seq == self.checkpoint_at:
                rig.checkpoint(storage)
        rig = rig.crashed(KEPT)
        if self.engine_has_all:
            rig.engines.database(rig.layout.db).flush_log()
        rig.lose_engine_log()
        self.harm(rig)
        return rig


def break_second_header(rig: StorageRig) -> None:
    rig.flip(rig.layout.wal / segment_name(10), 3)


def break_first_and_last(rig: StorageRig) -> None:
    rig.damage_record(19)
    rig.damage_record(2)


CASES = (
    Case("damage in the middle", lambda rig: rig.damage_record(4), 2, False, 3),
    Case("damage in the middle, leveldb has all", lambda rig: rig.damage_record(4), 2, True, LAST),
    Case("damage in the last segment", lambda rig: rig.damage_record(18), 5, False, 17),
    Case("missing segment", lambda rig: rig.disk.remove_file(rig.layout.wal / segment_name(10)), 2, False, 9),
    Case("damaged header", break_second_header, 2, False, 9),
    Case("damaged header that nothing needs", break_second_header, 19, False, LAST),
    Case("damage that nothing needs and damage", break_first_and_last, 17, False, 18),
    Case("end lost without a trace", lambda rig: rig.cut_log_before(11), 5, False, 10),
)


def segments(disk: MemoryDisk) -> dict[str, set[bytes]]:
    """The contents of all files with a segment's name, in the log or aside."""
    found: dict[str, set[bytes]] = {}
    for path, data in disk.snapshot().items():
        if path.suffix == ".wal":
            found.setdefault(path.name, set()).add(data)
    return found


def repair(rig: StorageRig) -> None:
    apply_repair(rig.disk, rig.layout, plan_repair(rig.disk, rig.layout))


@pytest.mark.parametrize("survival", [KEPT, DROPPED, torn(1), torn(2)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_crash_at_any_call_of_a_repair(case: Case, survival: Survival) -> None:
    harmed = case.make()
    whole = harmed.crashed(KEPT)
    repair(whole)
    calls = whole.disk.calls
    assert len(calls) >= 4
    for call in calls:
        for share in (0.0, 0.5, 1.0) if call.operation in ("write_at", "truncate") else (0.0,):
            rig = harmed.crashed(KEPT)
            before = segments(rig.disk)
            rig.disk.plan = CrashPlan(crash_at=call.number, crash_partial=share)
            with pytest.raises(SimulatedCrash):
                repair(rig)
            where = f"crash in {call}, {share} of it done"
            for start_first in (True, False):
                again = rig.crashed(survival)
                if start_first:
                    # It starts from what there is, or refuses; it must not spoil what the repair has begun.
                    with suppress(LogDamaged, DataLost):
                        again.recover()
                    again = again.crashed(DROPPED)
                repair(again)
                kept = segments(again.disk)
                assert all(contents <= kept.get(name, set()) for name, contents in before.items()), where
                storage = again.start()
                assert storage.wal.last_seq == case.last_seq, where
                check_holds(storage, case.last_seq)
                assert again.layout.repair not in again.disk.stable_snapshot(), where
