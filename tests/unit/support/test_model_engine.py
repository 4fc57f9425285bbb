"""The model of LevelDB: right while nothing goes wrong, and as forgetful as LevelDB when something does."""

import errno
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.node.api import KeyRange, Record
from kvnode.node.errors import EngineClosed, EngineFailed, RecordDamaged
from kvnode.node.storage.engine import Applied, Engine, EngineFactory, RecordScan, Scan
from kvnode.protocol.snapshot import SnapshotRecord
from kvnode.protocol.types import Entry, Epoch, Position, Seq, delete, put
from support.crash_plan import DROPPED, KEPT, CrashPlan, SimulatedCrash, Survival, torn
from support.memory_disk import MemoryDisk
from support.model_engine import ModelEngine, ModelEngineDisk

DB = Path("/data/db")
EPOCH = Epoch.of(1, 7)


def entry(seq: Seq) -> Entry:
    """An entry that leaves a trace of itself, changes a common key, and deletes one of an earlier entry."""
    ops = (
        put(b"%04d" % seq, b'"%d"' % seq),
        put(b"last", b"%d" % seq),
        delete(b"%04d" % (seq - 3)),
        put(b"kept%04d" % seq, b"1"),
    )
    return Entry(seq, EPOCH, 1000 + seq, ops)


def new_engines(plan: CrashPlan | None = None, seed: int = 0) -> ModelEngineDisk:
    disk = MemoryDisk(plan)
    disk.put_file(DB / "LOCK", b"")
    return ModelEngineDisk(disk, seed=seed)


def write_all(engine: ModelEngine, first: Seq, last: Seq) -> None:
    for seq in range(first, last + 1):
        engine.write([entry(seq)], synced=True)


def seqs_in(engine: ModelEngine) -> set[Seq]:
    """The entries that the engine holds traces of."""
    items = engine.scan(KeyRange(prefix=b"kept")).next_items(10_000, 1 << 20)
    return {int(key.removeprefix(b"kept")) for key, _ in items}


def reopen(engines: ModelEngineDisk, survival: Survival, *, paranoid: bool = False) -> ModelEngine:
    """The engine as the next process finds it."""
    return engines.after_crash(survival, engines.disk.after_crash(survival))(DB, paranoid=paranoid)


def test_the_doubles_are_engines() -> None:
    factory: EngineFactory = new_engines()
    engine: Engine = factory(DB, paranoid=True)
    scan: Scan = engine.scan(KeyRange())
    assert engine.applied == Applied(Position(Epoch(0), 0), synced=False)
    assert scan.applied == Position(Epoch(0), 0)


def test_writes_are_applied_in_order_with_their_position() -> None:
    engine = new_engines()(DB, paranoid=True)
    engine.write([entry(1), entry(2)], synced=False)
    assert engine.applied == Applied(Position(EPOCH, 2), synced=False, time_ms=1002)
    write_all(engine, 3, 4)
    assert engine.applied == Applied(Position(EPOCH, 4), synced=True, time_ms=1004)
    record = Record(Position(EPOCH, 4), 0, b"4")
    assert engine.read([b"last", b"0001", b"0002"]) == (
        [record, None, Record(Position(EPOCH, 2), 0, b'"2"')],
        Position(EPOCH, 4),
    )
    assert engine.contains(b"0002")
    assert not engine.contains(b"0001")


keys = st.binary(min_size=1, max_size=2)


