"""The engine at both ends of a full sync: records are walked over here and copied in there, and survive there."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import plyvel
import pytest

from kvnode.node.api import KeyRange, Record
from kvnode.node.errors import EngineClosed, EngineFailed, RecordDamaged
from kvnode.node.fs import RealFs
from kvnode.node.storage.engine import Applied
from kvnode.node.storage.leveldb import LevelDbEngine
from kvnode.protocol.snapshot import RecordFields, SnapshotRecord
from kvnode.protocol.types import Epoch, Position, delete, put
from support.engines import (
    EPOCH,
    PLAIN,
    SMALL,
    entry,
    fill,
    flipped,
    opened,
    read_range,
    read_records,
    read_values,
    tables,
)

NOTHING = Position(Epoch(0), 0)


def record(number: int, size: int = 10) -> SnapshotRecord:
    return SnapshotRecord(b"key%05d" % number, number + 1, EPOCH, number % 3, b"v" * size)


def keys(groups: list[list[RecordFields]]) -> list[list[bytes]]:
    return [[key for key, *_ in group] for group in groups]


# ---- walking over records ------------------------------------------------------------------------------------------


def test_records_come_with_their_version_in_key_order(tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        engine.write([entry(1, [put(b"b", b"1", 77), put(b"a", b'"x"')]), entry(2, [put(b"b", b"2")])], synced=True)
        scan = engine.scan_records(b"")
        assert scan.applied == Position(EPOCH, 2)
        assert scan.next_records(1000) == [
            SnapshotRecord(b"a", 1, EPOCH, 0, b'"x"'),
            SnapshotRecord(b"b", 2, EPOCH, 0, b"2"),
        ]
        assert scan.next_records(1000) == []
        assert scan.next_records(1000) == []
        scan.close()
        engine.write([entry(3, [put(b"c", b"3", 5)])], synced=True)
        assert read_records(engine, b"b") == [[SnapshotRecord(b"c", 3, EPOCH, 5, b"3")]]


@pytest.mark.parametrize(
    ("after_key", "expected"),
    [
        (b"", [b"a", b"a\0", b"a\0\0", b"b", b"\xff"]),
        (b"a", [b"a\0", b"a\0\0", b"b", b"\xff"]),
        (b"a\0", [b"a\0\0", b"b", b"\xff"]),
        (b"a\0\0", [b"b", b"\xff"]),
        (b"aa", [b"b", b"\xff"]),
        (b"\0", [b"a", b"a\0", b"a\0\0", b"b", b"\xff"]),
        (b"b", [b"\xff"]),
        (b"\xff", []),
        (b"\xff\xff", []),
    ],
)
def test_a_walk_begins_above_the_key(after_key: bytes, expected: list[bytes], tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        fill(engine, 1, dict.fromkeys([b"a", b"a\0", b"a\0\0", b"b", b"\xff"], b"1"))
        assert keys(read_records(engine, after_key)) == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("max_bytes", "groups"),
    [
        (1, [[1], [2], [3], [4]]),
        (9, [[1], [2], [3], [4]]),
        (19, [[1], [2], [3], [4]]),
        (20, [[1, 2], [3], [4]]),
        (120, [[1, 2], [3], [4]]),
        (121, [[1, 2], [3, 4]]),
        (129, [[1, 2], [3, 4]]),
        (130, [[1, 2, 3], [4]]),
        (140, [[1, 2, 3], [4]]),
        (141, [[1, 2, 3, 4]]),
    ],
)
def test_keys_and_values_count_and_the_first_record_fits(
    max_bytes: int, groups: list[list[int]], tmp_path: Path
) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        fill(engine, 1, {b"1": b"v" * 9, b"2": b"v" * 9, b"3": b"v" * 109, b"4": b"v" * 10})
        assert keys(read_records(engine, b"", max_bytes)) == [[b"%d" % number for number in group] for group in groups]


def test_a_walk_shows_one_snapshot(tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        fill(engine, 1, {b"a": b"1", b"b": b"1", b"c": b"1"})
        scan = engine.scan_records(b"")
        assert keys([scan.next_records(1)]) == [[b"a"]]
        engine.write([entry(2, [delete(b"b"), put(b"c", b"2"), put(b"d", b"2")])], synced=True)
        assert [(key, value) for key, _, _, _, value in scan.next_records(100)] == [(b"b", b"1"), (b"c", b"1")]
        assert scan.next_records(100) == []
        assert scan.applied == Position(EPOCH, 1)
        scan.close()


def test_a_closed_walk_says_so_and_closing_the_engine_ends_it(tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        fill(engine, 1, {b"a": b"1", b"b": b"1"})
        closed, left = engine.scan_records(b""), engine.scan_records(b"")
        closed.next_records(1)
        closed.close()
        closed.close()
        with pytest.raises(EngineClosed):
            closed.next_records(1)
    with pytest.raises(EngineClosed):
        left.next_records(1)
    left.close()
    with pytest.raises(EngineClosed):
        engine.scan_records(b"")


def test_a_record_without_a_header_is_damage(tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        fill(engine, 1, {b"a": b"1"})
    with plyvel.DB(str(tmp_path / "db")) as db:
        db.put(b"kb", b"short")
    with opened(SMALL, tmp_path / "db") as engine:
        scan = engine.scan_records(b"")
        for _ in range(2):
            with pytest.raises(RecordDamaged):
                scan.next_records(1000)
        scan.close()


def test_damage_that_looks_like_the_end_is_none(tmp_path: Path) -> None:
    """It comes after the position was read, in the last block, behind which LevelDB finds nothing."""
    path = tmp_path / "db"
    values = {b"key%d" % number: b"%d" % number * 700 for number in range(4)}
    with opened(PLAIN, path) as engine:
        fill(engine, 1, values)
        engine.flush()
    (table,) = tables(path)
    with opened(PLAIN, path) as engine:
        scan = engine.scan_records(b"")
        assert keys([scan.next_records(1)]) == [[b"key0"]]
        with flipped(table, table.read_bytes().index(b"mapplied"), 1):
            left = [b"key1", b"key2", b"key3"]
            while left:
                try:
                    found = scan.next_records(1)
                except RecordDamaged:
                    break
                assert keys([found]) == [[left.pop(0)]]
            with pytest.raises(RecordDamaged):
                scan.next_records(1)
        scan.close()


# ---- copying in ----------------------------------------------------------------------------------------------------


def test_copied_records_keep_their_version(tmp_path: Path) -> None:
    other = Epoch.of(9, 9)
    with opened(SMALL, tmp_path / "db") as engine:
        assert engine.copied_key() == b""
        engine.copy_in([SnapshotRecord(b"a", 7, EPOCH, 0, b"1"), SnapshotRecord(b"b", 3, other, 99, b'"x"')])
        assert engine.copied_key() == b"b"
        engine.copy_in([SnapshotRecord(b"\xff\0", 8, other, 0, b"2")])
        assert engine.copied_key() == b"\xff\0"
        assert engine.applied == Applied(NOTHING, synced=False)
        records, position = engine.read([b"a", b"b", b"\xff\0"])
        assert records == [
            Record(Position(EPOCH, 7), 0, b"1"),
            Record(Position(other, 3), 99, b'"x"'),
            Record(Position(other, 8), 0, b"2"),
        ]
        assert position == NOTHING


def test_settling_sets_the_position_and_leaves_the_key(tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        engine.copy_in([record(1)])
        engine.settle(Position(EPOCH, 41), 0)
        assert engine.applied == Applied(Position(EPOCH, 41), synced=True, time_ms=0)
        assert engine.copied_key() == record(1).key
        assert engine.read([])[1] == Position(EPOCH, 41)
        assert engine.flush() == Position(EPOCH, 41)
    with opened(SMALL, tmp_path / "db") as engine:
        assert engine.applied == Applied(Position(EPOCH, 41), synced=True, time_ms=0)
        assert engine.copied_key() == record(1).key
        assert read_records(engine) == [[record(1)]]
        engine.write([entry(42, [put(b"z", b"1")])], synced=True)
        assert engine.applied.position == Position(EPOCH, 42)


def test_settling_at_the_begin_and_copying_on_after_it(tmp_path: Path) -> None:
    """A sync of an empty primary stands at 0; one that failed to finish is settled, and may be gone on with."""
    with opened(SMALL, tmp_path / "db") as engine:
        engine.settle(NOTHING, 0)
        assert engine.applied == Applied(NOTHING, synced=True)
        engine.copy_in([record(1)])
        assert engine.copied_key() == record(1).key
        assert engine.flush() == NOTHING
        engine.settle(Position(EPOCH, 3), 5)
        assert engine.applied == Applied(Position(EPOCH, 3), synced=True, time_ms=5)


def test_what_one_engine_hands_out_another_takes(tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "a") as source, opened(SMALL, tmp_path / "b") as target:
        for seq in range(1, 30):
            fill(source, seq, {b"key%03d" % number: b"%d" % seq * 40 for number in range(seq, 200, seq)})
        for group in read_records(source, b"", 900):
            target.copy_in(group)
        target.settle(source.applied.position, source.applied.time_ms)
        assert read_records(target) == read_records(source)
        assert read_range(target, KeyRange(reverse=True)) == read_range(source, KeyRange(reverse=True))
        assert target.applied.position == source.applied.position


def test_a_flush_makes_durable_what_was_copied_since_the_last_one(tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        engine.copy_in([record(1)])
        engine.flush()
        engine.copy_in([record(2)])
        engine.flush()
    for log in (tmp_path / "db").glob("*.log"):
        log.unlink()
    with opened(SMALL, tmp_path / "db") as engine:
        assert engine.copied_key() == record(2).key


def copy_of(path: Path, to: Path) -> Path:
    """The directory as a kill would leave it."""
    shutil.copytree(path, to)
    (to / "LOCK").unlink()
    return to


def test_what_is_copied_is_in_the_log_at_once_with_its_key(tmp_path: Path) -> None:
    copied: list[SnapshotRecord] = []
    with opened(SMALL, tmp_path / "db") as engine:
        for begin in range(0, 100, 20):
            group = [record(number, 200) for number in range(begin, begin + 20)]
            engine.copy_in(group)
            copied += group
            with opened(SMALL, copy_of(tmp_path / "db", tmp_path / str(begin))) as other:
                assert other.copied_key() == group[-1].key
                assert [each for found in read_records(other) for each in found] == copied


def test_no_table_of_a_copy_is_written_again(tmp_path: Path) -> None:
    """The tables, of rising keys, and one of the meta key before them, do not overlap: LevelDB has nothing to merge."""
    with opened(SMALL, tmp_path / "db") as engine:
        engine.flush()
        known: set[Path] = set()
        for begin in range(0, 6000, 50):
            engine.copy_in([record(number, 200) for number in range(begin, begin + 50)])
            assert known <= set(tables(tmp_path / "db"))
            known = set(tables(tmp_path / "db"))
        engine.settle(Position(EPOCH, 6000), 0)
        engine.flush()
        found = set(tables(tmp_path / "db"))
        assert len(known) > 12, "too few for LevelDB to want to merge any"
        assert known <= found
        assert engine.level0_files() == 0
        assert len([each for group in read_records(engine) for each in group]) == 6000


def test_damage_where_the_last_key_stands_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with opened(PLAIN, path) as engine:
        engine.copy_in([record(number, 200) for number in range(100)])
        engine.flush()
    (table,) = tables(path)
    damaged = flipped(table, table.read_bytes().rindex(b"v" * 20), 1)
    with opened(PLAIN, path) as engine, damaged, pytest.raises(EngineFailed, match="what was copied"):
        engine.copied_key()


class Syncs:
    """Notes which logs are in a directory that is synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.logs_named: list[set[str]] = []
        sync_directory = RealFs.sync_directory

        def counted(fs: RealFs, path: Path) -> None:
            self.logs_named.append({name for name in os.listdir(path) if name.endswith(".log")})
            sync_directory(fs, path)

        monkeypatch.setattr(RealFs, "sync_directory", counted)


