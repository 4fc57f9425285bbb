"""A replica dies in every single call of a full sync; it finds its own data whole or the primary's, never a mix.

Scripted processes copy, are cut, resume, drop, begin again, and swap. Each is run once to count its calls, then once
for every call with a crash in it; what a kill and several power losses leave is started from, and that start is crashed
too. After each crash the replica must have the data that it had, with as much of the sync as it was told to have
stored, or the new data, and these for certain once the swap was begun. Then it goes on with the sync to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random

import pytest

from kvnode.node.storage.incoming import IncomingStore, roll_forward
from kvnode.node.storage.recovery import Storage
from kvnode.node.storage.wal import WalOptions
from kvnode.protocol.snapshot import SnapshotRecord
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import Position
from support.crash_plan import DROPPED, KEPT, CrashPlan, SimulatedCrash, Survival, torn
from support.memory_disk import MemoryDisk
from support.model_engine import ModelEngineDisk
from support.storage_rig import StorageRig
from support.sync_rig import (
    FIRST_REIGN,
    HISTORY,
    MEMBERS,
    SECOND_REIGN,
    SYNC,
    as_replica,
    as_stored,
    check_own,
    check_replaced,
    open_incoming,
    record,
    records,
    stored_in,
)

OPTIONS = WalOptions(segment_bytes=512, keep_bytes=1 << 40)
OWN_LAST_SEQ = 5

#: Another sync, of the same keys.
OTHER = Incoming(b"o" * 16, Position(FIRST_REIGN, 44), Position(FIRST_REIGN, 44))

#: By sync, what its records have as values, and the number of the last one.
VALUES = {SYNC.sync_id: b"1", OTHER.sync_id: b"2"}
LAST = {SYNC.sync_id: 29, OTHER.sync_id: 5}

#: Operations that can be half done when the process dies in them, and how much of them then is.
PARTIAL = {
    "write_at": (0.0, 0.6, 1.0),
    "allocate": (0.0, 0.5),
    "engine_open_paranoid": (0.0, 1.0),
    "engine_copy_in": (0.0, 1.0),
    "engine_settle": (0.0, 1.0),
    "engine_flush": (0.0, 1.0),
}


@dataclass(frozen=True, slots=True)
class Truth:
    """What a start may find.

    Attributes:
        sync: what is there of a full sync; None if nothing is.
        data: the sync that the node's data are of; None if they are its own.
    """

    sync: Incoming | None = None
    data: Incoming | None = None


class Process:
    """A replica's process, without its network.

    Attributes:
        truth: what is there.
        possible: what a start may find if the process dies now.
    """

    def __init__(self, rig: StorageRig) -> None:
        self.rig = rig
        self.truth = Truth()
        self.possible = [self.truth]

    def start(self) -> None:
        self.storage, self.incoming, sync = boot(self.rig)
        assert sync == self.truth.sync

    def run(self, script: Callable[[Process], None]) -> None:
        self.start()
        script(self)

    def begin(self, sync: Incoming) -> None:
        self._do(lambda: self.incoming.begin(sync, resumed=False), sync)

    def resume(self, latest: Position) -> None:
        sync = replace(self._sync(), latest=latest)
        self._do(lambda: self.incoming.begin(sync, resumed=True), sync)

    def store(self, first: int, last: int) -> None:
        sync = self._sync()
        copied = records_of(sync, first, last)
        self._do(lambda: self.incoming.store(copied), replace(sync, last_key=copied[-1].key))

    def drop(self) -> None:
        self._do(self.incoming.drop, None)

    def prepare_swap(self) -> None:
        sync, before = self._sync(), self.truth
        forgotten = replace(sync, last_key=b"")
        self.truth = Truth(data=forgotten)
        # Between its end and the swap the last key is forgotten, and a start copies all of it again.
        self.possible = [before, replace(before, sync=forgotten), self.truth]
        self.incoming.prepare_swap(sync.first, sync.latest, HISTORY, MEMBERS)
        self.possible = [self.truth]

    def finish(self) -> None:
        self.prepare_swap()
        self.storage = swap(self.rig, self.storage)

    def _sync(self) -> Incoming:
        assert self.truth.sync is not None
        return self.truth.sync

    def _do(self, act: Callable[[], None], sync: Incoming | None) -> None:
        after = replace(self.truth, sync=sync)
        self.possible = [self.truth, after]
        act()
        self.truth, self.possible = after, [after]


def records_of(sync: Incoming, first: int, last: int) -> list[SnapshotRecord]:
    """The records of a sync of some numbers."""
    return records(first, last, VALUES[sync.sync_id])


def boot(rig: StorageRig) -> tuple[Storage, IncomingStore, Incoming | None]:
    """Start as a replica does."""
    roll_forward(rig.disk, rig.layout, rig.files, rig.captured)
    storage = rig.recover()
    store = open_incoming(rig)
    return storage, store, store.load()


def swap(rig: StorageRig, storage: Storage) -> Storage:
    """Replace what is open, as a running node does."""
    assert storage.engine.close(1)
    storage.wal.close()
    assert roll_forward(rig.disk, rig.layout, rig.files, rig.captured)
    return rig.recover()


# ---- the processes -------------------------------------------------------------------------------------------------


def copy_and_swap(process: Process) -> None:
    """A sync that is cut once, and finished."""
    process.begin(SYNC)
    process.store(0, 9)
    process.store(10, 19)
    process.resume(Position(SECOND_REIGN, 75))
    process.store(20, 29)
    process.finish()


def copy_and_begin_again(process: Process) -> None:
    """A sync in place of another one, which is dropped in the end."""
    process.begin(OTHER)
    process.store(0, 3)
    process.begin(SYNC)
    process.store(0, 1)
    process.drop()


def swap_twice(process: Process) -> None:
    """A sync that is swapped in, and another one after it."""
    process.begin(OTHER)
    process.store(0, 5)
    process.finish()
    process.begin(SYNC)
    process.store(0, 29)
    process.finish()


SCRIPTS = (copy_and_swap, copy_and_begin_again, swap_twice)


# ---- the crashes ---------------------------------------------------------------------------------------------------


def replica_with_data(seed: int) -> StorageRig:
    """A replica that was killed with data of its own, of which a part is in LevelDB for certain."""
    disk = MemoryDisk()
    rig = as_replica(StorageRig(OPTIONS, disk=disk, engines=ModelEngineDisk(disk, memtable_batches=2, seed=seed)))
    storage = rig.start()
    rig.write_puts(storage, 3)
    rig.checkpoint(storage)
    rig.write_puts(storage, OWN_LAST_SEQ - 3)
    return rig


def next_life(rig: StorageRig, survival: Survival, plan: CrashPlan | None = None) -> StorageRig:
    """What the next process finds, and its plan."""
    disk = rig.disk.after_crash(survival, plan)
    return as_replica(StorageRig(OPTIONS, disk=disk, engines=rig.engines.after_crash(survival, disk)))


def crashed_everywhere(script: Callable[[Process], None], seed: int) -> Iterator[Process]:
    """The process after a crash in each of its calls."""
    base = replica_with_data(seed)
    counted = Process(next_life(base, KEPT))
    counted.run(script)
    for call in counted.rig.disk.plan.calls:
        for partial in PARTIAL.get(call.operation, (0.0,)):
            process = Process(next_life(base, KEPT, CrashPlan(call.number, partial)))
            with pytest.raises(SimulatedCrash):
                process.run(script)
            yield process


def check_start(rig: StorageRig, possible: list[Truth], *, go_on: bool = True) -> None:
    """A start finds one of what is possible, whole, and can go on with the sync from there."""
    storage, store, sync = boot(rig)
    data = next((each.data for each in possible if each.data and each.data.first.seq == storage.wal.last_seq), None)
    assert Truth(sync, data) in possible
    if data is None:
        check_own(rig, OWN_LAST_SEQ, storage)
    else:
        check_replaced(rig, data, records_of(data, 0, LAST[data.sync_id]), storage)
    following = check_stored(rig, sync)
    if not go_on:
        return
    if sync is None:
        sync = SYNC
        store.begin(sync, resumed=False)
    else:
        store.begin(sync, resumed=True)
    last = LAST[sync.sync_id]
    if following <= last:
        store.store(records_of(sync, following, last))
    store.prepare_swap(sync.first, sync.latest, HISTORY, MEMBERS)
    check_replaced(rig, sync, records_of(sync, 0, last), swap(rig, storage))
    check_replaced(next_life(rig, DROPPED), sync, records_of(sync, 0, last))
    assert not rig.disk.exists(rig.layout.incoming)


def check_stored(rig: StorageRig, sync: Incoming | None) -> int:
    """What the last key says is there is there, and nothing else; returns the number of the record to go on with."""
    if sync is None:
        assert not rig.disk.exists(rig.layout.incoming)
        return 0
    stored = stored_in(rig.engines, rig, sync)
    if not sync.last_key:
        assert stored in ({}, as_stored(records_of(sync, 0, LAST[sync.sync_id])))
        return 0
    (following,) = [number + 1 for number in range(LAST[sync.sync_id] + 1) if record(number).key == sync.last_key]
    assert stored == as_stored(records_of(sync, 0, following - 1))
    return following


def check_starts(process: Process, survivals: list[Survival], second_crashes: int) -> None:
    """Start from what each survival leaves, and again after crashes in so many calls of that start."""
    rig, possible = process.rig, process.possible
    for survival in survivals:
        try:
            check_start(next_life(rig, survival), possible)
            counted = next_life(rig, survival)
            boot(counted)
            calls = counted.disk.plan.calls
            rng = Random(f"{len(rig.disk.plan.calls)}/{survival}")
            for call in sorted(rng.sample(calls, min(second_crashes, len(calls)))):
                for partial in PARTIAL.get(call.operation, (0.0,)):
                    crashed = next_life(rig, survival, CrashPlan(call.number, partial))
                    with pytest.raises(SimulatedCrash):
                        boot(crashed)
                    for again in (KEPT, DROPPED, torn(rng.randrange(1000))):
                        check_start(next_life(crashed, again), possible, go_on=False)
        except BaseException as error:
            error.add_note(f"{survival} after\n{rig.disk.plan.story()}")
            raise


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.__name__ for script in SCRIPTS])
def test_a_crash_in_every_call_leaves_the_old_data_or_the_new(
    script: Callable[[Process], None], pytestconfig: pytest.Config
) -> None:
    long = pytestconfig.getoption("--long")
    for seed in (1, 2) if long else (1,):
        for process in crashed_everywhere(script, seed):
            number = len(process.rig.disk.plan.calls)
            torn_ones = [torn(number + each) for each in range(4 if long else 2)]
            check_starts(process, [KEPT, DROPPED, *torn_ones], second_crashes=2 if long else 1)


def test_a_second_crash_in_every_call_of_a_start_that_completes_the_swap(pytestconfig: pytest.Config) -> None:
    process = Process(next_life(replica_with_data(1), KEPT))
    process.start()
    process.begin(SYNC)
    process.store(0, 29)
    process.prepare_swap()
    seeds = range(20 if pytestconfig.getoption("--long") else 2)
    check_starts(process, [KEPT, DROPPED, *map(torn, seeds)], second_crashes=1000)


def test_a_second_crash_in_every_call_of_a_start_after_one_half_way_through_the_swap() -> None:
    base = replica_with_data(1)
    for moves in (1, 2, 3, 4):
        process = Process(next_life(base, KEPT))
        process.start()
        process.begin(SYNC)
        process.store(0, 29)
        process.prepare_swap()
        plan = process.rig.disk.plan
        seen = len(plan.calls)
        counted = next_life(process.rig, KEPT)
        roll_forward(counted.disk, counted.layout, counted.files, counted.captured)
        renames = [call.number for call in counted.disk.plan.calls if call.operation == "rename"]
        plan.crash_at = seen + renames[moves - 1] + 1
        with pytest.raises(SimulatedCrash):
            roll_forward(process.rig.disk, process.rig.layout, process.rig.files, process.rig.captured)
        check_starts(process, [KEPT, DROPPED, torn(moves)], second_crashes=1000)


def test_a_sync_of_which_the_file_is_gone_but_not_for_certain_is_whole_or_gone() -> None:
    """What a killed process removed can come back when the power goes: the rest must not have gone before."""
    process = Process(next_life(replica_with_data(1), KEPT))
    process.start()
    process.begin(SYNC)
    process.store(0, 9)
    plan = process.rig.disk.plan
    plan.crash_at = len(plan.calls) + 3
    with pytest.raises(SimulatedCrash):
        process.drop()
    assert plan.calls[-2].operation == "unlink"
    assert plan.calls[-1].operation == "sync_directory"
    counted = next_life(process.rig, KEPT)
    boot(counted)
    for call in counted.disk.plan.calls:
        crashed = next_life(process.rig, KEPT, CrashPlan(call.number))
        with pytest.raises(SimulatedCrash):
            boot(crashed)
        for seed in range(12):
            check_start(next_life(crashed, torn(seed)), process.possible, go_on=False)