@settings(max_examples=200, deadline=None)
@given(
    stored=st.sets(keys, max_size=12),
    first=st.none() | keys,
    last=st.none() | keys,
    prefix=st.binary(max_size=1),
    limit=st.none() | st.integers(1, 5),
    reverse=st.booleans(),
    chunk=st.integers(1, 4),
)
def test_scans_hand_over_what_the_range_asks_for(
    stored: set[bytes],
    first: bytes | None,
    last: bytes | None,
    prefix: bytes,
    limit: int | None,
    reverse: bool,
    chunk: int,
) -> None:
    engine = new_engines()(DB, paranoid=True)
    if stored:
        engine.write([Entry(1, EPOCH, 1, tuple(put(key, key) for key in stored))], synced=True)
    wanted = sorted(
        (
            key
            for key in stored
            if (first is None or first <= key) and (last is None or key <= last) and key.startswith(prefix)
        ),
        reverse=reverse,
    )
    scan = engine.scan(KeyRange(first, last, prefix, limit, reverse))
    found = []
    while items := scan.next_items(chunk, 1 << 20):
        assert len(items) <= chunk
        found += items
    assert found == [(key, key) for key in wanted[:limit]]
    assert scan.next_key == (wanted[limit] if limit is not None and limit < len(wanted) else None)
    assert scan.next_items(chunk, 1) == []


def test_a_scan_shows_one_snapshot() -> None:
    engine = new_engines()(DB, paranoid=True)
    write_all(engine, 1, 2)
    scan = engine.scan(KeyRange(prefix=b"last"))
    write_all(engine, 3, 3)
    assert scan.applied == Position(EPOCH, 2)
    assert scan.next_items(10, 1) == [(b"last", b"2")]


def test_a_chunk_stops_at_its_bytes_but_has_an_item() -> None:
    engine = new_engines()(DB, paranoid=True)
    write_all(engine, 1, 1)
    scan = engine.scan(KeyRange())
    assert [(len(scan.next_items(10, 1)), scan.ended) for _ in range(4)] == [
        (1, False),
        (1, False),
        (1, True),
        (0, True),
    ]


def test_damage_is_reported_for_the_keys_it_hits() -> None:
    engine = new_engines()(DB, paranoid=True)
    write_all(engine, 1, 1)
    engine.damaged_keys.add(b"last")
    found, _ = engine.read([b"0001", b"last"])
    assert isinstance(found[0], Record)
    assert isinstance(found[1], RecordDamaged)
    with pytest.raises(RecordDamaged):
        engine.contains(b"last")
    scan = engine.scan(KeyRange())
    assert scan.next_items(1, 1) == [(b"0001", b'"1"')]
    with pytest.raises(RecordDamaged):
        scan.next_items(10, 1000)


def test_closing_ends_everything() -> None:
    engines = new_engines()
    engine = engines(DB, paranoid=True)
    scan = engine.scan(KeyRange())
    engine.stuck = True
    assert not engine.close(1)
    write_all(engine, 1, 1)
    with pytest.raises(EngineFailed, match="lock"):
        engines(DB, paranoid=True)
    engine.stuck = False
    assert engine.close(1)
    assert engine.close(1)
    assert engine.is_closed
    for use in (
        engine.flush,
        lambda: write_all(engine, 2, 2),
        lambda: engine.contains(b"x"),
        lambda: engine.read([b"x"]),
        lambda: engine.scan(KeyRange()),
        lambda: scan.next_items(1, 1),
    ):
        with pytest.raises(EngineClosed):
            use()
    scan.close()
    assert engine.level0_files() == 0
    assert seqs_in(engines(DB, paranoid=True)) == {1}


# ---- crashes ---------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    flushed=st.integers(0, 12),
    later=st.integers(0, 12),
    flush=st.booleans(),
    engine_seed=st.integers(0, 1000),
    crash_seed=st.integers(0, 1000),
)
def test_what_was_flushed_survives_and_of_the_rest_anything(
    flushed: int, later: int, flush: bool, engine_seed: int, crash_seed: int
) -> None:
    engines = new_engines(seed=engine_seed)
    engine = engines(DB, paranoid=True)
    write_all(engine, 1, flushed)
    if flush:
        assert engine.flush() == engine.applied.position
    covered = set(range(1, flushed + 1)) if flush else set()
    write_all(engine, flushed + 1, flushed + later)
    everything = set(range(1, flushed + later + 1))

    assert seqs_in(reopen(engines, KEPT, paranoid=True)) == everything
    dropped = seqs_in(reopen(engines, DROPPED, paranoid=True))
    assert dropped == set(range(1, len(dropped) + 1)), "tables are written in order"
    survivor = reopen(engines, torn(crash_seed))
    found = seqs_in(survivor)
    assert covered <= dropped <= found <= everything
    assert survivor.applied.position.seq == max(found, default=0)
    assert seqs_in(reopen(engines, torn(crash_seed))) == found, "the seed alone decides"