def test_the_name_of_each_log_is_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        syncs = Syncs(monkeypatch)
        seen: set[str] = set()
        for begin in range(0, 600, 20):
            engine.copy_in([record(number, 200) for number in range(begin, begin + 20)])
            seen |= {name for name in os.listdir(tmp_path / "db") if name.endswith(".log")}
            assert seen <= set().union(*syncs.logs_named)
        assert len(seen) > 1
        assert len(syncs.logs_named) <= len(seen) + 1
        monkeypatch.undo()


class BrokenBatch:
    """A write batch whose write fails."""

    def __init__(self, batch: object) -> None:
        self._batch = batch

    def __getattr__(self, name: str) -> object:
        return getattr(self._batch, name)

    def write(self) -> None:
        raise plyvel.IOError("No space left on device")


class BrokenDb:
    """A database that is full, and notes how batches are asked for."""

    def __init__(self, db: object) -> None:
        self._db = db
        self.options: list[dict[str, object]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)

    def write_batch(self, **options: object) -> BrokenBatch:
        self.options.append(options)
        return BrokenBatch(self._db.write_batch(**options))  # type: ignore[attr-defined]


@pytest.mark.parametrize("act", [lambda engine: engine.copy_in([record(1)]), lambda engine: engine.settle(NOTHING, 0)])
def test_a_failure_is_final_and_a_full_disk_told_apart(act: Callable[[LevelDbEngine], None], tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        db = engine._db = BrokenDb(engine._db)
        with pytest.raises(EngineFailed) as caught:
            act(engine)
        assert caught.value.disk_full
        with pytest.raises(EngineFailed, match="failed before"):
            act(engine)
        assert db.options == [{"sync": True}]
        assert engine.copied_key() == b""
        assert read_values(engine, [b"a"]) == [None]
    for refused in (act, lambda closed: closed.copied_key()):
        with pytest.raises(EngineClosed):
            refused(engine)