def test_a_power_loss_can_leave_newer_writes_without_older_ones() -> None:
    lost_before = lost_inside = 0
    for seed in range(40):
        engines = new_engines(seed=seed)
        write_all(engines(DB, paranoid=True), 1, 10)
        for crash_seed in range(10):
            left = engines.after_crash(torn(crash_seed), engines.disk.after_crash(torn(crash_seed)))
            database = left.database(DB)
            damaged = database.damaged
            if damaged:
                with pytest.raises(EngineFailed, match="Corruption"):
                    left(DB, paranoid=True)
            found = seqs_in(left(DB, paranoid=not damaged))
            if found != set(range(1, len(found) + 1)):
                lost_inside += damaged
                lost_before += not damaged
    assert lost_before > 10
    assert lost_inside > 10


def test_after_a_kill_the_writes_are_not_durable_until_the_engine_is_opened() -> None:
    engines = new_engines()
    engines.memtable_batches = 100
    write_all(engines(DB, paranoid=True), 1, 1)
    killed = engines.after_crash(KEPT, engines.disk.after_crash(KEPT))
    lost = killed.after_crash(DROPPED, killed.disk.after_crash(DROPPED))
    assert seqs_in(lost(DB, paranoid=True)) == set()
    killed(DB, paranoid=True)
    assert seqs_in(reopen(killed, DROPPED)) == {1}


def test_closing_makes_nothing_durable() -> None:
    engines = new_engines()
    engine = engines(DB, paranoid=True)
    engines.memtable_batches = 100
    write_all(engine, 1, 1)
    engine.close(1)
    assert seqs_in(reopen(engines, DROPPED)) == set()


def test_engine_calls_are_crash_points_among_those_of_the_disk() -> None:
    def live(plan: CrashPlan) -> ModelEngineDisk:
        engines = new_engines(plan)
        engines.disk.create(DB / "x").close()
        engine = engines(DB, paranoid=True)
        write_all(engine, 1, 2)
        engines.disk.unlink(DB / "x")
        engine.flush()
        engine.close(1)
        engines(DB, paranoid=False)
        return engines

    operations = [call.operation for call in live(CrashPlan()).disk.calls]
    assert operations == [
        "create",
        "engine_open_paranoid",
        "engine_write",
        "engine_write",
        "unlink",
        "engine_flush",
        "engine_close",
        "engine_open",
    ]
    for number in range(1, len(operations) + 1):
        with pytest.raises(SimulatedCrash):
            live(CrashPlan(crash_at=number))


@pytest.mark.parametrize(("partial", "found"), [(0, {1}), (1, {1, 2})])
def test_a_kill_inside_a_write_leaves_all_or_nothing_of_it(partial: float, found: set[Seq]) -> None:
    engines = new_engines(CrashPlan(crash_at=3, crash_partial=partial))
    engine = engines(DB, paranoid=True)
    write_all(engine, 1, 1)
    with pytest.raises(SimulatedCrash):
        write_all(engine, 2, 2)
    with pytest.raises(SimulatedCrash):
        engine.contains(b"x")
    assert seqs_in(reopen(engines, KEPT)) == found


def test_a_crash_inside_a_flush_may_leave_the_current_memtable_unsynced() -> None:
    for partial in (0, 1):
        found = set()
        for seed in range(30):
            engines = new_engines(CrashPlan(crash_at=10, crash_partial=partial), seed=seed)
            engine = engines(DB, paranoid=True)
            write_all(engine, 1, 8)
            with pytest.raises(SimulatedCrash):
                engine.flush()
            found.add(len(seqs_in(reopen(engines, DROPPED))))
        assert max(found) < 8


# ---- failures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("partial", "seen", "after"), [(0, {1}, {1}), (0.5, {1, 2}, {1}), (1, {1, 2}, {1, 2})])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_a_failed_write_ends_writing_but_not_reading(
    partial: float, seen: set[Seq], after: set[Seq], error: int
) -> None:
    engines = new_engines()
    engine = engines(DB, paranoid=True)
    engines.plan.fail(("engine_write", "*"), error, skip=1, partial=partial)
    write_all(engine, 1, 1)
    with pytest.raises(EngineFailed) as caught:
        write_all(engine, 2, 2)
    assert caught.value.disk_full == (error == errno.ENOSPC)
    for use in (engine.flush, lambda: write_all(engine, 3, 3)):
        with pytest.raises(EngineFailed):
            use()
    assert seqs_in(engine) == seen
    engine.close(1)
    assert seqs_in(engines(DB, paranoid=True)) == after


def test_a_failed_flush_ends_writing() -> None:
    engines = new_engines()
    engine = engines(DB, paranoid=True)
    write_all(engine, 1, 1)
    engines.plan.fail(("engine_flush", "*"), errno.ENOSPC)
    with pytest.raises(EngineFailed):
        engine.flush()
    with pytest.raises(EngineFailed):
        write_all(engine, 2, 2)


def test_opening_fails_with_paranoid_checks_or_altogether() -> None:
    engines = new_engines()
    engines.plan.fail(("engine_open_paranoid", "*"))
    with pytest.raises(EngineFailed):
        engines(DB, paranoid=True)
    engine = engines(DB, paranoid=False)
    assert engines.last_opened is engine
    engine.close(1)
    engines.plan.fail(("engine_open*", "*"), sticky=True)
    for paranoid in (True, False):
        with pytest.raises(EngineFailed):
            engines(DB, paranoid=paranoid)


@pytest.mark.parametrize("partial", [0, 1])
def test_a_crash_while_the_database_is_made_may_leave_it_unusable(partial: float) -> None:
    engines = new_engines(CrashPlan(crash_at=1, crash_partial=partial))
    with pytest.raises(SimulatedCrash):
        engines(DB, paranoid=True)
    next_life = engines.after_crash(KEPT, engines.disk.after_crash(KEPT))
    if not partial:
        assert next_life(DB, paranoid=True).applied.position.seq == 0
        return
    for paranoid in (True, False):
        with pytest.raises(EngineFailed):
            next_life(DB, paranoid=paranoid)


def test_a_crash_while_an_old_database_is_opened_does_it_no_harm() -> None:
    engines = new_engines(CrashPlan(crash_at=4, crash_partial=1))
    engine = engines(DB, paranoid=True)
    write_all(engine, 1, 1)
    engine.close(1)
    with pytest.raises(SimulatedCrash):
        engines(DB, paranoid=True)
    assert seqs_in(reopen(engines, KEPT)) == {1}


def test_the_database_follows_its_directory_and_dies_with_it() -> None:
    engines = new_engines()
    engine = engines(DB, paranoid=True)
    write_all(engine, 1, 3)
    engine.close(1)
    engines.disk.make_directory(DB.parent / "old")
    engines.disk.rename(DB, DB.parent / "old" / "1")
    engines.disk.make_directory(DB)
    assert seqs_in(engines(DB, paranoid=True)) == set()
    assert seqs_in(engines(DB.parent / "old" / "1", paranoid=True)) == {1, 2, 3}


def test_losing_and_rolling_back() -> None:
    engines = new_engines()
    engine = engines(DB, paranoid=True)
    for seq in (1, 2, 3):
        write_all(engine, seq, seq)
        engine.flush()
    engine.close(1)
    engines.roll_back(DB)
    engine = engines(DB, paranoid=True)
    assert seqs_in(engine) == {1, 2}
    engine.close(1)
    engines.roll_back(DB, flushes=2)
    engine = engines(DB, paranoid=True)
    assert engine.applied.position.seq == 0
    write_all(engine, 1, 1)
    engine.close(1)
    engines.lose_everything(DB)
    assert engines(DB, paranoid=True).applied.position.seq == 0


# ---- the ends of a full sync ---------------------------------------------------------------------------------------


def copied(*numbers: int) -> list[SnapshotRecord]:
    return [SnapshotRecord(b"kept%04d" % number, number, EPOCH, 0, b"1") for number in numbers]


def test_records_are_walked_over_from_a_key_on() -> None:
    engine = new_engines()(DB, paranoid=True)
    engine.copy_in(copied(1, 2, 3))
    scan: RecordScan = engine.scan_records(b"")
    assert scan.next_records(1) == copied(1)
    engine.copy_in(copied(4))
    assert scan.next_records(18) == copied(2, 3)
    assert scan.next_records(18) == []
    assert engine.scan_records(b"kept0002").next_records(1000) == copied(3, 4)
    assert engine.scan_records(b"kept0004").next_records(1000) == []
    engine.damaged_keys.add(b"kept0002")
    with pytest.raises(RecordDamaged):
        engine.scan_records(b"").next_records(1000)


@pytest.mark.parametrize("survival", [KEPT, DROPPED, *map(torn, range(20))])
def test_what_was_copied_in_survives_with_its_key(survival: Survival) -> None:
    engines = new_engines()
    engine = engines(DB, paranoid=True)
    for number in range(1, 10):
        engine.copy_in(copied(number))
        found = reopen(engines, survival, paranoid=True)
        assert seqs_in(found) == set(range(1, number + 1))
        assert found.copied_key() == b"kept%04d" % number
        assert found.applied.position == Position(Epoch(0), 0)
    engine.settle(Position(EPOCH, 4), 7)
    found = reopen(engines, survival, paranoid=True)
    assert found.applied == engine.applied == Applied(Position(EPOCH, 4), synced=True, time_ms=7)
    assert found.copied_key() == engine.copied_key() == b"kept0009"


def test_a_synced_write_makes_what_is_in_the_same_log_durable() -> None:
    engines = new_engines()
    engines.memtable_batches = 1 << 30
    engine = engines(DB, paranoid=True)
    write_all(engine, 1, 1)
    engine.copy_in(copied(2))
    write_all(engine, 3, 3)
    assert len(engines.database(DB).logs) == 1
    assert seqs_in(reopen(engines, DROPPED)) == {1, 2}


@pytest.mark.parametrize(("partial", "found"), [(0.0, {frozenset([1])}), (1.0, {frozenset([1]), frozenset([1, 2])})])
def test_a_crash_inside_a_synced_write_may_leave_it_unsynced(partial: float, found: set[frozenset[Seq]]) -> None:
    engines = new_engines(CrashPlan())
    engine = engines(DB, paranoid=True)
    engine.copy_in(copied(1))
    engines.plan.crash_at, engines.plan.crash_partial = len(engines.plan.calls) + 1, partial
    with pytest.raises(SimulatedCrash):
        engine.copy_in(copied(2))
    survivors = [reopen(engines, survival) for survival in (KEPT, DROPPED, *map(torn, range(20)))]
    assert {frozenset(seqs_in(each)) for each in survivors} == found
    assert {each.copied_key() for each in survivors} == {b"kept%04d" % max(seqs) for seqs in found}


def test_a_failed_copy_ends_copying_and_is_gone_after_reopening() -> None:
    engines = new_engines()
    engine = engines(DB, paranoid=True)
    engine.copy_in(copied(1))
    engines.plan.fail(("engine_copy_in", "*"), errno.ENOSPC, partial=0.5)
    with pytest.raises(EngineFailed) as caught:
        engine.copy_in(copied(2))
    assert caught.value.disk_full
    assert engine.copied_key() == b"kept0002"
    with pytest.raises(EngineFailed):
        engine.settle(Position(EPOCH, 4), 0)
    assert engine.close(1)
    assert engines(DB, paranoid=True).copied_key() == b"kept0001"
